//! A frozen dense layer through cuBLAS: candle's own product would make and keep the weight's gradient.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use super::{not_on_cpu, on_device};
use crate::linear::output_shape;

/// As [`crate::frozen_linear`].
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    if !on_device(&[x, weight]) {
        return Ok(None);
    }
    let y = x.contiguous()?.apply_op1(Frozen { weight: weight.detach() })?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.detach()).map(Some),
        None => Ok(Some(y)),
    }
}

struct Frozen {
    weight: Tensor,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("frozen-linear")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let shape = output_shape(layout.shape(), (outputs, inputs))?;
        let rows = layout.shape().elem_count() / inputs.max(1);
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cuda(weight) = &*weight else { bail!("frozen-linear: x is on a CUDA device, the weight is not") };
        let x_layout = Layout::contiguous_with_offset((rows, inputs), layout.start_offset());
        let y = x.matmul(weight, (1, rows, outputs, inputs), &x_layout, &weight_layout.transpose(0, 1)?)?;
        Ok((y, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let outputs = self.weight.dim(0)?;
        let rows = grad.contiguous()?.reshape((grad.elem_count() / outputs.max(1), outputs))?;
        Ok(Some(rows.matmul(&self.weight)?.reshape(x.shape())?))
    }
}
