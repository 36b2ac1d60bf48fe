//! Keys and values of what has been read, preallocated: a new token writes its own row and moves no other.

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
    /// What DoRA needs of each projection of each layer: adapters do not change while one text is written.
    factors: Vec<[FixedFactor; PROJECTIONS.len()]>,
}

impl KvCache {
    /// Room for `sequences` sequences of `capacity` tokens, H' key-value heads of `width`.
    pub fn new(layers: usize, sequences: usize, heads: usize, capacity: usize, width: usize) -> Self {
        let room = sequences * heads * capacity * width;
        let layer = LayerCache { keys: vec![0.0; room], values: vec![0.0; room] };
        let factors = vec![std::array::from_fn(|_| FixedFactor::new()); layers];
        KvCache { layers: vec![layer; layers], sequences, heads, capacity, width, length: 0, factors }
    }

    /// What DoRA needs of projection `which` of layer `layer`.
    pub(super) fn factor(&self, layer: usize, which: usize) -> &FixedFactor {
        &self.factors[layer][which]
    }

    /// Tokens read so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// `count` more tokens have been read by every layer.
    pub fn advance(&mut self, count: usize) {
        self.length += count;
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
        let (b, heads, _, width) = q.dims4()?;
        let queries: Vec<f32> = q.detach().flatten_all()?.to_vec1()?;
        let mut out = vec![0f32; queries.len()];
        let layer = &self.layers[layer];
        let rows = out.par_chunks_exact_mut(width).zip(queries.par_chunks_exact(width)).enumerate();
        rows.with_min_len(8).for_each(|(row, (out, query))| {
            let (sequence, head, position) = (row / (heads * new), row / new % heads, row % new);
            let start = (sequence * self.heads + head * self.heads / heads) * self.capacity * width;
            let span = start..start + (self.length + position + 1) * width;
            attend_row(query, &layer.keys[span.clone()], &layer.values[span], scale as f32, out);
        });
        Ok(Tensor::from_vec(out, (b, heads, new, width), &Device::Cpu)?)
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

/// Softmax attention of one query over the rows of `keys` and `values`.
fn attend_row(query: &[f32], keys: &[f32], values: &[f32], scale: f32, out: &mut [f32]) {
    let width = query.len();
    let dot = |key: &[f32]| scale * key.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let mut weights: Vec<f32> = keys.chunks_exact(width).map(dot).collect();
    let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    weights.iter_mut().for_each(|weight| *weight = (*weight - largest).exp());
    let total: f32 = weights.iter().sum();
    for (value, weight) in values.chunks_exact(width).zip(&weights) {
        let share = weight / total;
        out.iter_mut().zip(value).for_each(|(out, value)| *out += share * value);
    }
}
