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
    let mask = DropoutMask::draw(x.elem_count(), p, rng);
    if fused(&[x]) {
        return x.contiguous()?.apply_op1(Dropout(mask));
    }
    let keep: Vec<u8> = (0..x.elem_count()).map(|i| u8::from(mask.keeps(i))).collect();
    x * (transfers::upload(keep, x.shape(), x.device())?.to_dtype(x.dtype())? * f64::from(mask.scale))?
}

/// Which values a dropout keeps, and what it multiplies them by.
#[derive(Debug, Clone)]
pub struct DropoutMask {
    /// A bit a value.
    keep: Vec<u64>,
    scale: f32,
}

impl DropoutMask {
    /// Of `count` values, each dropped with probability `p` in [0, 1).
    pub fn draw(count: usize, p: f64, rng: &mut impl Rng) -> Self {
        let mut keep = vec![0; count.div_ceil(64)];
        for i in 0..count {
            keep[i / 64] |= u64::from(rng.random::<f64>() >= p) << (i % 64);
        }
        DropoutMask { keep, scale: (1.0 / (1.0 - p)) as f32 }
    }

    fn keeps(&self, i: usize) -> bool {
        self.keep[i / 64] >> (i % 64) & 1 == 1
    }

    /// The values that are kept, scaled, and zeros. x: as many values as were drawn, or fewer.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        made_in_pieces(x.len(), PIECE, |i, y| {
            for ((y, x), keep) in y.chunks_mut(64).zip(x[i * PIECE..].chunks(64)).zip(&self.keep[i * PIECE / 64..]) {
                for (bit, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                    *y = if keep >> bit & 1 == 1 { x * self.scale } else { 0.0 };
                }
            }
        })
    }
}

struct Dropout(DropoutMask);

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.0.apply(values(x, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(Tensor::from_vec(self.0.apply(&Values::of(&grad)?), x.shape(), x.device())?))
    }
}
