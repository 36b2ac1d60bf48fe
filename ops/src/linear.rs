//! Linear layers.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use crate::composed;
use crate::cpu::{Values, for_pieces, fused, rows_a_piece, sum_rows};

/// x W^T + b, with gradients to all three. x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        None if fused(&[x, weight]) => x.contiguous()?.apply_op2(weight, Linear),
        Some(bias) if fused(&[x, weight, bias]) => x.contiguous()?.apply_op3(weight, &bias.contiguous()?, Linear),
        _ => composed::linear(x, weight, bias),
    }
}

/// x W^T + b with W and b frozen: the gradient goes to x only, and none is computed for W.
/// x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (weight, bias) = (weight.detach(), bias.map(Tensor::detach));
    or_cuda!(crate::cuda::frozen_linear(x, &weight, bias.as_ref()));
    if !fused(&[x, &weight]) || bias.as_ref().is_some_and(|bias| !fused(&[bias])) {
        return composed::linear(x, &weight, bias.as_ref());
    }
    let bias = bias.map(|bias| bias.contiguous()).transpose()?;
    x.contiguous()?.apply_op1(FrozenLinear { weight, bias })
}

/// Multiplies with the weight through candle's own matrix product, then adds the bias in place.
fn forward(x: (&CpuStorage, &Layout), weight: (&CpuStorage, &Layout), bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
    let (outputs, inputs) = weight.1.shape().dims2()?;
    let mut shape = x.1.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => bail!("linear: x is {:?}, weight ({outputs}, {inputs})", x.1.shape()),
    }
    if bias.is_some_and(|bias| bias.len() != outputs) {
        bail!("linear: the bias has not the weight's {outputs} outputs");
    }
    let rows = x.1.shape().elem_count() / inputs.max(1);
    let x_layout = Layout::contiguous_with_offset((rows, inputs), x.1.start_offset());
    let mut y = x.0.matmul(weight.0, (1, rows, outputs, inputs), &x_layout, &weight.1.transpose(0, 1)?)?;
    if let (CpuStorage::F32(y), Some(bias)) = (&mut y, bias) {
        for_pieces(y, rows_a_piece(outputs) * outputs, |_, rows| {
            for row in rows.chunks_exact_mut(outputs) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        });
    }
    Ok((y, Shape::from(shape)))
}

fn as_rows(x: &Tensor, width: usize) -> Result<Tensor> {
    let x = x.detach().contiguous()?;
    x.reshape((x.elem_count() / width.max(1), width))
}

/// dL/dx = g W, in x's shape.
fn gradient_of_input(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    as_rows(grad, weight.dim(0)?)?.matmul(&weight.detach())?.reshape(x.shape())
}

/// dL/dW = g^T x.
fn gradient_of_weight(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    as_rows(grad, outputs)?.t()?.matmul(&as_rows(x, inputs)?)
}

struct FrozenLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cpu(weight) = &*weight else { bail!("frozen-linear: x is on the CPU, the weight is not") };
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        forward((x, layout), (weight, weight_layout), bias.as_deref())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient_of_input(x, &self.weight, grad)?))
    }
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, weight: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        forward((x, xl), (weight, wl), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| gradient_of_input(x, weight, grad)).transpose()?;
        let dw = weight.track_op().then(|| gradient_of_weight(x, weight, grad)).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((x, xl), (weight, wl), Some(crate::cpu::values(bias, bl)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = CustomOp2::bwd(self, x, weight, y, &grad)?;
        let sum = || Tensor::from_vec(sum_rows(&Values::of(&grad)?, bias.elem_count()), bias.shape(), bias.device());
        let db = bias.track_op().then(sum).transpose()?;
        Ok((dx, dw, db))
    }
}
