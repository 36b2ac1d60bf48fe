//! Cross-entropy of a linear head, logits for a few rows at a time.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail};

use super::launch::{CROSS_ENTROPY, grid, launch};
use super::place::{Place, contiguous, device, suffix};
use super::{not_on_cpu, on_device, unwritten};
use crate::Matrix;

/// Logits at hand at once: 64 MB in bf16.
const CHUNK: usize = 32 << 20;

const THREADS: u32 = 256;

/// As [`crate::linear_cross_entropy`]. The gradient to `hidden` is made with the loss. Nothing is read back: a target outside the vocabulary
/// makes the loss NaN instead of an error.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Matrix, targets: &Tensor, weights: &Tensor) -> Result<Option<Tensor>> {
    if !on_device(&[hidden]) || !head.device().is_cuda() || hidden.dtype() != head.activation_dtype() {
        return Ok(None);
    }
    let (n, _) = hidden.dims2()?;
    if targets.dims() != [n] || weights.dims() != [n] || targets.dtype() != DType::U32 {
        bail!("cross-entropy: {n} rows, targets {:?} {:?}, weights {:?}", targets.shape(), targets.dtype(), weights.shape());
    }
    let labels = Labels { targets: contiguous(targets)?, weights: contiguous(&weights.detach().to_dtype(DType::F32)?)? };
    let source = contiguous(&hidden.detach())?;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    let rows = (CHUNK / head.size().0).clamp(1, n.max(1));
    for first in (0..n).step_by(rows) {
        let count = rows.min(n - first);
        let logits = head.forward(&source.narrow(0, first, count)?)?;
        losses.push(labels.loss_then_gradient(&logits, first)?);
        if hidden.track_op() {
            gradients.push(head.backward(&logits)?);
        }
    }
    let loss = Tensor::cat(&losses, 0)?.sum_all()?;
    if !hidden.track_op() {
        return Ok(Some(loss));
    }
    hidden.apply_op1(Known { value: loss, gradient: Tensor::cat(&gradients, 0)? }).map(Some)
}

struct Labels {
    targets: Tensor,
    weights: Tensor,
}

impl Labels {
    /// The loss (1) of the rows from `first`; their logits (R, V) become its gradient.
    fn loss_then_gradient(&self, logits: &Tensor, first: usize) -> Result<Tensor> {
        let (rows, width) = logits.dims2()?;
        let (device, end) = (device(logits)?, suffix(logits.dtype())?);
        let offset = 4 * first as u64;
        let (targets, weights) = (Place::of(&self.targets)?.address + offset, Place::of(&self.weights)?.address + offset);
        let (state, loss, one) =
            (unwritten((3, rows), logits, DType::F32)?, unwritten(1, logits, DType::F32)?, Tensor::ones(1, DType::F32, logits.device())?);
        let (logits, state) = (Place::of(logits)?.address, Place::of(&state)?.address);
        let (blocks, rows, width) = (grid((rows, 1, 1), THREADS, 0), rows as i32, width as i32);
        launch!(&device, CROSS_ENTROPY, &format!("cross_entropy_update_{end}"), blocks, logits, targets, weights, state, rows, 0i32, width);
        launch!(&device, CROSS_ENTROPY, "cross_entropy_loss", grid((1, 1, 1), THREADS, 0), weights, state, Place::of(&loss)?.address, rows);
        let upstream = Place::of(&one)?.address;
        let name = format!("cross_entropy_gradient_{end}");
        launch!(&device, CROSS_ENTROPY, &name, blocks, logits, targets, weights, state, upstream, rows, 0i32, width);
        Ok(loss)
    }
}

/// A scalar whose value and gradient are known beforehand.
struct Known {
    value: Tensor,
    gradient: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("linear-cross-entropy")
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (value, layout) = self.value.storage_and_layout();
        let Storage::Cuda(value) = &*value else { bail!("linear-cross-entropy: the loss is not on the device") };
        Ok((value.try_clone(layout)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.broadcast_mul(&grad.to_dtype(self.gradient.dtype())?)?))
    }
}
