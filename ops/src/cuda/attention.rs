//! Fused attention: forward, and a few queries against their cache.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::attention_backward;
use super::launch::{ATTENTION_DECODE, ATTENTION_FORWARD, grid, launch, tile};
use super::place::{Place, device, result, rows, suffix};
use super::{not_on_cpu, on_device, unwritten};
use crate::{Attention, transfers};

/// Head widths that the kernels are compiled for.
const WIDTHS: [usize; 4] = [32, 64, 80, 128];

/// Keys of a block's part in decoding, and the most parts.
const PART: usize = 256;
const PARTS: usize = 64;

/// Threads of a block that writes to a cache, four values each.
const WRITERS: usize = 128;

/// `AttentionShape` of attention.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct KernelShape {
    heads: i32,
    kv_heads: i32,
    queries: i32,
    keys: i32,
    causal: i32,
    prefix: i32,
    scale: f32,
    unused: i32,
    query_starts: u64,
    key_starts: u64,
    query_lengths: u64,
    key_lengths: u64,
    key_visible: u64,
}

// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for KernelShape {}

/// Whether there are kernels for this type and head width.
pub fn attends(dtype: DType, width: usize) -> bool {
    suffix(dtype).is_ok() && WIDTHS.contains(&width)
}

/// As [`crate::attention`]; None with a bias, or for another head width. A query that may see no key gets zeros and passes no gradient.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Option<Tensor>> {
    if !on_device(&[q, k, v]) || options.bias.is_some() || !WIDTHS.contains(&q.dim(3)?) {
        return Ok(None);
    }
    let op = Fused::new(q, k, options)?;
    let (q, k, v) = (rows(q)?, rows(k)?, rows(v)?);
    if q.dim(2)? == 1 && ![&q, &k, &v].iter().any(|x| x.track_op()) {
        return Ok(Some(op.decode(&q, &k, &v)?));
    }
    Ok(Some(q.apply_op3(&k, &v, op)?))
}

/// As [`crate::attend_cached`].
pub fn attend_cached(qkv: [&Tensor; 3], stores: [&Tensor; 2], lengths: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    let [q, k, v] = qkv;
    let ([keys, values], (b, heads, new, d)) = (stores, k.dims4()?);
    let all = [q, k, v, keys, values];
    if !on_device(&all) || !WIDTHS.contains(&d) {
        return Ok(None);
    }
    let fits = lengths.dims() == [b] && lengths.dtype() == DType::U32 && lengths.is_contiguous() && lengths.device().is_cuda();
    if !fits || v.dims() != k.dims() || keys.dims() != values.dims() || keys.dims() != [b, heads, keys.dim(2)?, d] {
        bail!(
            "a cache of {:?} and {:?}: k is {:?}, v {:?}, lengths {:?}",
            keys.shape(),
            values.shape(),
            k.shape(),
            v.shape(),
            lengths.shape()
        );
    }
    let ((k, v), count) = ((rows(k)?, rows(v)?), k.elem_count() / 4);
    launch!(
        &device(q)?,
        ATTENTION_DECODE,
        &format!("attention_write_{}", suffix(q.dtype())?),
        grid((count.div_ceil(WRITERS), 1, 1), WRITERS as u32, 0),
        Place::of(&k)?.heads(),
        Place::of(&v)?.heads(),
        Place::of(keys)?.heads(),
        Place::of(values)?.heads(),
        Place::of(lengths)?.address,
        heads as i32,
        new as i32,
        d as i32,
        count as i64,
    );
    let (q, keys, values) = (rows(&q.detach())?, keys.detach(), values.detach());
    let options = Attention { causal: q.dim(2)? > 1, ..Attention::full(scale) };
    let op = Fused { lengths: Some(lengths.clone()), ..Fused::new(&q, &keys, &options)? };
    if q.dim(2)? == 1 { op.decode(&q, &keys, &values).map(Some) } else { q.apply_op3(&keys, &values, op).map(Some) }
}

/// One attention: what it does beside the products, and the log-sum-exp that its backward pass needs.
pub struct Fused {
    scale: f32,
    causal: bool,
    /// (B, M) u8.
    visible: Option<Tensor>,
    /// (B) u32: keys that count, the first ones.
    lengths: Option<Tensor>,
    /// (B, H, L) f32, filled by the forward pass.
    pub log_sums: Tensor,
}

/// Where a mask of keys is not 0, u8 on q's device.
fn visible(mask: &Tensor, q: &Tensor) -> Result<Tensor> {
    let visible = mask.ne(0.0)?.contiguous()?;
    if mask.device().is_cpu() { transfers::to_device(&visible, q.device()) } else { Ok(visible) }
}

impl Fused {
    fn new(q: &Tensor, k: &Tensor, options: &Attention) -> Result<Self> {
        let (b, h, l, _) = q.dims4()?;
        let visible = options.key_mask.map(|mask| visible(mask, q)).transpose()?;
        if visible.as_ref().is_some_and(|visible| visible.elem_count() != b * k.dims()[2]) {
            bail!("attention: the key mask has not (B, M) values for keys of {:?}", k.shape());
        }
        let log_sums = unwritten((b, h, l), q, DType::F32)?;
        Ok(Fused { scale: options.scale as f32, causal: options.causal, visible, lengths: None, log_sums })
    }

    /// (B, H, L, D) and the kernels' description of the shape.
    pub fn shape(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<((usize, usize, usize, usize), KernelShape)> {
        let ((b, h, l, d), (kb, kv, m, kd)) = (q.shape().dims4()?, k.shape().dims4()?);
        if k.shape() != v.shape() || kb != b || kd != d || kv == 0 || !h.is_multiple_of(kv) || l == 0 || m == 0 {
            bail!("attention: q is {:?}, k {:?}, v {:?}", q.shape(), k.shape(), v.shape());
        }
        let address = |tensor: &Option<Tensor>| tensor.as_ref().map_or(Ok(0), |tensor| Place::of(tensor).map(|place| place.address));
        let shape = KernelShape {
            heads: h as i32,
            kv_heads: kv as i32,
            queries: l as i32,
            keys: m as i32,
            causal: self.causal.into(),
            prefix: 0,
            scale: self.scale,
            unused: 0,
            query_starts: 0,
            key_starts: 0,
            query_lengths: 0,
            key_lengths: address(&self.lengths)?,
            key_visible: address(&self.visible)?,
        };
        Ok(((b, h, l, d), shape))
    }

    /// Splits the keys over blocks, then brings the parts together.
    fn decode(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let ((b, h, _, d), shape) = self.shape(q.layout(), k.layout(), v.layout())?;
        let parts = k.dim(2)?.div_ceil(PART).min(PARTS);
        let (device, end) = (device(q)?, suffix(q.dtype())?);
        let (outputs, sums) = (unwritten((b, h, parts, d), q, DType::F32)?, unwritten((b, h, parts), q, DType::F32)?);
        let o = unwritten(q.shape(), q, q.dtype())?;
        let (outputs, sums, place) = (Place::of(&outputs)?, Place::of(&sums)?, Place::of(&o)?);
        launch!(
            &device,
            ATTENTION_DECODE,
            &format!("attention_decode_{end}_d{d}"),
            grid((parts, h, b), 128, 0),
            Place::of(q)?.heads(),
            Place::of(k)?.heads(),
            Place::of(v)?.heads(),
            outputs.address,
            sums.address,
            shape,
        );
        launch!(
            &device,
            ATTENTION_DECODE,
            &format!("attention_combine_{end}"),
            grid((h, b, 1), 128, 0),
            outputs.address,
            sums.address,
            parts as i32,
            d as i32,
            place.heads(),
            shape,
        );
        Ok(o)
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("attention")
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        ql: &Layout,
        k: &CudaStorage,
        kl: &Layout,
        v: &CudaStorage,
        vl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let ((b, h, l, d), shape) = self.shape(ql, kl, vl)?;
        let (o, place) = result(q.device(), ql.shape(), q.dtype())?;
        let name = format!("attention_forward_{}_d{d}", suffix(q.dtype())?);
        let (rows, shared_bytes) = tile(&name)?;
        launch!(
            q.device(),
            ATTENTION_FORWARD,
            &name,
            grid((l.div_ceil(rows), h, b), 128, shared_bytes),
            Place::new(q, ql)?.heads(),
            Place::new(k, kl)?.heads(),
            Place::new(v, vl)?.heads(),
            place.heads(),
            Place::of(&self.log_sums)?.address,
            shape,
        );
        Ok((o, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = attention_backward::gradients(self, [q, k, v], o, &rows(grad)?)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}
