//! Fused attention, backward: delta, then keys and values, then queries.

use candle_core::{DType, Result, Tensor};

use super::attention::Fused;
use super::launch::{ATTENTION_BACKWARD, grid, launch, tile};
use super::place::{Place, device, suffix};
use super::unwritten;

/// Rows of a block of the delta kernel, a warp each.
const DELTA_ROWS: usize = 4;

/// dq, dk and dv, each in the shape of its own.
pub fn gradients(op: &Fused, [q, k, v]: [&Tensor; 3], o: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
    let ((b, h, l, d), shape) = op.shape(q.layout(), k.layout(), v.layout())?;
    let (device, end, m, kv) = (device(q)?, suffix(q.dtype())?, k.dim(2)?, k.dim(1)?);
    let delta = unwritten((b, h, l), q, DType::F32)?;
    let (delta, log_sums, grad) = (Place::of(&delta)?.address, Place::of(&op.log_sums)?.address, Place::of(grad)?.heads());
    launch!(
        &device,
        ATTENTION_BACKWARD,
        &format!("attention_delta_{end}"),
        grid((l.div_ceil(DELTA_ROWS), h, b), 128, 0),
        Place::of(o)?.heads(),
        grad,
        delta,
        d as i32,
        shape,
    );
    let like = |x: &Tensor| unwritten(x.shape(), x, x.dtype());
    let (dq, dk, dv) = (like(q)?, like(k)?, like(v)?);
    let inputs = (Place::of(q)?.heads(), Place::of(k)?.heads(), Place::of(v)?.heads());
    let name = format!("attention_keys_{end}_d{d}");
    let (rows, shared_bytes) = tile(&name)?;
    launch!(
        &device,
        ATTENTION_BACKWARD,
        &name,
        grid((m.div_ceil(rows), kv, b), 128, shared_bytes),
        inputs.0,
        inputs.1,
        inputs.2,
        grad,
        log_sums,
        delta,
        Place::of(&dk)?.heads(),
        Place::of(&dv)?.heads(),
        shape,
    );
    let name = format!("attention_queries_{end}_d{d}");
    let (rows, shared_bytes) = tile(&name)?;
    launch!(
        &device,
        ATTENTION_BACKWARD,
        &name,
        grid((l.div_ceil(rows), h, b), 128, shared_bytes),
        inputs.0,
        inputs.1,
        inputs.2,
        grad,
        log_sums,
        delta,
        Place::of(&dq)?.heads(),
        shape,
    );
    Ok([dq, dk, dv])
}
