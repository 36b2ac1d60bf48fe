//! Attention of all heads of a batch on the processor, wherever their rows lie.

use candle_core::{CpuStorage, Layout, Result, bail};
use rayon::prelude::*;

use super::kernel::{Gradients, Problem, Rows};
use crate::bands::Band;

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

    /// Rows (B, L, H D), as a projection gives them.
    pub fn of_rows(values: &'a [f32], (length, heads, width): (usize, usize, usize)) -> Self {
        Heads { values, strides: [length * heads * width, width, heads * width] }
    }

    /// Rows (B, H, L, D), one after the other.
    pub fn dense(values: &'a [f32], (heads, length, width): (usize, usize, usize)) -> Self {
        Heads { values, strides: [heads * length * width, length * width, width] }
    }

    fn head(&self, b: usize, h: usize) -> Rows<'a> {
        Rows { values: &self.values[b * self.strides[0] + h * self.strides[1]..], stride: self.strides[2] }
    }

    /// The `count` heads that share key-value head `kv`.
    fn sharing(&self, b: usize, kv: usize, count: usize) -> Vec<Rows<'a>> {
        (0..count).map(|s| self.head(b, kv * count + s)).collect()
    }
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
}

impl Batch<'_> {
    fn problem(&self, b: usize) -> Problem<'_> {
        let Sizes { queries: l, keys: m, width: d, .. } = self.sizes;
        let visible = self.visible.map(|visible| &visible[b * m..][..m]);
        Problem { l, m, d, scale: self.scale, causal: self.causal, visible }
    }

    /// Query heads to a key-value head.
    fn shared(&self) -> usize {
        self.sizes.heads / self.sizes.kv_heads
    }

    /// The bias of the query heads from `head` on.
    fn bias(&self, head: usize) -> Option<&[f32]> {
        self.bias.map(|bias| &bias[head * self.sizes.queries * self.sizes.keys..])
    }

    /// outs: (L, D) of each head of each element of the batch.
    pub fn forward(&self, q: Heads, k: Heads, v: Heads, mut outs: Vec<Band>) {
        let (kv_heads, shared) = (self.sizes.kv_heads, self.shared());
        outs.par_chunks_mut(shared).enumerate().for_each(|(i, outs)| {
            let (b, kv) = (i / kv_heads, i % kv_heads);
            self.problem(b).forward(&q.sharing(b, kv, shared), k.head(b, kv), v.head(b, kv), self.bias(kv * shared), outs);
        });
    }

    /// dq: (L, D) of each head of each element of the batch, dk and dv: (M, D) of each key-value head. `bias`: whether its gradient is wanted,
    /// which comes as partial sums over parts of the batch, for each of which heads come in order.
    pub fn backward(&self, [q, k, v, grad]: [Heads; 4], [dq, dk, dv]: [Vec<Band>; 3], bias: bool) -> Vec<f32> {
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
