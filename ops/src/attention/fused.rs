//! The attention kernel as a candle operation.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use rayon::prelude::*;

use super::Attention;
use super::kernel::{Gradients, Problem, Rows};
use crate::cpu::{Values, cleared, sum_partials, values, written};
use crate::kept;
use crate::transfers::host_values;

/// Partial sums of the bias's gradient: at least this many tasks, if the batch allows.
const TASKS: usize = 16;

/// q, k and v as for [`super::attention`], f32 on the CPU; bias (H, L, M).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Tensor> {
    let mask = |mask: &Tensor| host_values::<f32>(&mask.to_dtype(DType::F32)?);
    let visible = options.key_mask.map(mask).transpose()?.map(|mask| mask.iter().map(|&m| m != 0.0).collect::<Vec<_>>());
    if visible.as_ref().is_some_and(|visible| visible.len() != k.dims()[0] * k.dims()[2]) {
        bail!("attention: the key mask has not (B, M) values for keys of {:?}", k.shape());
    }
    let mut bias_gradient = None;
    let mut q = last_axis_dense(q)?;
    if let Some(bias) = options.bias.filter(|bias| bias.track_op()) {
        let gradient = Arc::new(Mutex::new(None));
        q = q.contiguous()?.apply_op2(&bias.contiguous()?, BiasGradient { gradient: gradient.clone() })?;
        bias_gradient = Some(gradient);
    }
    let bias = options.bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let op = Fused { scale: options.scale as f32, causal: options.causal, visible, bias, bias_gradient };
    q.apply_op3(&last_axis_dense(k)?, &last_axis_dense(v)?, op)
}

fn last_axis_dense(x: &Tensor) -> Result<Tensor> {
    if x.stride()[3] == 1 { Ok(x.clone()) } else { x.contiguous() }
}

/// Hands q on as it is; receives the bias's gradient, a fourth one, from [`Fused`], whose backward pass runs before this one's.
struct BiasGradient {
    gradient: Arc<Mutex<Option<Tensor>>>,
}

impl CustomOp2 for BiasGradient {
    fn name(&self) -> &'static str {
        "attention-bias"
    }

    fn cpu_fwd(&self, q: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(values(q, layout)?.to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let bias = self.gradient.lock().expect("no holder of the lock panics").take();
        Ok((Some(grad.clone()), bias))
    }
}

struct Fused {
    scale: f32,
    causal: bool,
    /// (B, M)
    visible: Option<Vec<bool>>,
    bias: Option<Tensor>,
    /// Where the bias's gradient goes, if it is wanted.
    bias_gradient: Option<Arc<Mutex<Option<Tensor>>>>,
}

/// A (B, H, L, D) tensor whose last axis is dense.
struct Heads<'a> {
    values: &'a [f32],
    layout: &'a Layout,
}

impl<'a> Heads<'a> {
    fn new(storage: &'a CpuStorage, layout: &'a Layout) -> Result<Self> {
        Ok(Heads { values: storage.as_slice()?, layout })
    }

    fn of(storage: &'a StorageRef, layout: &'a Layout) -> Result<Self> {
        match &**storage {
            Storage::Cpu(storage) => Heads::new(storage, layout),
            _ => bail!("attention: expected a tensor on the CPU"),
        }
    }

    fn head(&self, b: usize, h: usize) -> Rows<'a> {
        let stride = self.layout.stride();
        Rows { values: &self.values[self.layout.start_offset() + b * stride[0] + h * stride[1]..], stride: stride[2] }
    }
}

/// (B, H, H', L, M, D).
type Sizes = (usize, usize, usize, usize, usize, usize);

fn sizes(q: &Layout, k: &Layout, v: &Layout) -> Result<Sizes> {
    let ((b, h, l, d), (kb, kv, m, kd)) = (q.shape().dims4()?, k.shape().dims4()?);
    if k.shape() != v.shape() || kb != b || kd != d || kv == 0 || h % kv != 0 || l == 0 || m == 0 || d == 0 {
        bail!("attention: q is {:?}, k {:?}, v {:?}", q.shape(), k.shape(), v.shape());
    }
    Ok((b, h, kv, l, m, d))
}

impl Fused {
    fn problem(&self, b: usize, (_, _, _, l, m, d): Sizes) -> Problem<'_> {
        let visible = self.visible.as_ref().map(|visible| &visible[b * m..][..m]);
        Problem { l, m, d, scale: self.scale, causal: self.causal, visible }
    }

    fn forward(&self, q: Heads, k: Heads, v: Heads) -> Result<Vec<f32>> {
        let sizes = sizes(q.layout, k.layout, v.layout)?;
        let (b, h, kv, l, m, d) = sizes;
        let shared = h / kv;
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let bias = bias.as_deref();
        let work = |(i, out): (usize, &mut [MaybeUninit<f32>])| {
            let (b, kv) = (i / kv, i % kv);
            let queries: Vec<Rows> = (0..shared).map(|s| q.head(b, kv * shared + s)).collect();
            let bias = bias.map(|bias| &bias[kv * shared * l * m..]);
            self.problem(b, sizes).forward(&queries, k.head(b, kv), v.head(b, kv), bias, cleared(out));
        };
        // SAFETY: the heads are all there is.
        Ok(unsafe { written(b * h * l * d, |out| out.par_chunks_mut(shared * l * d).enumerate().for_each(work)) })
    }

    /// dq, dk, dv, and the bias's gradient as partial sums over parts of the batch, for each of which heads come in order.
    fn backward(&self, q: Heads, k: Heads, v: Heads, grad: &[f32]) -> Result<[Vec<f32>; 4]> {
        let sizes = sizes(q.layout, k.layout, v.layout)?;
        let (b, h, kv, l, m, d) = sizes;
        let shared = h / kv;
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let bias = bias.as_deref();
        let parts = if self.bias_gradient.is_some() { TASKS.div_ceil(kv).min(b) } else { b };
        let batch = b.div_ceil(parts);
        let parts = b.div_ceil(batch);
        let (mut dq, mut dk, mut dv) = (vec![0.0; b * h * l * d], vec![0.0; b * kv * m * d], vec![0.0; b * kv * m * d]);
        let mut partials = vec![0.0; if self.bias_gradient.is_some() { parts * h * l * m } else { 0 }];
        let mut tasks: Vec<(usize, Option<&mut [f32]>, Vec<_>)> = (0..parts * kv).map(|i| (i % kv, None, Vec::new())).collect();
        for (task, partial) in tasks.iter_mut().zip(partials.chunks_mut(shared * l * m)) {
            task.1 = Some(partial);
        }
        let pieces = dq.chunks_mut(shared * l * d).zip(dk.chunks_mut(m * d)).zip(dv.chunks_mut(m * d));
        for (i, ((dq, dk), dv)) in pieces.enumerate() {
            tasks[i / kv / batch * kv + i % kv].2.push((i / kv, dq, dk, dv));
        }
        tasks.into_par_iter().for_each(|(kv_head, mut dbias, pieces)| {
            let bias = bias.map(|bias| &bias[kv_head * shared * l * m..]);
            for (b, dq, dk, dv) in pieces {
                let queries: Vec<Rows> = (0..shared).map(|s| q.head(b, kv_head * shared + s)).collect();
                let grad = &grad[(b * h + kv_head * shared) * l * d..];
                let out = Gradients { dq, dk, dv, dbias: dbias.as_deref_mut() };
                self.problem(b, sizes).backward(&queries, k.head(b, kv_head), v.head(b, kv_head), bias, grad, out);
            }
        });
        Ok([dq, dk, dv, partials])
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = kept::values(|| self.forward(Heads::new(q, ql)?, Heads::new(k, kl)?, Heads::new(v, vl)?))?;
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let ((qs, ql), (ks, kl), (vs, vl)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let heads = (Heads::of(&qs, ql)?, Heads::of(&ks, kl)?, Heads::of(&vs, vl)?);
        let [dq, dk, dv, partials] = self.backward(heads.0, heads.1, heads.2, &Values::of(&grad)?)?;
        if let (Some(bias), Some(wanted)) = (&self.bias, &self.bias_gradient) {
            let gradient = Tensor::from_vec(sum_partials(&partials, bias.elem_count()), bias.shape(), bias.device())?;
            *wanted.lock().expect("no holder of the lock panics") = Some(gradient);
        }
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}
