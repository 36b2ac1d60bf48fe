//! Rotary position embedding, rotate-half form (LLaMA in Hugging Face's layout).

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{Values, for_pieces, fused, made_in_pieces, rows_a_piece, values};
use crate::simd::vectorised;
use crate::transfers;

/// Cosines and sines for positions `start .. start + length`: two (L, D/2) tensors.
pub fn rope_tables(start: usize, length: usize, head_dim: usize, theta: f64, device: &Device) -> Result<(Tensor, Tensor)> {
    let half = head_dim / 2;
    let angle = |p: usize, i: usize| (p as f32) * (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32;
    let angles: Vec<f32> = (start..start + length).flat_map(|p| (0..half).map(move |i| angle(p, i))).collect();
    let angles = transfers::upload(angles, (length, half), device)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Rotates x by its positions. x: (B, H, L, D), cos and sin: (L, D/2) -> (B, H, L, D). The tables get no gradient.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, _, l, d) = x.dims4()?;
    or_cuda!(crate::cuda::rope(x, cos, sin));
    if !fused(&[x, cos, sin]) || cos.dims() != [l, d / 2] {
        return composed::rope(x, &cos.detach(), &sin.detach());
    }
    if d % 2 == 1 || sin.dims() != cos.dims() {
        bail!("rope: x is {:?}, cos {:?}, sin {:?}", x.shape(), cos.shape(), sin.shape());
    }
    let (cos, sin) = (cos.detach().contiguous()?, sin.detach().contiguous()?);
    x.contiguous()?.apply_op1(Rope { cos, sin })
}

vectorised! {
    /// Rows of whole heads, `width` values each, from position `first` on, in place; `direction` 1 rotates, -1 rotates back. Tables: (L, half);
    /// position L is 0 again.
    fn rotate(rows: &mut [f32], width: usize, cos: &[f32], sin: &[f32], half: usize, first: usize, direction: f32) {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let at = (first + i) * half % cos.len();
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in row.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let sin = direction * sin;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// Rotates rows (B L, H D) by their positions in place, or back where `direction` is -1. cos and sin: (L, D/2); `width` = H D.
pub(crate) fn rotate_rows(rows: &mut [f32], width: usize, [cos, sin]: [&[f32]; 2], length: usize, direction: f32) {
    let (half, rows_a_piece) = (cos.len() / length.max(1), rows_a_piece(width));
    for_pieces(rows, rows_a_piece * width, |piece, rows| rotate(rows, width, cos, sin, half, piece * rows_a_piece, direction));
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    fn apply(&self, x: &[f32], direction: f32) -> Result<Vec<f32>> {
        let (l, half) = self.cos.dims2()?;
        let (cos, sin) = (Values::of(&self.cos)?, Values::of(&self.sin)?);
        let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
        let head = (l * 2 * half).max(1);
        Ok(made_in_pieces(x.len(), head, |i, y| {
            y.copy_from_slice(&x[i * head..][..y.len()]);
            rotate(y, 2 * half, cos, sin, half, 0, direction);
        }))
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(values(x, layout)?, 1.0)?), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(Tensor::from_vec(self.apply(&Values::of(&grad)?, -1.0)?, x.shape(), x.device())?))
    }
}
