//! Softmax over the last axis.

use candle_core::{D, Result, Tensor};

/// Softmax over the last axis. Any shape; a row of `-inf` only gives NaN, as in PyTorch.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
