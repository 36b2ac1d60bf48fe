//! Linear layers.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use crate::composed;
use crate::cpu::{Values, for_pieces, fused, rows_a_piece, sum_rows, values};
use crate::few::{add_rows_times, rows_times};
use crate::gemm::{Left, Precision, Right, product};

/// x W^T + b, with gradients to all three. x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_in(Precision::F32, x, weight, bias)
}

/// As [`linear`], with its product and those of its gradients in `precision`, where the processor and the type have it.
pub fn linear_in(precision: Precision, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let op = Linear { precision };
    match bias {
        None if fused(&[x, weight]) => x.contiguous()?.apply_op2(&weight.contiguous()?, op),
        Some(bias) if fused(&[x, weight, bias]) => x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op),
        _ => composed::linear(x, weight, bias),
    }
}

/// residual + x W^T, with gradients to all three, and products in `precision` as for [`linear_in`]. x: (..., in), weight: (out, in),
/// residual: (..., out) -> (..., out).
pub fn linear_residual(precision: Precision, x: &Tensor, weight: &Tensor, residual: &Tensor) -> Result<Tensor> {
    if fused(&[x, weight, residual]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &residual.contiguous()?, LinearResidual { precision });
    }
    composed::linear_residual(x, weight, residual)
}

/// x W^T + b with W and b frozen: the gradient goes to x only, and none is computed for W.
/// x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (weight, bias) = (weight.detach(), bias.map(Tensor::detach));
    or_cuda!(crate::cuda::frozen_linear(x, &weight, bias.as_ref()));
    if !fused(&[x, &weight]) || bias.as_ref().is_some_and(|bias| !fused(&[bias])) {
        return composed::linear(x, &weight, bias.as_ref());
    }
    let (weight, bias) = (weight.contiguous()?, bias.map(|bias| bias.contiguous()).transpose()?);
    x.contiguous()?.apply_op1(FrozenLinear { weight, bias })
}

/// The product by our own kernels, then the bias in place.
fn forward(
    precision: Precision,
    x: (&CpuStorage, &Layout),
    weight: (&CpuStorage, &Layout),
    bias: Option<&[f32]>,
) -> Result<(CpuStorage, Shape)> {
    let (outputs, inputs) = weight.1.shape().dims2()?;
    let shape = output_shape(x.1.shape(), (outputs, inputs))?;
    if bias.is_some_and(|bias| bias.len() != outputs) {
        bail!("linear: the bias has not the weight's {outputs} outputs");
    }
    let weight = Right::values(values(weight.0, weight.1)?, inputs, true);
    let mut y = rows_times(values(x.0, x.1)?, weight, (inputs, outputs), precision);
    if let Some(bias) = bias {
        add_bias(&mut y, bias);
    }
    Ok((CpuStorage::F32(y), shape))
}

/// Adds `bias` to each row of y, which is as long.
pub(crate) fn add_bias(y: &mut [f32], bias: &[f32]) {
    for_pieces(y, rows_a_piece(bias.len()) * bias.len(), |_, rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    });
}

/// The shape of x W^T: x's own with the last axis `outputs`, which must be `inputs`. weight: (outputs, inputs).
pub(crate) fn output_shape(x: &Shape, (outputs, inputs): (usize, usize)) -> Result<Shape> {
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == inputs => *last = outputs,
        _ => bail!("linear: x is {x:?}, weight ({outputs}, {inputs})"),
    }
    Ok(Shape::from(dims))
}

/// dL/dx = g W, in x's shape.
fn gradient_of_input(precision: Precision, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let ((outputs, inputs), grad) = (weight.dims2()?, grad.contiguous()?);
    let weight = Values::of(weight)?;
    let dx = rows_times(&Values::of(&grad)?, Right::values(&weight, inputs, false), (outputs, inputs), precision);
    Tensor::from_vec(dx, x.shape(), x.device())
}

/// dL/dW = g^T x.
fn gradient_of_weight(precision: Precision, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let ((outputs, inputs), grad) = (weight.dims2()?, grad.contiguous()?);
    let rows = grad.elem_count() / outputs.max(1);
    let x = x.contiguous()?;
    let (grad, x) = (Values::of(&grad)?, Values::of(&x)?);
    let left = Left { values: &grad, row: 1, column: outputs };
    let dw = product((outputs, rows, inputs), left, Right::values(&x, inputs, false), precision);
    Tensor::from_vec(dw, weight.shape(), weight.device())
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
        forward(Precision::F32, (x, layout), (weight, weight_layout), bias.as_deref())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient_of_input(Precision::F32, x, &self.weight, grad)?))
    }
}

struct LinearResidual {
    precision: Precision,
}

impl CustomOp3 for LinearResidual {
    fn name(&self) -> &'static str {
        "linear-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        residual: &CpuStorage,
        rl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = wl.shape().dims2()?;
        let shape = output_shape(xl.shape(), (outputs, inputs))?;
        if *rl.shape() != shape {
            bail!("linear: the residual is {:?}, the product {shape:?}", rl.shape());
        }
        let mut y = values(residual, rl)?.to_vec();
        let weight = Right::values(values(weight, wl)?, inputs, true);
        add_rows_times(values(x, xl)?, weight, (inputs, outputs), self.precision, &mut y);
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        residual: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = CustomOp2::bwd(&Linear { precision: self.precision }, x, weight, y, grad)?;
        Ok((dx, dw, residual.track_op().then(|| grad.clone())))
    }
}

struct Linear {
    precision: Precision,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, weight: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        forward(self.precision, (x, xl), (weight, wl), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| gradient_of_input(self.precision, x, weight, grad)).transpose()?;
        let dw = weight.track_op().then(|| gradient_of_weight(self.precision, x, weight, grad)).transpose()?;
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
        forward(self.precision, (x, xl), (weight, wl), Some(values(bias, bl)?))
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
