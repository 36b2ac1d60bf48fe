//! Cross-entropy against token ids.

use candle_core::{D, Result, Tensor};

use crate::linear::linear;

/// Weighted sum of -log softmax(logits)\[target\]. logits: (N, V), targets: (N) u32, weights: (N) f32, 0 ignores a row -> scalar.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let own = shifted.gather(&targets.unsqueeze(1)?, D::Minus1)?;
    ((log_sum - own)?.squeeze(1)? * weights)?.sum_all()
}

/// [`cross_entropy`] of `hidden W^T` with W (V, D) frozen; logits are made in chunks of rows and never kept.
/// hidden: (N, D), targets: (N) u32, weights: (N) f32 -> scalar. Rows of weight 0 cost nothing.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    cross_entropy(&linear(hidden, &head.detach(), None)?, targets, weights)
}
