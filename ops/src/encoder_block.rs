//! A transformer block of CT-ViT for reading, as one operation: its weights are packed once, and a core takes some sequences through attention and
//! feed-forward before the next, so that what is computed inside stays in its cache and never becomes a tensor.

use std::fmt;
use std::mem::MaybeUninit;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::gelu_gate;
use crate::attention::batch::{Batch, Heads, Order, Sizes};
use crate::cpu::{Values, held, rewritten, room, written};
use crate::gemm::{Added, PackedRight, PackedRows, Precision};
use crate::norm::{layer_rows, scale_units};
use crate::transfers::host_values;

/// Rows that go through the products together: their values fit a core's second-level cache.
const ROWS: usize = 140;

/// Attention with queries and keys of length one times a scale, and a feed-forward with GELU gates, each with a layer norm before it and a residual
/// around it. Keys and values are made of the input itself. All f32 in the host's memory.
#[derive(Debug, Clone)]
pub struct EncoderWeights<'a> {
    /// Weight and bias (C) of the norm before the queries.
    pub norm: [&'a Tensor; 2],
    /// (H D, C)
    pub to_q: &'a Tensor,
    /// Keys before values (2 H D, C).
    pub to_kv: &'a Tensor,
    /// (C, H D)
    pub to_out: &'a Tensor,
    /// What queries and keys of length one are multiplied by (D).
    pub unit_scales: [&'a Tensor; 2],
    /// Multiplies the logits.
    pub scale: f64,
    /// Weight and bias (C) of the norm before the feed-forward.
    pub feed_norm: [&'a Tensor; 2],
    /// Values before gates (2 F, C).
    pub feed_in: &'a Tensor,
    /// (C, F)
    pub feed_out: &'a Tensor,
    /// Of the norms.
    pub eps: f64,
    /// Of the products with the weights; attention itself is in f32.
    pub precision: Precision,
}

/// A block ready for reading. In f32 its bits are those of the operations one by one.
pub struct EncoderBlock {
    heads: usize,
    scale: f32,
    eps: f32,
    norm: [Vec<f32>; 2],
    feed_norm: [Vec<f32>; 2],
    unit_scales: [Vec<f32>; 2],
    qkv: [PackedRight; 3],
    out: PackedRight,
    /// Of values and gates.
    feed: [PackedRight; 2],
    feed_out: PackedRight,
}

impl fmt::Debug for EncoderBlock {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "EncoderBlock({} wide, {} heads, {} inside)", self.out.columns(), self.heads, self.feed[0].columns())
    }
}

impl EncoderBlock {
    /// Packs the weights.
    pub fn new(weights: &EncoderWeights) -> Result<Self> {
        let ((inner, channels), (feed, _), width) = (weights.to_q.dims2()?, weights.feed_in.dims2()?, weights.unit_scales[0].elem_count());
        let (heads, hidden) = (inner / width.max(1), feed / 2);
        let fits = |tensor: &Tensor, size: [usize; 2]| tensor.dims() == size;
        let fit = fits(weights.to_kv, [2 * inner, channels])
            && fits(weights.to_out, [channels, inner])
            && fits(weights.feed_in, [2 * hidden, channels])
            && fits(weights.feed_out, [channels, hidden]);
        let rows = weights.norm.iter().chain(&weights.feed_norm).all(|row| row.elem_count() == channels);
        let heads_fit = width > 0 && heads * width == inner && weights.unit_scales[1].elem_count() == width;
        if !fit || !rows || !heads_fit || inner * hidden == 0 {
            bail!("encoder block: {weights:?}");
        }
        let tensors = [weights.to_q, weights.to_kv, weights.to_out, weights.feed_in, weights.feed_out];
        let held = held("encoder block", tensors)?;
        let values: Vec<Values> = held.iter().map(Values::of).collect::<Result<_>>()?;
        let [to_q, to_kv, to_out, feed_in, feed_out] = &values[..] else { unreachable!("there are five") };
        let pack = |weight: &[f32], k: usize| PackedRight::new(weight, k, weights.precision);
        let rows = |[one, other]: [&Tensor; 2]| -> Result<[Vec<f32>; 2]> {
            Ok([host_values::<f32>(one)?.to_vec(), host_values::<f32>(other)?.to_vec()])
        };
        Ok(EncoderBlock {
            heads,
            scale: weights.scale as f32,
            eps: weights.eps as f32,
            norm: rows(weights.norm)?,
            feed_norm: rows(weights.feed_norm)?,
            unit_scales: rows(weights.unit_scales)?,
            qkv: [pack(to_q, channels), pack(&to_kv[..inner * channels], channels), pack(&to_kv[inner * channels..], channels)],
            out: pack(to_out, inner),
            feed: [pack(&feed_in[..hidden * channels], channels), pack(&feed_in[hidden * channels..], channels)],
            feed_out: pack(feed_out, hidden),
        })
    }

    /// x: (N, M, C), N sequences of M tokens, bias: (H, M, M), added to the logits -> (N, M, C), without a gradient. All f32 in the host's memory.
    pub fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let ((sequences, length, channels), heads) = (x.dims3()?, self.heads);
        if channels != self.out.columns() || bias.is_some_and(|bias| bias.dims() != [heads, length, length]) {
            bail!("{self:?}: x is {:?}, the bias {:?}", x.shape(), bias.map(Tensor::shape));
        }
        let held = held("encoder block", bias.into_iter().chain([x]))?;
        let values: Vec<Values> = held.iter().map(Values::of).collect::<Result<_>>()?;
        let x_values = &values[values.len() - 1];
        let width = self.unit_scales[0].len();
        let sizes = Sizes { batch: sequences, heads, kv_heads: heads, queries: length, keys: length, width };
        let bias = bias.map(|_| &*values[0]);
        let batch = Batch { sizes, scale: self.scale, causal: false, visible: None, bias, precision: Precision::F32 };
        // whole sequences, so that attention stays with its rows
        let piece = ((ROWS / length.max(1)).max(1) * length * channels).max(1);
        // SAFETY: the pieces are all there is.
        let y = unsafe {
            written(sequences * length * channels, |y| {
                let work = |scratch: &mut Scratch, (y, x): (&mut [_], &[f32])| self.run(x, batch, y, scratch);
                y.par_chunks_mut(piece).zip(x_values.par_chunks(piece)).for_each_init(Scratch::default, work);
            })
        };
        Tensor::from_vec(y, x.shape(), x.device())
    }
}

/// Room that a core keeps from piece to piece.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    qkv: [Vec<f32>; 3],
    mixed: Vec<f32>,
    inner: [Vec<f32>; 2],
    gated: Vec<f32>,
    rows: [PackedRows; 2],
}

impl EncoderBlock {
    /// Some sequences, whose attention is `batch`'s.
    fn run(&self, x: &[f32], batch: Batch, y: &mut [MaybeUninit<f32>], scratch: &mut Scratch) {
        let (channels, inner) = (self.norm[0].len(), self.qkv[0].columns());
        let rows = x.len() / channels;
        // parts of nearly one size
        let part = rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1);
        for (index, x) in x.chunks(part * channels).enumerate() {
            self.project(x, index * part * inner, scratch);
        }
        let Scratch { qkv: [q, k, v], mixed, .. } = scratch;
        let Sizes { heads, queries: length, width, .. } = batch.sizes;
        let [q, k, v] = [&*q, &*k, &*v].map(|x| Heads::of(x, Order::Beside, (heads, length, width)));
        // SAFETY: attention writes values.
        batch.forward_here([q, k, v], unsafe { rewritten(room(mixed, rows * inner)) });
        for (index, (y, x)) in y.chunks_mut(part * channels).zip(x.chunks(part * channels)).enumerate() {
            let mixed = &scratch.mixed[index * part * inner..][..y.len() / channels * inner];
            scratch.rows[0].pack(mixed, &self.out);
            let y = scratch.rows[0].fill(&self.out, (x, channels), y);
            self.feed(y, scratch);
        }
    }

    /// Queries, keys and values of some rows, from value `at` on of each room.
    fn project(&self, x: &[f32], at: usize, scratch: &mut Scratch) {
        let Scratch { normed, qkv, rows: [rows, _], .. } = scratch;
        let inner = self.qkv[0].columns();
        let count = x.len() / self.norm[0].len() * inner;
        let normed = room(normed, x.len());
        layer_rows(x, self.norm.each_ref().map(Vec::as_slice), self.eps, normed);
        for (index, (out, right)) in qkv.iter_mut().zip(&self.qkv).enumerate() {
            match index {
                0 => rows.pack(normed, right),
                1 => rows.pack(x, right),
                _ => {}
            }
            rows.multiply(right, 0, (0, inner), (&mut room(out, at + count)[at..], inner), Added::Nothing);
        }
        for (out, scale) in qkv.iter_mut().zip(&self.unit_scales) {
            scale_units(1e-12, &mut out[at..at + count], scale);
        }
    }

    /// Adds the feed-forward to some rows, a block of its inner axis at a time.
    fn feed(&self, y: &mut [f32], scratch: &mut Scratch) {
        let Scratch { normed, inner, gated, rows: [rows, of_gated], .. } = scratch;
        let channels = self.norm[0].len();
        let count = y.len() / channels;
        let normed = room(normed, y.len());
        layer_rows(y, self.feed_norm.each_ref().map(Vec::as_slice), self.eps, normed);
        rows.pack(normed, &self.feed[0]);
        for (block, (first, width)) in self.feed_out.spans().enumerate() {
            for (inner, right) in inner.iter_mut().zip(&self.feed) {
                rows.multiply(right, 0, (first, width), (room(inner, count * width), width), Added::Nothing);
            }
            let gated = room(gated, count * width);
            gelu_gate(&inner[1][..count * width], &inner[0][..count * width], gated);
            of_gated.clear(count);
            of_gated.push(gated, width, width, &self.feed_out);
            of_gated.multiply(&self.feed_out, block, (0, channels), (y, channels), Added::Own);
        }
    }
}
