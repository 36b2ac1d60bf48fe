//! Normalisations over the last axis.

use candle_core::{D, Result, Tensor};

/// Layer norm over the last axis. x: (..., C), weight: (C), bias: (C) -> (..., C).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => normed.broadcast_add(bias),
        None => Ok(normed),
    }
}

/// Root-mean-square norm over the last axis. x: (..., C), weight: (C) -> (..., C).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// x / max(|x|, eps) over the last axis, as `torch.nn.functional.normalize`. x: (..., C) -> (..., C).
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(eps)?;
    x.broadcast_div(&norm)
}
