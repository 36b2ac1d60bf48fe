//! Cross-entropy against token ids.

use candle_core::{Result, Tensor};

use crate::{composed, frozen_linear};

/// Weighted sum of -log softmax(logits)\[target\]. logits: (N, V), targets: (N) u32, weights: (N) f32, 0 ignores a row -> scalar.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    composed::cross_entropy(logits, targets, weights)
}

/// [`cross_entropy`] of `hidden W^T` with W (V, D) frozen; logits are made in chunks of rows and never kept.
/// hidden: (N, D), targets: (N) u32, weights: (N) f32 -> scalar. Rows of weight 0 cost nothing.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    cross_entropy(&frozen_linear(hidden, head, None)?, targets, weights)
}
