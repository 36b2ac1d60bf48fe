//! The BERT decoder in the middle of reports: cached self-attention, cross-attention keys and values computed once.

use candle_core::{Device, Tensor};
use ctscribe_ops::{self as ops, Attention, transfers};

use crate::decoder::llama::KvCache;
use crate::decoder::step::NextToken;
use crate::{Error, Result};

use super::model::BertDecoder;

/// n sequences, each over its own visual tokens.
#[derive(Debug)]
pub struct BertPrompt<'a> {
    model: &'a BertDecoder,
    cross: Vec<[Tensor; 2]>,
    mask: Option<Tensor>,
    cache: KvCache,
}

impl<'a> BertPrompt<'a> {
    /// visual: (n, M, C), mask: (n, M); at most `tokens` ids are read.
    pub fn new(model: &'a BertDecoder, visual: &Tensor, mask: Option<&Tensor>, tokens: usize) -> Result<Self> {
        let config = model.config();
        let width = config.hidden_size / config.num_attention_heads;
        let capacity = tokens.min(config.max_position_embeddings);
        let keys = |layer: &crate::text::bert::BertLayer| -> Result<[Tensor; 2]> {
            let cross = layer.cross.as_ref().ok_or_else(|| Error::Invalid("the decoder has no cross-attention".to_string()))?;
            let [k, v] = cross.keys_values(&visual.detach())?;
            Ok([k.detach(), v.detach()])
        };
        Ok(BertPrompt {
            cross: model.layers.iter().map(keys).collect::<Result<_>>()?,
            mask: mask.cloned(),
            cache: KvCache::new(config.num_hidden_layers, visual.dim(0)?, config.num_attention_heads, capacity, width),
            model,
        })
    }
}

impl NextToken for BertPrompt<'_> {
    fn next(&mut self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let length = ids.first().map_or(0, Vec::len);
        let flat: Vec<u32> = ids.iter().flatten().copied().collect();
        let ids = Tensor::from_vec(flat, (ids.len(), length), &Device::Cpu)?;
        let mut x = self.model.embed(&ids, self.cache.length(), None)?.detach();
        for (index, layer) in self.model.layers.iter().enumerate() {
            let own = &layer.attention;
            let input = own.input(&x)?;
            let [k, v] = own.keys_values(&input)?;
            let mixed = self.cache.attend(index, &own.queries(&input)?, &k, &v, own.scale())?;
            x = own.output(&x, &mixed, None)?;
            if let Some(cross) = &layer.cross {
                let [k, v] = &self.cross[index];
                let options = Attention { key_mask: self.mask.as_ref(), ..Attention::full(cross.scale()) };
                let mixed = ops::attention(&cross.queries(&cross.input(&x)?)?, k, v, &options)?;
                x = cross.output(&x, &mixed, None)?;
            }
            x = layer.feed(&x, None)?.detach();
        }
        self.cache.advance(length);
        let last = x.narrow(1, length - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok(self.model.logits(&last)?.detach())
    }

    fn reorder(&mut self, order: &[usize]) -> Result<()> {
        self.cache.reorder(order)?;
        let order: Vec<u32> = order.iter().map(|index| *index as u32).collect();
        let count = order.len();
        let order = transfers::upload(order, count, self.model.device())?;
        for pair in &mut self.cross {
            for tensor in pair {
                *tensor = tensor.index_select(&order, 0)?;
            }
        }
        if let Some(mask) = &mut self.mask {
            *mask = mask.index_select(&order, 0)?;
        }
        Ok(())
    }
}
