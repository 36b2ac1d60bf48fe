//! Dropout from a generator that can be seeded.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rand::Rng;

use crate::cpu::{PIECE, Values, fused, made_in_pieces, values};
use crate::transfers;

/// Zeroes each value with probability `p` and scales the rest by 1 / (1 - p). Any shape; `p` in [0, 1).
pub fn dropout(x: &Tensor, p: f64, rng: &mut impl Rng) -> Result<Tensor> {
    if p <= 0.0 {
        return Ok(x.clone());
    }
    let scale = (1.0 / (1.0 - p)) as f32;
    let keep: Vec<bool> = (0..x.elem_count()).map(|_| rng.random::<f64>() >= p).collect();
    if fused(&[x]) {
        return x.contiguous()?.apply_op1(Dropout { keep, scale });
    }
    let mask: Vec<u8> = keep.into_iter().map(u8::from).collect();
    x * (transfers::upload(mask, x.shape(), x.device())?.to_dtype(x.dtype())? * f64::from(scale))?
}

struct Dropout {
    keep: Vec<bool>,
    scale: f32,
}

impl Dropout {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        made_in_pieces(x.len(), PIECE, |i, y| {
            for ((y, &x), &keep) in y.iter_mut().zip(&x[i * PIECE..]).zip(&self.keep[i * PIECE..]) {
                *y = if keep { x * self.scale } else { 0.0 };
            }
        })
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(values(x, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(Tensor::from_vec(self.apply(&Values::of(&grad)?), x.shape(), x.device())?))
    }
}
