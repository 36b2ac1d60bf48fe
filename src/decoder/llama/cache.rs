//! Keys and values of what has been read, preallocated: a new token writes its own row and moves no other.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use ctscribe_lora::FixedFactor;
use ctscribe_ops::{self as ops, Attention};
use rayon::prelude::*;

use crate::Result;

use super::layer::PROJECTIONS;

#[derive(Debug, Clone)]
struct LayerCache {
    /// (sequence, head, position, channel), f32.
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// The cache of all layers. Positions are those of the tokens: 0 is the first of the prompt.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    sequences: usize,
    heads: usize,
    capacity: usize,
    width: usize,
    length: usize,
    factors: Factors,
}

/// What DoRA needs of each projection of each layer: adapters do not change while texts are written.
pub(super) type Factors = Arc<Vec<[FixedFactor; PROJECTIONS.len()]>>;

impl KvCache {
    /// Room for `sequences` sequences of `capacity` tokens, H' key-value heads of `width`.
    pub fn new(layers: usize, sequences: usize, heads: usize, capacity: usize, width: usize) -> Self {
        let room = sequences * heads * capacity * width;
        let layer = LayerCache { keys: vec![0.0; room], values: vec![0.0; room] };
        let factors = Arc::new(vec![std::array::from_fn(|_| FixedFactor::new()); layers]);
        KvCache { layers: vec![layer; layers], sequences, heads, capacity, width, length: 0, factors }
    }

    /// The same with what DoRA needs taken from texts that the same model has written.
    pub(super) fn with_factors(self, factors: Factors) -> Self {
        KvCache { factors, ..self }
    }

    /// What DoRA needs; shared with the cache.
    pub(super) fn factors(&self) -> Factors {
        self.factors.clone()
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
    pub fn reorder(&mut self, order: &[usize]) {
        if order.iter().copied().eq(0..self.sequences) {
            return;
        }
        let size = self.heads * self.capacity * self.width;
        let pick =
            |from: &[f32]| -> Vec<f32> { order.iter().flat_map(|&old| from[old * size..(old + 1) * size].iter().copied()).collect() };
        for layer in &mut self.layers {
            layer.keys = pick(&layer.keys);
            layer.values = pick(&layer.values);
        }
        self.sequences = order.len();
    }

    /// Writes keys and values (B, H', L, D) of the next L positions and attends causally: q (B, H, L, D) -> (B, H, L, D). No gradient.
    pub fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
        let new = q.dim(2)?;
        self.write(layer, k, v)?;
        if self.length == 0 && new > 1 {
            return Ok(ops::attention(q, k, v, &Attention { causal: true, ..Attention::full(scale) })?);
        }
        let (heads, shared) = (q.dim(1)?, q.dim(1)? / self.heads);
        attend_rows(q, scale, |row| {
            let (sequence, head, position) = (row / (heads * new), row / new % heads, row % new);
            self.seen(layer, sequence * self.heads + head / shared, self.length + position + 1)
        })
    }

    /// The first `count` keys and values of a head of a sequence.
    fn seen(&self, layer: usize, head: usize, count: usize) -> [&[f32]; 2] {
        let (layer, start) = (&self.layers[layer], head * self.capacity * self.width);
        [&layer.keys, &layer.values].map(|store| &store[start..start + count * self.width])
    }

    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let new = k.dim(2)?;
        let (capacity, width, from) = (self.capacity, self.width, self.length);
        let layer = &mut self.layers[layer];
        for (store, tensor) in [(&mut layer.keys, k), (&mut layer.values, v)] {
            let values: Vec<f32> = tensor.detach().flatten_all()?.to_vec1()?;
            for (head, rows) in values.chunks_exact(new * width).enumerate() {
                let start = (head * capacity + from) * width;
                store[start..start + new * width].copy_from_slice(rows);
            }
        }
        Ok(())
    }
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
/// q: (1, H, R, D), k and v: (1, H', R, D) -> (1, H, R, D).
pub(super) fn attend_runs(runs: &mut [Run], layer: usize, [q, k, v]: [&Tensor; 3], scale: f64) -> Result<Tensor> {
    let mut start = 0;
    // text and position of each row
    let mut places = Vec::new();
    for (text, run) in runs.iter_mut().enumerate() {
        let own = |all: &Tensor| all.narrow(2, start, run.rows);
        run.cache.write(layer, &own(k)?, &own(v)?)?;
        places.extend((0..run.rows).map(|row| (text, run.cache.length + row)));
        start += run.rows;
    }
    let (runs, shared) = (&*runs, q.dim(1)? / k.dim(1)?);
    attend_rows(q, scale, |row| {
        let (text, position) = places[row % places.len()];
        runs[text].cache.seen(layer, row / places.len() / shared, position + 1)
    })
}

/// Softmax attention of each query over the keys and values that `seen` gives for its row. q: (B, H, L, D) -> (B, H, L, D).
fn attend_rows<'a>(q: &Tensor, scale: f64, seen: impl Fn(usize) -> [&'a [f32]; 2] + Sync) -> Result<Tensor> {
    let width = q.dim(3)?;
    let queries: Vec<f32> = q.detach().flatten_all()?.to_vec1()?;
    let mut out = vec![0f32; queries.len()];
    let work = |(row, (out, query)): (usize, (&mut [f32], &[f32]))| {
        let [keys, values] = seen(row);
        ops::attend_one(query, keys, values, scale as f32, out);
    };
    out.par_chunks_exact_mut(width).zip(queries.par_chunks_exact(width)).enumerate().with_min_len(8).for_each(work);
    Ok(Tensor::from_vec(out, q.shape(), &Device::Cpu)?)
}
