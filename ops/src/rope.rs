//! Rotary position embedding, rotate-half form (LLaMA in Hugging Face's layout).

use candle_core::{D, Device, Result, Tensor};

/// Cosines and sines for positions `start .. start + length`: two (L, D/2) tensors.
pub fn rope_tables(start: usize, length: usize, head_dim: usize, theta: f64, device: &Device) -> Result<(Tensor, Tensor)> {
    let half = head_dim / 2;
    let angle = |p: usize, i: usize| (p as f32) * (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32;
    let angles: Vec<f32> = (start..start + length).flat_map(|p| (0..half).map(move |i| angle(p, i))).collect();
    let angles = Tensor::from_vec(angles, (length, half), device)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Rotates x by its positions. x: (B, H, L, D), cos and sin: (L, D/2) -> (B, H, L, D).
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}
