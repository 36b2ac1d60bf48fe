//! LLaMA in the middle of reports: a prefix of embeddings, then token by token.

use candle_core::{Device, Tensor};

use crate::decoder::step::NextToken;
use crate::{Error, Result};

use super::cache::KvCache;
use super::model::Llama;

/// n sequences that begin with embeddings (prompt and visual tokens) and go on with ids.
#[derive(Debug)]
pub struct LlamaPrompt<'a> {
    model: &'a Llama,
    prefix: Option<Tensor>,
    cache: KvCache,
}

impl<'a> LlamaPrompt<'a> {
    /// prefix: (n, P, D), or `None` to begin with ids; at most `new_tokens` ids follow.
    pub fn new(model: &'a Llama, prefix: Option<Tensor>, sequences: usize, new_tokens: usize) -> Result<Self> {
        let read = prefix.as_ref().map_or(Ok(0), |prefix| prefix.dim(1))?;
        let capacity = (read + new_tokens).min(model.config().max_position_embeddings);
        Ok(LlamaPrompt { model, prefix: prefix.map(|prefix| prefix.detach()), cache: model.cache(sequences, capacity) })
    }
}

impl NextToken for LlamaPrompt<'_> {
    fn next(&mut self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let length = ids.first().map_or(0, Vec::len);
        if ids.iter().any(|row| row.len() != length) {
            return Err(Error::Invalid("sequences that are decoded together must be fed alike".to_string()));
        }
        let flat: Vec<u32> = ids.iter().flatten().copied().collect();
        let embedded = match length {
            0 => None,
            _ => Some(self.model.embed(&Tensor::from_vec(flat, (ids.len(), length), &Device::Cpu)?)?.detach()),
        };
        let input = match (self.prefix.take(), embedded) {
            (Some(prefix), Some(embedded)) => Tensor::cat(&[prefix, embedded], 1)?,
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return Err(Error::Invalid("there is nothing to read: no prefix and no id".to_string())),
        };
        let hidden = self.model.read_to_last(&input, &mut self.cache)?;
        Ok(self.model.logits(&hidden)?.detach())
    }

    fn reorder(&mut self, order: &[usize]) -> Result<()> {
        self.cache.reorder(order)
    }
}
