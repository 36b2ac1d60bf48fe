//! Keys and values of what has been read, preallocated: a new token writes its own row and moves no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};
use ctscribe_lora::FixedFactor;
use ctscribe_ops::transfers::host_values;
use ctscribe_ops::{self as ops, Attention};
use rayon::prelude::*;

use crate::Result;

use super::layer;

/// Keys and values (sequence, head, position, channel), where those that came first lie.
#[derive(Debug)]
enum LayerCache {
    /// Nothing has come yet.
    Empty,
    /// On the processor, f32.
    Host { keys: Vec<f32>, values: Vec<f32> },
    /// On another device or of another type; written in place.
    Tensors { keys: Tensor, values: Tensor },
}

impl LayerCache {
    fn copied(&self) -> Result<Self> {
        Ok(match self {
            LayerCache::Empty => LayerCache::Empty,
            LayerCache::Host { keys, values } => LayerCache::Host { keys: keys.clone(), values: values.clone() },
            LayerCache::Tensors { keys, values } => LayerCache::Tensors { keys: keys.copy()?, values: values.copy()? },
        })
    }
}

/// The cache of all layers. Positions are those of the tokens: 0 is the first of the prompt.
#[derive(Debug)]
pub struct KvCache {
    /// Where its keys and values lie: no two places of a process have the same.
    place: u64,
    layers: Vec<LayerCache>,
    sequences: usize,
    heads: usize,
    capacity: usize,
    width: usize,
    length: usize,
    factors: Factors,
}

fn new_place() -> u64 {
    static PLACES: AtomicU64 = AtomicU64::new(0);
    PLACES.fetch_add(1, Ordering::Relaxed)
}

/// What reading needs of each projection's adapter in each layer: adapters do not change while texts are written.
pub(super) type Factors = Arc<Vec<layer::Factors>>;

impl KvCache {
    /// Room for `sequences` sequences of `capacity` tokens, H' key-value heads of `width`.
    pub fn new(layers: usize, sequences: usize, heads: usize, capacity: usize, width: usize) -> Self {
        let factors = Arc::new(vec![std::array::from_fn(|_| FixedFactor::new()); layers]);
        let layers = (0..layers).map(|_| LayerCache::Empty).collect();
        KvCache { place: new_place(), layers, sequences, heads, capacity, width, length: 0, factors }
    }

    /// Another of the same contents.
    pub fn copied(&self) -> Result<Self> {
        let layers = self.layers.iter().map(LayerCache::copied).collect::<Result<_>>()?;
        Ok(KvCache { place: new_place(), layers, factors: self.factors.clone(), ..*self })
    }

    /// The same with what reading needs of adapters taken from texts that the same model has written.
    pub(super) fn with_factors(self, factors: Factors) -> Self {
        KvCache { factors, ..self }
    }

    /// What reading needs of adapters; shared with the cache.
    pub(super) fn factors(&self) -> Factors {
        self.factors.clone()
    }

    /// Where its keys and values lie: another number wherever that is another place.
    pub(super) fn place(&self) -> u64 {
        self.place
    }

    /// Tokens read so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Tokens that there is room for beside those.
    pub fn room(&self) -> usize {
        self.capacity - self.length
    }

    /// `count` more tokens have been read by every layer.
    pub fn advance(&mut self, count: usize) {
        self.length += count;
    }

    /// Forgets all but the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Sequence i goes on from what was sequence `order[i]`.
    pub fn reorder(&mut self, order: &[usize]) -> Result<()> {
        if order.iter().copied().eq(0..self.sequences) {
            return Ok(());
        }
        let size = self.heads * self.capacity * self.width;
        let pick =
            |from: &[f32]| -> Vec<f32> { order.iter().flat_map(|&old| from[old * size..(old + 1) * size].iter().copied()).collect() };
        let mut indices = None;
        for layer in &mut self.layers {
            match layer {
                LayerCache::Empty => {}
                LayerCache::Host { keys, values } => (*keys, *values) = (pick(keys), pick(values)),
                LayerCache::Tensors { keys, values } => {
                    let order = || ops::transfers::upload(order.iter().map(|&old| old as u32).collect(), order.len(), keys.device());
                    let indices = indices.get_or_insert(order()?);
                    (*keys, *values) = (keys.index_select(indices, 0)?, values.index_select(indices, 0)?);
                }
            }
        }
        (self.sequences, self.place) = (order.len(), new_place());
        Ok(())
    }

    /// Writes keys and values (B, H', L, D) of the next L positions and attends causally, the last ones asking: q (B, H, Q, D) -> (B, H, Q, D).
    /// No gradient.
    pub fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
        let (asked, new) = (q.dim(2)?, k.dim(2)?);
        self.write(layer, k, v)?;
        // the last query is at the last key: causal without a mask of its own
        let causal = Attention { causal: asked > 1, ..Attention::full(scale) };
        if self.length == 0 && new > 1 && asked > 1 {
            return Ok(ops::attention(q, k, v, &causal)?);
        }
        if let LayerCache::Tensors { keys, values } = &self.layers[layer] {
            let read = |store: &Tensor| store.narrow(2, 0, self.length + new);
            return Ok(ops::attention(q, &read(keys)?, &read(values)?, &causal)?);
        }
        let (heads, shared) = (q.dim(1)?, q.dim(1)? / self.heads);
        attend_parts(q, &[asked], scale, |head, _| self.seen(layer, head / heads * self.heads + head % heads / shared, self.length + new))
    }

    /// The first `count` keys and values of a head of a sequence.
    fn seen(&self, layer: usize, head: usize, count: usize) -> [&[f32]; 2] {
        let LayerCache::Host { keys, values } = &self.layers[layer] else { unreachable!("the callers have written to it") };
        let start = head * self.capacity * self.width;
        [keys, values].map(|store| &store[start..start + count * self.width])
    }

    /// The layer's store, made where its first keys lie.
    fn store(&mut self, layer: usize, like: &Tensor) -> Result<&mut LayerCache> {
        if matches!(self.layers[layer], LayerCache::Empty) {
            let shape = (self.sequences, self.heads, self.capacity, self.width);
            self.layers[layer] = if plain(like) {
                let room = self.sequences * self.heads * self.capacity * self.width;
                LayerCache::Host { keys: vec![0.0; room], values: vec![0.0; room] }
            } else {
                let zeros = || Tensor::zeros(shape, like.dtype(), like.device());
                LayerCache::Tensors { keys: zeros()?, values: zeros()? }
            };
        }
        Ok(&mut self.layers[layer])
    }

    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let new = k.dim(2)?;
        let (capacity, width, from) = (self.capacity, self.width, self.length);
        match self.store(layer, k)? {
            LayerCache::Tensors { keys, values } => {
                for (store, tensor) in [(keys, k), (values, v)] {
                    store.slice_set(&tensor.detach().contiguous()?, 2, from)?;
                }
            }
            LayerCache::Host { keys, values } => {
                for (store, tensor) in [(keys, k), (values, v)] {
                    for (head, rows) in host_values::<f32>(&tensor.detach())?.chunks_exact(new * width).enumerate() {
                        let start = (head * capacity + from) * width;
                        store[start..start + new * width].copy_from_slice(rows);
                    }
                }
            }
            LayerCache::Empty => unreachable!("`store` has made it"),
        }
        Ok(())
    }
}

/// Whether a tensor is what the processor's own attention takes.
fn plain(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// A text of its own and how many rows of a pass are its next tokens.
#[derive(Debug)]
pub struct Run<'a> {
    /// What it has read; of one sequence.
    pub cache: &'a mut KvCache,
    /// Its rows.
    pub rows: usize,
}

/// As [`KvCache::attend`] for texts each with a cache of its own, whose rows stand one after the other.
/// q: (1, H, R, D), k and v: (1, H', R, D); lengths: u32, a text's tokens with its rows -> (1, H, R, D).
pub(super) fn attend_runs(runs: &mut [Run], lengths: &Tensor, layer: usize, [q, k, v]: [&Tensor; 3], scale: f64) -> Result<Tensor> {
    if !plain(q) {
        return attend_apart(runs, lengths, layer, [q, k, v], scale);
    }
    let mut start = 0;
    for run in runs.iter_mut() {
        let own = |all: &Tensor| all.narrow(2, start, run.rows);
        run.cache.write(layer, &own(k)?, &own(v)?)?;
        start += run.rows;
    }
    let (runs, shared) = (&*runs, q.dim(1)? / k.dim(1)?);
    let rows: Vec<usize> = runs.iter().map(|run| run.rows).collect();
    attend_parts(q, &rows, scale, |head, text| {
        let run = &runs[text];
        run.cache.seen(layer, head / shared, run.cache.length + run.rows)
    })
}

/// As [`attend_runs`], a text after the other, each over its own keys; on a CUDA device with launches that do not depend on how far the texts have come.
fn attend_apart(runs: &mut [Run], lengths: &Tensor, layer: usize, [q, k, v]: [&Tensor; 3], scale: f64) -> Result<Tensor> {
    let (mut start, mut parts) = (0, Vec::new());
    for (text, run) in runs.iter_mut().enumerate() {
        let own = |all: &Tensor| all.narrow(2, start, run.rows)?.contiguous();
        let (q, k, v) = (own(q)?, own(k)?, own(v)?);
        let on_device = match run.cache.store(layer, &k)? {
            LayerCache::Tensors { keys, values } => ops::attend_cached([&q, &k, &v], [keys, values], &lengths.narrow(0, text, 1)?, scale)?,
            _ => None,
        };
        parts.push(on_device.map_or_else(|| run.cache.attend(layer, &q, &k, &v, scale), Ok)?);
        start += run.rows;
    }
    Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 2)? })
}

/// Rows of one head in one piece of work, at most: those of a prompt's end are many.
const PIECE: usize = 32;

/// Products of a query's channel and a key's below which one core is faster than two.
const PARALLEL_FROM: usize = 1 << 16;

/// Softmax attention of parts of each head's queries, `rows` long, each over the keys and values that `seen` gives for its head (counted through all
/// sequences) and its place: all of them for its last query, one fewer for each before. q: (B, H, L, D) -> (B, H, L, D).
fn attend_parts<'a>(q: &Tensor, rows: &[usize], scale: f64, seen: impl Fn(usize, usize) -> [&'a [f32]; 2] + Sync) -> Result<Tensor> {
    let (length, width) = (q.dim(2)?, q.dim(3)?);
    let queries: Vec<f32> = host_values(&q.detach())?;
    let mut out = vec![0f32; queries.len()];
    let mut pieces = Vec::new();
    for (head, (mut out, mut queries)) in out.chunks_exact_mut(length * width).zip(queries.chunks_exact(length * width)).enumerate() {
        for (part, &rows) in rows.iter().enumerate() {
            for first in (0..rows).step_by(PIECE) {
                let count = PIECE.min(rows - first);
                let (own, rest) = std::mem::take(&mut out).split_at_mut(count * width);
                pieces.push((head, part, rows - first - count, &queries[..count * width], own));
                (out, queries) = (rest, &queries[count * width..]);
            }
        }
    }
    let work = |(head, part, after, queries, out): (usize, usize, usize, &[f32], &mut [f32])| {
        // what the rows after it see beside
        let [keys, values] = seen(head, part).map(|seen| &seen[..seen.len() - after * width]);
        ops::attend_few(queries, keys, values, width, scale as f32, out);
    };
    let products =
        |&(head, part, _, queries, _): &(usize, usize, usize, &[f32], &mut [f32])| queries.len() / width * seen(head, part)[0].len();
    if pieces.iter().map(products).sum::<usize>() < PARALLEL_FROM {
        pieces.into_iter().for_each(work);
    } else {
        pieces.into_par_iter().for_each(work);
    }
    Ok(Tensor::from_vec(out, q.shape(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(shape: (usize, usize, usize, usize), seed: usize) -> Tensor {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let values: Vec<f32> = (0..count).map(|i| ((i * 7919 + seed * 613) % 2003) as f32 / 1001.5 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// A cache of one layer in the form that other devices have.
    fn away(sequences: usize) -> KvCache {
        let zeros = || Tensor::zeros((sequences, 2, 12, 8), DType::F32, &Device::Cpu).unwrap();
        KvCache { layers: vec![LayerCache::Tensors { keys: zeros(), values: zeros() }], ..KvCache::new(1, sequences, 2, 12, 8) }
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// A prompt, one token, three at once after one was forgotten, other sequences.
    fn read(cache: &mut KvCache) -> Vec<Tensor> {
        let mut outputs = Vec::new();
        let mut sequences = 2;
        for (step, new) in [5, 1, 3, 1].into_iter().enumerate() {
            let qkv = [(4, step), (2, 10 + step), (2, 20 + step)].map(|(heads, seed)| noise((sequences, heads, new, 8), seed));
            outputs.push(cache.attend(0, &qkv[0], &qkv[1], &qkv[2], 0.4).unwrap());
            cache.advance(new);
            match step {
                1 => cache.truncate(5),
                2 => {
                    cache.reorder(&[1, 0, 1]).unwrap();
                    sequences = 3;
                }
                _ => {}
            }
        }
        outputs
    }

    #[test]
    fn a_cache_of_tensors_attends_as_the_processors_does() {
        let (host, device) = (read(&mut KvCache::new(1, 2, 2, 12, 8)), read(&mut away(2)));
        for (step, (host, device)) in host.iter().zip(&device).enumerate() {
            assert!(largest_difference(host, device) < 1e-6, "step {step}");
        }
    }

    #[test]
    fn texts_apart_attend_as_the_processors_do_together() {
        let (prompts, rows) = ([5usize, 2], [1usize, 3]);
        let begun = |mut cache: KvCache, text: usize| {
            let qkv = [(4, 1), (2, 2), (2, 3)].map(|(heads, seed)| noise((1, heads, prompts[text], 8), 7 * text + seed));
            cache.attend(0, &qkv[0], &qkv[1], &qkv[2], 0.4).unwrap();
            cache.advance(prompts[text]);
            cache
        };
        let [q, k, v] = [(4, 40), (2, 50), (2, 60)].map(|(heads, seed)| noise((1, heads, 4, 8), seed));
        let mut host: Vec<KvCache> = (0..2).map(|text| begun(KvCache::new(1, 1, 2, 12, 8), text)).collect();
        let mut device: Vec<KvCache> = (0..2).map(|text| begun(away(1), text)).collect();
        fn runs(caches: &mut [KvCache], rows: [usize; 2]) -> Vec<Run<'_>> {
            caches.iter_mut().zip(rows).map(|(cache, rows)| Run { cache, rows }).collect()
        }
        let lengths = Tensor::new(&[6u32, 5], &Device::Cpu).unwrap();
        let together = attend_runs(&mut runs(&mut host, rows), &lengths, 0, [&q, &k, &v], 0.4).unwrap();
        let apart = attend_apart(&mut runs(&mut device, rows), &lengths, 0, [&q, &k, &v], 0.4).unwrap();
        assert!(largest_difference(&together, &apart) < 1e-6);
    }

    #[test]
    fn a_copy_of_a_cache_of_tensors_is_written_alone() {
        let mut cache = away(1);
        let [k, v] = [1, 2].map(|seed| noise((1, 2, 1, 8), seed));
        cache.write(0, &k, &v).unwrap();
        let mut copy = cache.copied().unwrap();
        copy.write(0, &v, &k).unwrap();
        let LayerCache::Tensors { keys, .. } = &cache.layers[0] else { panic!("another form") };
        assert_eq!(largest_difference(&keys.narrow(2, 0, 1).unwrap(), &k), 0.0);
    }
}
