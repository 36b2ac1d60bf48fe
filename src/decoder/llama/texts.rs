//! LLaMA in the middle of several reports, each at its own place.

use candle_core::{Device, Tensor};
use ctscribe_ops::Replays;

use crate::decoder::greedy::ReadRows;
use crate::decoder::search::rows;
use crate::{Error, Result};

use super::cache::{Factors, KvCache, Run};
use super::model::{Llama, RunsKey};

/// n texts that begin with embeddings (prompt and visual tokens) and go on with ids.
#[derive(Debug)]
pub struct LlamaTexts<'a> {
    model: &'a Llama,
    prefixes: Tensor,
    capacity: usize,
    /// The caches of the texts that are being written.
    caches: Vec<Option<KvCache>>,
    /// Caches of texts that are written, for the next ones.
    spare: Vec<KvCache>,
    factors: Factors,
    replays: Replays<RunsKey>,
}

impl<'a> LlamaTexts<'a> {
    /// prefixes: (n, P, D); at most `new_tokens` ids follow each.
    pub fn new(model: &'a Llama, prefixes: &Tensor, new_tokens: usize) -> Result<Self> {
        let (texts, read, _) = prefixes.dims3()?;
        let capacity = (read + new_tokens).min(model.config().max_position_embeddings);
        let factors = model.cache(0, 0).factors();
        let caches = (0..texts).map(|_| None).collect();
        Ok(LlamaTexts { model, prefixes: prefixes.detach(), capacity, caches, spare: Vec::new(), factors, replays: model.replays() })
    }

    /// Kinds of passes that have been recorded to be replayed.
    pub fn recorded(&self) -> usize {
        self.replays.recorded()
    }
}

impl ReadRows for LlamaTexts<'_> {
    fn begin(&mut self, text: usize) -> Result<Vec<f32>> {
        let fresh = || self.model.cache(1, self.capacity).with_factors(self.factors.clone());
        let mut cache = self.spare.pop().unwrap_or_else(fresh);
        cache.truncate(0);
        let hidden = self.model.read_to_last(&self.prefixes.narrow(0, text, 1)?, &mut cache)?;
        self.caches[text] = Some(cache);
        rows(&self.model.logits(&hidden)?).map(|mut rows| rows.swap_remove(0))
    }

    fn read(&mut self, runs: &[(usize, Vec<u32>)]) -> Result<Vec<Vec<f32>>> {
        let ids: Vec<u32> = runs.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let embedded = self.model.embed(&Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?)?.squeeze(0)?;
        // the caches leave their places for the pass: each is borrowed on its own
        let begun = |cache: Option<KvCache>| cache.ok_or_else(|| Error::Invalid("a text goes on that has not begun".to_string()));
        let mut caches: Vec<KvCache> = runs.iter().map(|(text, _)| begun(self.caches[*text].take())).collect::<Result<_>>()?;
        let mut own: Vec<Run> = caches.iter_mut().zip(runs).map(|(cache, (_, ids))| Run { cache, rows: ids.len() }).collect();
        let logits = self.model.logits_of_runs(&embedded, &mut own, &mut self.replays)?;
        runs.iter().zip(caches).for_each(|((text, _), cache)| self.caches[*text] = Some(cache));
        rows(&logits)
    }

    fn room(&self, text: usize) -> usize {
        self.caches[text].as_ref().map_or(0, KvCache::room)
    }

    fn forget(&mut self, text: usize, count: usize) {
        if let Some(cache) = &mut self.caches[text] {
            cache.truncate(cache.length() - count);
        }
    }

    fn end(&mut self, text: usize) {
        self.spare.extend(self.caches[text].take());
    }
}
