//! The network.

use candle_core::{DType, Device, Module, Tensor};
use ctscribe_lora::BaseLinear;
use ctscribe_ops::{self as ops, Replays, transfers};
use rand_chacha::ChaCha8Rng;

use crate::decoder::labels::labelled;
use crate::weights::{Init, Params};
use crate::{Error, Result};

use super::cache::{Factors, KvCache, Run, attend_runs};
use super::config::LlamaConfig;
use super::layer::Layer;
use super::projection::Projection;

/// Attention of a layer's q, k and v at a scale.
type Attend<'a> = dyn FnMut(usize, [&Tensor; 3], f64) -> Result<Tensor> + 'a;

/// LLaMA (Touvron et al., 2023) with Hugging Face's tensor names.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    pub(super) embedding: Projection,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor,
    pub(super) head: Projection,
    cos: Tensor,
    sin: Tensor,
    recompute: bool,
    replayed: bool,
}

/// What the work of a pass over runs depends on beside values: where each text's keys and values lie, and its rows.
pub type RunsKey = Vec<(u64, usize)>;

impl Llama {
    /// A model of `config`; frozen or trainable as `params` are.
    pub fn new(config: &LlamaConfig, params: &Params) -> Result<Self> {
        let (dim, std) = (config.hidden_size, config.initializer_range);
        let model = params.at("model");
        let words = (config.vocab_size, dim);
        let embedding = Projection::new(&model.at("embed_tokens"), "weight", words, Init::Normal(std))?;
        // norms are of the type of what passes through them
        let dtype = embedding.activation_dtype();
        let layers = (0..config.num_hidden_layers).map(|index| Layer::new(config, dtype, &model.at("layers").at(index)));
        let layers = layers.collect::<Result<_>>()?;
        let norm = model.at("norm").with_dtype(dtype).get("weight", &[dim], Init::Ones)?;
        let head = if config.tie_word_embeddings {
            params.unused("lm_head.weight");
            embedding.clone()
        } else {
            Projection::new(&params.at("lm_head"), "weight", words, Init::Normal(1.0 / (dim as f64).sqrt()))?
        };
        for layer in 0..config.num_hidden_layers {
            // written by old versions of transformers; computed from rope_theta
            model.at("layers").at(layer).unused("self_attn.rotary_emb.inv_freq");
        }
        let (cos, sin) = ops::rope_tables(0, config.max_position_embeddings, config.head_width(), config.rope_theta, params.device())?;
        Ok(Llama { config: config.clone(), embedding, layers, norm, head, cos, sin, recompute: false, replayed: false })
    }

    /// The sizes.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The type of what passes through the layers: f32 on the processor, bf16 on another device where the base is of 16 bits or fewer.
    pub fn dtype(&self) -> DType {
        self.embedding.activation_dtype()
    }

    /// Whether each layer is run again in the backward pass instead of keeping what it computed; the gradients are the same bits.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Whether passes that come again are replayed as CUDA graphs while texts are written, where the model lies on a device that can.
    pub fn set_replayed(&mut self, replayed: bool) {
        self.replayed = replayed && ops::caches_on_device(self.device(), self.dtype(), self.config.head_width());
    }

    /// For the passes of some texts: none of them is recorded unless [`Self::set_replayed`] has said so, and then only where how far a text has come
    /// is read on the device.
    pub fn replays(&self) -> Replays<RunsKey> {
        Replays::new(self.replayed)
    }

    /// For a process that writes with this model and trains nothing: frozen weights of 16 bits are packed as [`ops::Matrix::for_writing`] says, at the
    /// first word written: as many of them as `room` bytes hold, since a packed weight cannot leave memory as a file's can. The same words come out,
    /// of the same weights.
    pub fn set_writing(&mut self, mut room: u64) {
        for projection in self.multiplied() {
            let bytes = projection.packed_bytes();
            if bytes <= room {
                projection.set_writing();
                room -= bytes;
            }
        }
    }

    /// All weights of the layers, and the head's.
    fn multiplied(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.layers.iter_mut().flat_map(|layer| &mut layer.projections).map(|adapted| &mut adapted.base).chain([&mut self.head])
    }

    /// Standard deviation of the embedding's values: what a projector's output should have at first.
    pub fn embedding_std(&self) -> Result<f64> {
        let values = self.embedding.weight()?;
        let mean = values.mean_all()?;
        Ok(f64::from(transfers::read_number(&values.broadcast_sub(&mean)?.sqr()?.mean_all()?)?).sqrt())
    }

    /// ids: (B, L) u32 in the host's memory -> (B, L, D) of [`Llama::dtype`] on the model's device.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, l) = ids.dims2()?;
        let rows = self.rows(&ids.flatten_all()?)?.to_dtype(self.dtype())?;
        Ok(rows.reshape((b, l, self.config.hidden_size))?)
    }

    /// Rows `ids` (L) of the embedding, f32.
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        /// Rows of a file that are read before it may leave memory: each comes with sixteen pages of others that nobody asks for.
        const TOGETHER: usize = 64;
        let frozen = match &self.embedding {
            Projection::Frozen(matrix) if matrix.in_place() && ids.dim(0)? > ops::FEW_ROWS && !self.config.tie_word_embeddings => matrix,
            embedding => return Ok(embedding.rows(ids)?),
        };
        let part = |ids: &[u32]| {
            let rows = frozen.rows(ids);
            frozen.release();
            rows
        };
        Ok(Tensor::cat(&transfers::host_values(ids)?.chunks(TOGETHER).map(part).collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    }

    /// embeddings: (B, L, D) at positions 0..L; key_mask: (B, L), 1 where a position may be attended to -> (B, L, D) after the last norm.
    /// `dropout`: the generator of a training step, for the adapters.
    pub fn forward(&self, embeddings: &Tensor, key_mask: Option<&Tensor>, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let x = self.through_layers(0, embeddings, key_mask, dropout)?;
        Ok(ops::rms_norm(&x, &self.norm, self.config.rms_norm_eps)?)
    }

    /// What the last norm gets of the positions from `first` on: the last layer's feed-forward block computes no others.
    fn through_layers(
        &self,
        first: usize,
        embeddings: &Tensor,
        key_mask: Option<&Tensor>,
        mut dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let length = embeddings.dim(1)?;
        self.check_length(length)?;
        let (cos, sin) = (self.cos.narrow(0, 0, length)?, self.sin.narrow(0, 0, length)?);
        let from = |index: usize| if index + 1 == self.layers.len() { first } else { 0 };
        if self.recompute {
            return self.recomputed(from, embeddings, (&cos, &sin), key_mask, dropout);
        }
        let mut x = embeddings.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.through((layer, from(index)), &x, (&cos, &sin), key_mask, dropout.as_deref_mut())?;
        }
        Ok(x)
    }

    /// All layers, each of the positions from `from(its place)` on, of which nothing is kept but their inputs.
    fn recomputed(
        &self,
        from: impl Fn(usize) -> usize,
        x: &Tensor,
        tables: (&Tensor, &Tensor),
        key_mask: Option<&Tensor>,
        dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let block = |(index, layer)| self.block((layer, from(index)), tables, key_mask, true);
        ops::checkpoint_layers(&[x], dropout, self.layers.iter().enumerate().map(block).collect())
    }

    /// One layer of the positions from `first` on, or its attention alone, as a block that can be run again.
    fn block(
        &self,
        (layer, first): (&Layer, usize),
        tables: (&Tensor, &Tensor),
        key_mask: Option<&Tensor>,
        whole: bool,
    ) -> impl Fn(&[Tensor], Option<&mut ChaCha8Rng>) -> Result<Tensor> + Send + Sync + use<> {
        let (layer, config, key_mask) = (layer.clone(), self.config.clone(), key_mask.cloned());
        let (cos, sin) = (tables.0.clone(), tables.1.clone());
        move |x, mut dropout| {
            let x = layer.attend(&x[0], &config, (&cos, &sin), key_mask.as_ref(), dropout.as_deref_mut())?;
            if whole { layer.feed_forward(&x, &config, (first, dropout), true) } else { Ok(x) }
        }
    }

    /// One layer, of the positions from `first` on, which keeps for its gradient what the model's settings say: its input and the frozen products
    /// beside it, or the whole graph.
    fn through(
        &self,
        (layer, first): (&Layer, usize),
        x: &Tensor,
        tables: (&Tensor, &Tensor),
        key_mask: Option<&Tensor>,
        mut dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let fused = layer.feeds_in_place();
        if !self.head.keeps_products() || fused && layer.attends_in_place() {
            return layer.forward(x, &self.config, tables, key_mask, (first, dropout));
        }
        let block = self.block((layer, first), tables, key_mask, !fused);
        let x = ops::checkpoint_keeping_products(&[x], dropout.as_deref_mut(), block)?;
        // it keeps what it needs by itself
        if fused { layer.feed_forward(&x, &self.config, (first, dropout), false) } else { Ok(x) }
    }

    /// embeddings: (B, L, D) that follow what the cache holds -> (B, L, D) after the last norm; no gradient is kept.
    pub fn forward_cached(&self, embeddings: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.read(embeddings, cache, false)
    }

    /// As [`Self::forward_cached`], of the last position alone: -> (B, D). The last layer computes nothing else but keys and values.
    pub fn read_to_last(&self, embeddings: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        Ok(self.read(embeddings, cache, true)?.squeeze(1)?)
    }

    fn read(&self, embeddings: &Tensor, cache: &mut KvCache, last: bool) -> Result<Tensor> {
        let (start, length) = (cache.length(), embeddings.dim(1)?);
        self.check_length(start + length)?;
        let tables = [self.cos.narrow(0, start, length)?, self.sin.narrow(0, start, length)?];
        let factors = cache.factors();
        let attend = &mut |layer, [q, k, v]: [&Tensor; 3], scale| cache.attend(layer, q, k, v, scale);
        let hidden = self.forward_detached(embeddings, &tables, (&factors, last), attend)?;
        cache.advance(length);
        Ok(hidden)
    }

    /// embeddings: (R, D) of runs' next tokens, one run's after the other's -> (R, D) after the last norm; no gradient is kept.
    /// Up to [`ops::FEW_ROWS`] rows have the bits that each has alone.
    pub fn forward_runs(&self, embeddings: &Tensor, runs: &mut [Run]) -> Result<Tensor> {
        let inputs = [embeddings.clone(), self.places(runs)?];
        let hidden = self.read_runs(&inputs, runs)?;
        runs.iter_mut().for_each(|run| run.cache.advance(run.rows));
        Ok(hidden)
    }

    /// As [`Self::forward_runs`] -> logits (R, vocabulary); a pass of the same caches and rows as one before is replayed where the device can.
    pub fn logits_of_runs(&self, embeddings: &Tensor, runs: &mut [Run], replays: &mut Replays<RunsKey>) -> Result<Tensor> {
        let inputs = [embeddings.detach(), self.places(runs)?];
        let key = runs.iter().map(|run| (run.cache.place(), run.rows)).collect();
        let logits = replays.run(key, &inputs, |inputs| self.logits(&self.read_runs(inputs, runs)?))?;
        runs.iter_mut().for_each(|run| run.cache.advance(run.rows));
        Ok(logits)
    }

    /// The place of each row in its text, then how many tokens each text has with its rows: u32, on the model's device.
    fn places(&self, runs: &[Run]) -> Result<Tensor> {
        let ends = || runs.iter().map(|run| run.cache.length() + run.rows);
        ends().try_for_each(|end| self.check_length(end))?;
        let places = runs.iter().flat_map(|run| run.cache.length()..run.cache.length() + run.rows);
        let numbers: Vec<u32> = places.chain(ends()).map(|number| number as u32).collect();
        let count = numbers.len();
        Ok(transfers::upload(numbers, count, self.device())?)
    }

    /// What [`Self::forward_runs`] does with embeddings (R, D) and [`Self::places`], but for advancing the caches.
    fn read_runs(&self, inputs: &[Tensor], runs: &mut [Run]) -> Result<Tensor> {
        let (embeddings, rows) = (&inputs[0], inputs[0].dim(0)?);
        let (places, lengths) = (inputs[1].narrow(0, 0, rows)?, inputs[1].narrow(0, rows, runs.len())?);
        let tables = [self.cos.index_select(&places, 0)?, self.sin.index_select(&places, 0)?];
        let factors = runs.first().map(|run| run.cache.factors()).unwrap_or_default();
        let hidden = self.forward_detached(&embeddings.unsqueeze(0)?, &tables, (&factors, false), &mut |layer, qkv, scale| {
            attend_runs(runs, &lengths, layer, qkv, scale)
        })?;
        Ok(hidden.squeeze(0)?)
    }

    /// x: (B, L, D), rotated by `tables` (cosines and sines, (L, D/2) each); `last`: of the last position alone, (B, 1, D); `attend`: layer; q, k, v;
    /// scale.
    fn forward_detached(&self, x: &Tensor, tables: &[Tensor; 2], (factors, last): (&Factors, bool), attend: &mut Attend) -> Result<Tensor> {
        let mut x = x.detach();
        for (index, layer) in self.layers.iter().enumerate() {
            let mut attend = |qkv: [&Tensor; 3], scale: f64| attend(index, qkv, scale);
            let last = last && index + 1 == self.layers.len();
            x = layer.forward_detached(&x, &self.config, tables, (&factors[index], last), &mut attend)?;
        }
        Ok(ops::rms_norm(&x, &self.norm.detach(), self.config.rms_norm_eps)?)
    }

    /// An empty cache for `sequences` sequences of at most `length` tokens.
    pub fn cache(&self, sequences: usize, length: usize) -> KvCache {
        KvCache::new(self.config.num_hidden_layers, sequences, self.config.kv_heads(), length, self.config.head_width())
    }

    /// hidden: (..., D) -> logits (..., vocabulary).
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden)?)
    }

    /// Next-token loss of embeddings (B, L, D): what [`Self::loss_sum`] makes of [`Self::forward`], which need not compute all that stands before the
    /// first label.
    pub fn next_token_loss(
        &self,
        embeddings: &Tensor,
        targets: &[Vec<u32>],
        weights: &[Vec<f32>],
        dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let before = |row: &Vec<f32>| row.iter().position(|weight| *weight != 0.0);
        let first = weights.iter().filter_map(before).min().unwrap_or(0);
        let (x, norm) = (self.through_layers(first, embeddings, None, dropout)?, (&self.norm, self.config.rms_norm_eps));
        let (targets, weights) = (behind(targets, first), behind(weights, first));
        match &self.head {
            Projection::Frozen(head) => {
                let (rows, ids, values) = labelled_rows(&x, &targets, &weights)?;
                Ok(ops::normed_cross_entropy(&rows, norm, head, [&ids, &values])?)
            }
            Projection::Trained(_) => self.loss_sum(&ops::rms_norm(&x, norm.0, norm.1)?, &targets, &weights),
        }
    }

    /// Next-token loss. hidden: (B, L, D); targets: (B, L), the id that position i should give next; weights: (B, L), 0 where it does not count.
    /// -> the weighted sum over all positions.
    pub fn loss_sum(&self, hidden: &Tensor, targets: &[Vec<u32>], weights: &[Vec<f32>]) -> Result<Tensor> {
        let (rows, ids, values) = labelled_rows(hidden, targets, weights)?;
        Ok(match &self.head {
            Projection::Frozen(head) => ops::linear_cross_entropy(&rows, head, &ids, &values)?,
            Projection::Trained(_) => ops::cross_entropy(&self.logits(&rows)?, &ids, &values)?,
        })
    }

    fn check_length(&self, length: usize) -> Result<()> {
        if length > self.config.max_position_embeddings {
            let limit = self.config.max_position_embeddings;
            return Err(Error::Invalid(format!("a sequence of {length} tokens exceeds the model's {limit} (max_position_embeddings)")));
        }
        Ok(())
    }
}

/// The labelled rows of x (B, L, D), their ids and weights.
fn labelled_rows(x: &Tensor, targets: &[Vec<u32>], weights: &[Vec<f32>]) -> Result<(Tensor, Tensor, Tensor)> {
    let (_, _, dim) = x.dims3()?;
    let labelled = labelled(targets, weights)?;
    let [rows, ids, values] = labelled.upload(x.device())?;
    let x = x.contiguous()?.reshape(((), dim))?;
    let x = match labelled.run() {
        Some(first) => x.narrow(0, first, labelled.rows.len())?,
        None => x.index_select(&rows, 0)?,
    };
    Ok((x, ids, values))
}

/// What each row holds from its place `first` on.
fn behind<T: Clone>(rows: &[Vec<T>], first: usize) -> Vec<Vec<T>> {
    rows.iter().map(|row| row[first..].to_vec()).collect()
}
