//! Normalisations over the last axis: y = (x - mean) r w + b, where layer norm has r = 1 / sqrt(variance + eps),
//! root-mean-square norm has no mean, and the unit-length norm has neither mean, w nor b.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{Values, fused, made_in_pieces, made_in_pieces2, rows_a_partial, rows_a_piece, sum_partials, sum_rows, values};
use crate::simd::{dot, sum, sum_of, vectorised};

/// Layer norm over the last axis. x: (..., C), weight: (C), bias: (C) -> (..., C).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    or_cuda!(crate::cuda::norm(x, weight, bias, true, eps));
    let op = Norm { centred: true, eps: eps as f32 };
    match bias {
        None if fused(&[x, weight]) => x.contiguous()?.apply_op2(&weight.contiguous()?, op),
        Some(bias) if fused(&[x, weight, bias]) => x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op),
        _ => composed::layer_norm(x, weight, bias, eps),
    }
}

/// Root-mean-square norm over the last axis. x: (..., C), weight: (C) -> (..., C).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    or_cuda!(crate::cuda::norm(x, weight, None, false, eps));
    if !fused(&[x, weight]) {
        return composed::rms_norm(x, weight, eps);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, Norm { centred: false, eps: eps as f32 })
}

/// [`rms_norm`] of rows as long as `weight`.
pub(crate) fn rms_rows(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let (norm, piece) = (Norm { centred: false, eps }, rows_a_piece(weight.len()) * weight.len());

    made_in_pieces(x.len(), piece, |i, y| norm_rows(norm, &x[i * piece..], weight, &[], y))
}

/// Layer norm of rows as long as `weight`, on one core.
pub(crate) fn layer_rows(x: &[f32], [weight, bias]: [&[f32]; 2], eps: f32, y: &mut [f32]) {
    norm_rows(Norm { centred: true, eps }, x, weight, bias, y);
}

/// The gradient of [`rms_rows`] to its input.
pub(crate) fn rms_gradient(x: &[f32], weight: &[f32], grad: &[f32], eps: f32) -> Vec<f32> {
    let (norm, piece) = (Norm { centred: false, eps }, rows_a_piece(weight.len()) * weight.len());

    made_in_pieces(x.len(), piece, |i, dx| norm_gradients(norm, &x[i * piece..], weight, &grad[i * piece..], dx, &mut []))
}

/// Layer norm of residual + y, in y's place, on one core; rows are as long as `weight` and `shift`.
pub(crate) fn layer_rows_of_sum(y: &mut [f32], residual: &[f32], [weight, shift]: [&[f32]; 2], eps: f32) {
    norm_sums(Norm { centred: true, eps }, y, residual, weight, shift);
}

/// x / max(|x|, eps) over the last axis, as `torch.nn.functional.normalize`. x: (..., C) -> (..., C).
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(&[x]) && x.rank() > 0 { x.contiguous()?.apply_op1(UnitLength { eps: eps as f32 }) } else { composed::l2_normalize(x, eps) }
}

/// As [`l2_normalize`], times `scale`. x: (..., C), scale: (C) -> (..., C).
pub fn l2_normalize_scaled(x: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(&[x, scale]) && x.rank() > 0 {
        return x.contiguous()?.apply_op2(&scale.contiguous()?, UnitLength { eps: eps as f32 });
    }
    l2_normalize(x, eps)?.broadcast_mul(scale)
}

#[derive(Clone, Copy)]
struct Norm {
    centred: bool,
    eps: f32,
}

impl Norm {
    /// Mean (0 if not centred) and reciprocal deviation of a row.
    #[inline(always)]
    fn statistics(self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = if self.centred { sum(x) / n } else { 0.0 };
        let square = sum_of([x], |[x]| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (square + self.eps).sqrt())
    }
}

vectorised! {
    fn norm_rows(norm: Norm, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, r) = norm.statistics(x);
            if bias.is_empty() {
                for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                    *y = (x - mean) * r * w;
                }
            } else {
                for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - mean) * r * w + b;
                }
            }
        }
    }

    fn norm_sums(norm: Norm, y: &mut [f32], residual: &[f32], weight: &[f32], shift: &[f32]) {
        let width = weight.len();
        for (y, residual) in y.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
            y.iter_mut().zip(residual).for_each(|(y, x)| *y += x);
            let (mean, r) = norm.statistics(y);
            for ((y, &w), &s) in y.iter_mut().zip(weight).zip(shift) {
                *y = (*y - mean) * r * w + s;
            }
        }
    }

    /// dx = r (g w - mean(g w) - n mean(g w n)) with n the normed row; adds g n to `dw`, which is empty for a frozen weight.
    fn norm_gradients(norm: Norm, x: &[f32], weight: &[f32], grad: &[f32], dx: &mut [f32], dw: &mut [f32]) {
        let width = weight.len();
        for ((dx, x), grad) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width)) {
            let (mean, r) = norm.statistics(x);
            let shift = if norm.centred { dot(grad, weight) / width as f32 } else { 0.0 };
            let slope = sum_of([grad, weight, x], |[g, w, x]| g * w * ((x - mean) * r)) / width as f32;
            for (((dx, &x), &g), &w) in dx.iter_mut().zip(x).zip(grad).zip(weight) {
                *dx = r * (g * w - shift - (x - mean) * r * slope);
            }
            for ((dw, &x), &g) in dw.iter_mut().zip(x).zip(grad) {
                *dw += g * ((x - mean) * r);
            }
        }
    }

    fn unit_rows(eps: f32, x: &[f32], width: usize, y: &mut [f32]) {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = 1.0 / dot(x, x).sqrt().max(eps);
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * inverse);
        }
    }

    /// Rows as long as `scale` become of length one, times it.
    pub(crate) fn scale_units(eps: f32, x: &mut [f32], scale: &[f32]) {
        for x in x.chunks_exact_mut(scale.len()) {
            let inverse = 1.0 / dot(x, x).sqrt().max(eps);
            x.iter_mut().zip(scale).for_each(|(x, &s)| *x = *x * inverse * s);
        }
    }

    /// As [`unit_gradient`] behind the scale; adds g n, with n the row of length one, to `dscale`.
    fn scaled_unit_gradients(eps: f32, x: &[f32], scale: &[f32], grad: &[f32], dx: &mut [f32], dscale: &mut [f32]) {
        let width = scale.len();
        for ((dx, x), grad) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width)) {
            let length = dot(x, x).sqrt();
            let inverse = 1.0 / length.max(eps);
            let slope = sum_of([x, grad, scale], |[x, g, s]| x * g * s);
            let along = if length >= eps { slope * inverse * inverse } else { 0.0 };
            for (((dx, &x), &g), &s) in dx.iter_mut().zip(x).zip(grad).zip(scale) {
                *dx = (g * s - x * along) * inverse;
            }
            for ((ds, &x), &g) in dscale.iter_mut().zip(x).zip(grad) {
                *ds += g * x * inverse;
            }
        }
    }

    /// dx = (g - y <y, g>) / |x|, and g / eps where |x| is below eps.
    fn unit_gradient(eps: f32, x: &[f32], grad: &[f32], width: usize, dx: &mut [f32]) {
        for ((dx, x), grad) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width)) {
            let length = dot(x, x).sqrt();
            let inverse = 1.0 / length.max(eps);
            let along = if length >= eps { dot(x, grad) * inverse * inverse } else { 0.0 };
            for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(grad) {
                *dx = (g - x * along) * inverse;
            }
        }
    }
}

impl Norm {
    fn forward(self, x: (&CpuStorage, &Layout), weight: (&CpuStorage, &Layout), bias: &[f32]) -> Result<(CpuStorage, Shape)> {
        let (shape, x, weight) = (x.1.shape(), values(x.0, x.1)?, values(weight.0, weight.1)?);
        let width = weight.len();
        if shape.dims().last() != Some(&width) || !(bias.is_empty() || bias.len() == width) {
            bail!("norm over the last axis: x is {shape:?}, weight ({width}), bias ({})", bias.len());
        }
        let piece = rows_a_piece(width) * width;
        let y = made_in_pieces(x.len(), piece, |i, y| norm_rows(self, &x[i * piece..], weight, bias, y));
        Ok((CpuStorage::F32(y), shape.clone()))
    }

    /// Gradients of x and, unless it is frozen, of the weight.
    fn backward(self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let width = weight.elem_count();
        let (x_values, w, grad) = (Values::of(x)?, Values::of(weight)?, Values::of(grad)?);
        let rows = x_values.len() / width;
        let piece = rows_a_partial(rows, width) * width;
        if !weight.track_op() {
            let own = |i: usize, dx: &mut [f32]| norm_gradients(self, &x_values[i * piece..], &w, &grad[i * piece..], dx, &mut []);
            let dx = made_in_pieces(x_values.len(), piece, own);
            return Ok((Tensor::from_vec(dx, x.shape(), x.device())?, None));
        }
        let partials = (x_values.len().div_ceil(piece) * width, width);
        let (dx, partials) = made_in_pieces2((x_values.len(), piece), partials, |i, dx, dw| {
            norm_gradients(self, &x_values[i * piece..], &w, &grad[i * piece..], dx, dw);
        });
        let dw = Tensor::from_vec(sum_partials(&partials, width), weight.shape(), x.device())?;
        Ok((Tensor::from_vec(dx, x.shape(), x.device())?, Some(dw)))
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        if self.centred { "layer-norm" } else { "rms-norm" }
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, weight: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (weight, wl), &[])
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, weight, &grad.contiguous()?)?;
        Ok((x.track_op().then_some(dx), dw))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer-norm-bias"
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
        self.forward((x, xl), (weight, wl), values(bias, bl)?)
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
        let sum = || Tensor::from_vec(sum_rows(&Values::of(&grad)?, bias.elem_count()), bias.shape(), x.device());
        Ok((dx, dw, bias.track_op().then(sum).transpose()?))
    }
}

struct UnitLength {
    eps: f32,
}

impl CustomOp1 for UnitLength {
    fn name(&self) -> &'static str {
        "l2-normalize"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let width = layout.dims()[layout.dims().len() - 1].max(1);
        let piece = rows_a_piece(width) * width;
        let y = made_in_pieces(x.len(), piece, |i, y| unit_rows(self.eps, &x[i * piece..], width, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x_values, grad) = (Values::of(x)?, Values::of(&grad)?);
        let width = x.dim(x.rank() - 1)?.max(1);
        let piece = rows_a_piece(width) * width;
        let dx =
            made_in_pieces(x_values.len(), piece, |i, dx| unit_gradient(self.eps, &x_values[i * piece..], &grad[i * piece..], width, dx));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl CustomOp2 for UnitLength {
    fn name(&self) -> &'static str {
        "l2-normalize-scaled"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, scale: &CpuStorage, sl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, scale) = (values(x, xl)?, values(scale, sl)?);
        if scale.is_empty() || xl.dims().last() != Some(&scale.len()) {
            bail!("l2-normalize: x is {:?}, the scale ({})", xl.shape(), scale.len());
        }
        let piece = rows_a_piece(scale.len()) * scale.len();
        let y = made_in_pieces(x.len(), piece, |i, y| {
            y.copy_from_slice(&x[i * piece..][..y.len()]);
            scale_units(self.eps, y, scale);
        });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, scale: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (width, grad) = (scale.elem_count(), grad.contiguous()?);
        let (x_values, s, grad) = (Values::of(x)?, Values::of(scale)?, Values::of(&grad)?);
        let piece = rows_a_partial(x_values.len() / width, width) * width;
        let partials = (x_values.len().div_ceil(piece) * width, width);
        let (dx, partials) = made_in_pieces2((x_values.len(), piece), partials, |i, dx, dscale| {
            scaled_unit_gradients(self.eps, &x_values[i * piece..], &s, &grad[i * piece..], dx, dscale);
        });
        let dscale = Tensor::from_vec(sum_partials(&partials, width), scale.shape(), x.device())?;
        Ok((x.track_op().then_some(Tensor::from_vec(dx, x.shape(), x.device())?), scale.track_op().then_some(dscale)))
    }
}
