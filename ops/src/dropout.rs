//! Dropout from a generator that can be seeded.

use candle_core::{Result, Tensor};
use rand::Rng;

/// Zeroes each value with probability `p` and scales the rest by 1 / (1 - p). Any shape; `p` in [0, 1).
pub fn dropout(x: &Tensor, p: f64, rng: &mut impl Rng) -> Result<Tensor> {
    if p <= 0.0 {
        return Ok(x.clone());
    }
    let keep = (1.0 / (1.0 - p)) as f32;
    let mask: Vec<f32> = (0..x.elem_count()).map(|_| if rng.random::<f64>() < p { 0.0 } else { keep }).collect();
    x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?
}
