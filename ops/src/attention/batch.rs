//! Attention of all heads of a batch on the processor, wherever their rows lie.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Gradients, Problem, Rows};
use crate::bands::Band;
use crate::cpu::written;
use crate::gemm::{Precision, multiplies_pairs};
use crate::transfers::host_values;

/// Partial sums of the bias's gradient: at least this many tasks, if the batch allows.
const TASKS: usize = 16;

/// Values of (B, H, L, D) whose last axis is dense.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    values: &'a [f32],
    /// From one element of the batch, head and position to the next.
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// A tensor (B, H, L, D) whose last axis is dense.
    pub fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let stride = layout.stride();
        Ok(Heads { values: &storage.as_slice()?[layout.start_offset()..], strides: [stride[0], stride[1], stride[2]] })
    }

    /// Heads of (length, width), one after the other or side by side.
    pub fn of(values: &'a [f32], order: Order, (heads, length, width): (usize, usize, usize)) -> Self {
        let [of_head, of_row] = match order {
            Order::Apart => [length * width, width],
            Order::Beside => [width, heads * width],
        };
        Heads { values, strides: [heads * length * width, of_head, of_row] }
    }

    fn head(&self, b: usize, h: usize) -> Rows<'a> {
        Rows { values: &self.values[b * self.strides[0] + h * self.strides[1]..], stride: self.strides[2] }
    }

    /// The `count` heads that share key-value head `kv`.
    fn sharing(&self, b: usize, kv: usize, count: usize) -> Vec<Rows<'a>> {
        (0..count).map(|s| self.head(b, kv * count + s)).collect()
    }
}

/// How an element's heads lie in memory.
#[derive(Clone, Copy)]
pub enum Order {
    /// One after the other: (B, H, L, D).
    Apart,
    /// Side by side, as a projection gives them: (B, L, H D).
    Beside,
}

impl Order {
    /// (length, width) of each head of each element.
    fn bands(self, values: &mut [MaybeUninit<f32>], (heads, length, width): (usize, usize, usize)) -> Vec<Band<'_>> {
        match self {
            Order::Apart => values.chunks_mut(length * width).map(|head| Band::whole(head, width)).collect(),
            Order::Beside => values.chunks_mut(length * heads * width).flat_map(|rows| Band::split(rows, heads * width, width)).collect(),
        }
    }
}

/// Which of (B, M) keys a mask of any numeric type shows.
pub fn visible(mask: Option<&Tensor>, (batch, keys): (usize, usize)) -> Result<Option<Vec<bool>>> {
    let Some(mask) = mask else { return Ok(None) };
    let mask = host_values::<f32>(&mask.to_dtype(DType::F32)?)?;
    if mask.len() != batch * keys {
        bail!("attention: the key mask has not (B, M) values for keys of ({batch}, {keys})");
    }
    Ok(Some(mask.iter().map(|&m| m != 0.0).collect()))
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    /// Of the queries.
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
}

impl Sizes {
    /// q: (B, H, L, D), k and v: (B, H', M, D).
    pub fn of(q: &Layout, k: &Layout, v: &Layout) -> Result<Self> {
        let ((b, h, l, d), (kb, kv, m, kd)) = (q.shape().dims4()?, k.shape().dims4()?);
        if k.shape() != v.shape() || kb != b || kd != d || kv == 0 || h % kv != 0 || l == 0 || m == 0 || d == 0 {
            bail!("attention: q is {:?}, k {:?}, v {:?}", q.shape(), k.shape(), v.shape());
        }
        Ok(Sizes { batch: b, heads: h, kv_heads: kv, queries: l, keys: m, width: d })
    }
}

/// What all heads have in common.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    pub sizes: Sizes,
    pub scale: f32,
    pub causal: bool,
    /// (B, M)
    pub visible: Option<&'a [bool]>,
    /// (H, L, M)
    pub bias: Option<&'a [f32]>,
    /// Of its products: in 16 bits where there is no bias and the processor multiplies pairs of bf16, else in f32.
    pub precision: Precision,
}

impl Batch<'_> {
    fn problem(&self, b: usize) -> Problem<'_> {
        let Sizes { queries: l, keys: m, width: d, .. } = self.sizes;
        let visible = self.visible.map(|visible| &visible[b * m..][..m]);
        let pairs = self.precision == Precision::Bf16 && self.bias.is_none() && multiplies_pairs();
        Problem { l, m, d, scale: self.scale, causal: self.causal, visible, pairs }
    }

    /// Query heads to a key-value head.
    fn shared(&self) -> usize {
        self.sizes.heads / self.sizes.kv_heads
    }

    /// The bias of the query heads from `head` on.
    fn bias(&self, head: usize) -> Option<&[f32]> {
        self.bias.map(|bias| &bias[head * self.sizes.queries * self.sizes.keys..])
    }

    /// Heads of (L, D).
    pub fn forward(&self, [q, k, v]: [Heads; 3], order: Order) -> Vec<f32> {
        let Sizes { batch, heads, queries, width, .. } = self.sizes;
        let count = batch * heads * queries * width;
        // SAFETY: every row of every head is written.
        unsafe { written(count, |out| self.write([q, k, v], order.bands(out, (heads, queries, width)))) }
    }

    /// As [`Self::forward`] on this core, heads side by side, of as many of the batch as `out` has room for, which is written.
    pub fn forward_here(&self, heads: [Heads; 3], out: &mut [MaybeUninit<f32>]) {
        let Sizes { heads: of_queries, queries, width, .. } = self.sizes;
        let mut outs = Order::Beside.bands(out, (of_queries, queries, width));
        outs.chunks_mut(self.shared()).enumerate().for_each(|(i, outs)| self.write_heads(heads, i, outs));
    }

    fn write(&self, heads: [Heads; 3], mut outs: Vec<Band>) {
        outs.par_chunks_mut(self.shared()).enumerate().for_each(|(i, outs)| self.write_heads(heads, i, outs));
    }

    /// Query heads that share key-value head `index` of all of the batch's.
    fn write_heads(&self, [q, k, v]: [Heads; 3], index: usize, outs: &mut [Band]) {
        let (b, kv, shared) = (index / self.sizes.kv_heads, index % self.sizes.kv_heads, self.shared());
        self.problem(b).forward(&q.sharing(b, kv, shared), k.head(b, kv), v.head(b, kv), self.bias(kv * shared), outs);
    }

    /// dq, dk and dv of q, k, v and the output's gradient, heads of (L, D) and (M, D). `bias`: whether its gradient is wanted, which comes last, as
    /// partial sums over parts of the batch, for each of which heads come in order.
    pub fn backward(&self, heads: [Heads; 4], order: Order, bias: bool) -> [Vec<f32>; 4] {
        let Sizes { batch, heads: of_queries, kv_heads, queries, keys, width } = self.sizes;
        let [of_queries, of_keys] = [(of_queries, queries, width), (kv_heads, keys, width)];
        let count = |(heads, length, width): (usize, usize, usize)| batch * heads * length * width;
        let (mut dk, mut dv, mut partials) = (Vec::new(), Vec::new(), Vec::new());
        // SAFETY: every row of every head is written.
        let dq = unsafe {
            written(count(of_queries), |dq| {
                dk = written(count(of_keys), |dk| {
                    dv = written(count(of_keys), |dv| {
                        let outs = [order.bands(dq, of_queries), order.bands(dk, of_keys), order.bands(dv, of_keys)];
                        partials = self.write_gradients(heads, outs, bias);
                    });
                });
            })
        };
        [dq, dk, dv, partials]
    }

    fn write_gradients(&self, [q, k, v, grad]: [Heads; 4], [dq, dk, dv]: [Vec<Band>; 3], bias: bool) -> Vec<f32> {
        let Sizes { batch: b, heads: h, kv_heads: kv, queries: l, keys: m, .. } = self.sizes;
        let shared = self.shared();
        let parts = if bias { TASKS.div_ceil(kv).min(b) } else { b };
        let batch = b.div_ceil(parts);
        let parts = b.div_ceil(batch);
        let mut partials = vec![0.0; if bias { parts * h * l * m } else { 0 }];
        let mut tasks: Vec<(usize, Option<&mut [f32]>, Vec<_>)> = (0..parts * kv).map(|i| (i % kv, None, Vec::new())).collect();
        for (task, partial) in tasks.iter_mut().zip(partials.chunks_mut(shared * l * m)) {
            task.1 = Some(partial);
        }
        let mut dq = dq.into_iter();
        for (i, (dk, dv)) in dk.into_iter().zip(dv).enumerate() {
            let dq: Vec<Band> = dq.by_ref().take(shared).collect();
            tasks[i / kv / batch * kv + i % kv].2.push((i / kv, Gradients { dq, dk, dv }));
        }
        tasks.into_par_iter().for_each(|(kv_head, mut dbias, pieces)| {
            for (b, out) in pieces {
                let [queries, grads] = [q, grad].map(|x| x.sharing(b, kv_head, shared));
                let bias = self.bias(kv_head * shared);
                self.problem(b).backward(&queries, k.head(b, kv_head), v.head(b, kv_head), bias, &grads, out, dbias.as_deref_mut());
            }
        });
        partials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        (0..count).map(|i| half::bf16::from_f32(value(i)).to_f32()).collect()
    }

    /// Root mean square of the difference, as a share of the values' own.
    fn distance(found: &[f32], expected: &[f32]) -> f32 {
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        (square(&mut found.iter().zip(expected).map(|(f, e)| f - e)) / square(&mut expected.iter().copied())).sqrt()
    }

    #[test]
    fn values_of_16_bits_are_attended_to_in_pairs_as_in_f32_but_for_the_rounding_of_what_lies_between() {
        for (batch, heads, kv_heads, queries, keys, width) in
            [(1, 1, 1, 9, 9, 4), (2, 4, 2, 37, 37, 16), (1, 6, 2, 65, 65, 19), (2, 2, 1, 33, 70, 64), (1, 2, 2, 100, 101, 128)]
        {
            for (causal, masked) in [(false, false), (true, false), (true, true)] {
                let sizes = Sizes { batch, heads, kv_heads, queries, keys, width };
                let values = [(heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)];
                let values: Vec<Vec<f32>> =
                    values.iter().enumerate().map(|(seed, (h, l))| noise(batch * h * l * width, seed + 1)).collect();
                let of = |place: usize, h: usize, l: usize| Heads::of(&values[place], Order::Beside, (h, l, width));
                let [q, k, v, grad] = [of(0, heads, queries), of(1, kv_heads, keys), of(2, kv_heads, keys), of(3, heads, queries)];
                let visible: Vec<bool> = (0..batch * keys).map(|at| at % keys >= 2 && at % keys < keys - 1).collect();
                let of = |precision| Batch {
                    sizes,
                    scale: 1.0 / (width as f32).sqrt(),
                    causal,
                    visible: masked.then_some(&visible[..]),
                    bias: None,
                    precision,
                };
                let [exact, pairs] = [Precision::F32, Precision::Bf16].map(|precision| {
                    let [dq, dk, dv, _] = of(precision).backward([q, k, v, grad], Order::Beside, false);
                    [of(precision).forward([q, k, v], Order::Beside), dq, dk, dv]
                });
                for (place, (found, expected)) in pairs.iter().zip(&exact).enumerate() {
                    let far = distance(found, expected);
                    assert!(far < 4e-3, "{sizes:?} {causal} {masked}: {far} in result {place}");
                    assert!(!multiplies_pairs() || far > 0.0, "{sizes:?}: nothing is rounded in result {place}");
                }
            }
        }
    }
}
