//! Softmax over the last axis.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::composed;
use crate::cpu::{Values, fused, made_in_pieces, rows_a_piece, values};
use crate::simd::{dot, exp_and_sum, largest, vectorised};

/// Softmax over the last axis. Any shape; a row of `-inf` only gives NaN, as in PyTorch.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) && x.rank() > 0 { x.contiguous()?.apply_op1(Softmax) } else { composed::softmax(x) }
}

vectorised! {
    /// y = softmax(x), row by row.
    fn softmax_rows(x: &[f32], width: usize, y: &mut [f32]) {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            y.copy_from_slice(x);
            softmax_row(y);
        }
    }

    /// dx = y (g - <y, g>), row by row.
    fn softmax_gradient(y: &[f32], grad: &[f32], width: usize, dx: &mut [f32]) {
        for ((dx, y), grad) in dx.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(grad.chunks_exact(width)) {
            let mean = dot(y, grad);
            for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(grad) {
                *dx = y * (g - mean);
            }
        }
    }
}

/// Softmax of one row in place.
#[inline(always)]
pub fn softmax_row(row: &mut [f32]) {
    let sum = exp_and_sum(row, largest(row));
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|y| *y *= inverse);
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let width = layout.dims()[layout.dims().len() - 1].max(1);
        let piece = rows_a_piece(width) * width;
        let y = made_in_pieces(x.len(), piece, |i, y| softmax_rows(&x[i * piece..], width, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (y_values, grad) = (Values::of(y)?, Values::of(&grad)?);
        let width = x.dim(x.rank() - 1)?.max(1);
        let piece = rows_a_piece(width) * width;
        let dx = made_in_pieces(y_values.len(), piece, |i, dx| softmax_gradient(&y_values[i * piece..], &grad[i * piece..], width, dx));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
