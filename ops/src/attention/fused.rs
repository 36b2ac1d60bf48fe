//! The attention kernel as a candle operation.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};

use super::Attention;
use super::batch::{Batch, Heads, Order, Sizes, visible};
use crate::cpu::{Values, sum_partials, values};
use crate::gemm::Precision;
use crate::kept;

/// q, k and v as for [`super::attention`], f32 on the CPU; bias (H, L, M).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Tensor> {
    let visible = visible(options.key_mask, (k.dims()[0], k.dims()[2]))?;
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

fn cpu<'a>(storage: &'a StorageRef) -> Result<&'a CpuStorage> {
    match &**storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("attention: expected a tensor on the CPU"),
    }
}

impl Fused {
    /// `work` with what all heads have in common.
    fn with<T>(&self, sizes: Sizes, work: impl FnOnce(Batch) -> T) -> Result<T> {
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let (visible, bias) = (self.visible.as_deref(), bias.as_deref());
        Ok(work(Batch { sizes, scale: self.scale, causal: self.causal, visible, bias, precision: Precision::F32 }))
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
        let sizes = Sizes::of(ql, kl, vl)?;
        let heads = [Heads::new(q, ql)?, Heads::new(k, kl)?, Heads::new(v, vl)?];
        let out = kept::values(|| self.with(sizes, |batch| batch.forward(heads, Order::Apart)))?;
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
        let (sizes, grad) = (Sizes::of(ql, kl, vl)?, Values::of(&grad)?);
        let grad = Heads::of(&grad, Order::Apart, (sizes.heads, sizes.queries, sizes.width));
        let heads = [Heads::new(cpu(&qs)?, ql)?, Heads::new(cpu(&ks)?, kl)?, Heads::new(cpu(&vs)?, vl)?, grad];
        let [dq, dk, dv, partials] = self.with(sizes, |batch| batch.backward(heads, Order::Apart, self.bias_gradient.is_some()))?;
        if let (Some(bias), Some(wanted)) = (&self.bias, &self.bias_gradient) {
            let gradient = Tensor::from_vec(sum_partials(&partials, bias.elem_count()), bias.shape(), bias.device())?;
            *wanted.lock().expect("no holder of the lock panics") = Some(gradient);
        }
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}
