//! The fused operations on CUDA devices: kernels of `ops/cuda`, launched from candle's custom operations.
//!
//! A function here gives None where its kernels do not take what they were given (another device, type or shape); the caller goes on with
//! candle's own primitives. None of them waits for the device. The kernels are proven on the CPU (`scripts/check-cuda`).

mod activation;
mod adamw;
mod attention;
mod attention_backward;
mod conv3d;
mod cross_entropy;
mod dropout;
mod graph;
mod launch;
mod linear;
mod norm;
mod place;
mod product;
mod rope;

pub(crate) use activation::gated;
pub use adamw::AdamW;
pub(crate) use attention::{attend_cached, attends, attention};
pub(crate) use conv3d::depthwise_conv3d;
pub(crate) use cross_entropy::linear_cross_entropy;
pub(crate) use dropout::dropout;
pub(crate) use graph::Graph;
pub(crate) use linear::frozen_linear;
pub(crate) use norm::norm;
pub use product::{LowRank, QuantisedWeight, lora_linear};
pub(crate) use rope::rope;

use candle_core::{CpuStorage, DType, Result, Shape, Tensor, bail};

/// True where all tensors lie on a CUDA device and are of one type that the kernels take.
fn on_device(tensors: &[&Tensor]) -> bool {
    let dtype = tensors.first().map(|tensor| tensor.dtype());
    matches!(dtype, Some(DType::F32 | DType::BF16 | DType::F16))
        && tensors.iter().all(|tensor| tensor.device().is_cuda() && Some(tensor.dtype()) == dtype)
}

/// What the CPU's side of a CUDA operation answers: it is never asked.
fn not_on_cpu(name: &str) -> Result<(CpuStorage, Shape)> {
    bail!("{name}: this operation is of tensors on a CUDA device")
}

/// A tensor for a kernel to fill.
fn unwritten(shape: impl Into<Shape>, like: &Tensor, dtype: DType) -> Result<Tensor> {
    // SAFETY: every caller launches a kernel that writes all values before the tensor is read
    unsafe { Tensor::empty(shape, dtype, like.device()) }
}
