//! Scaled dot-product attention.

use candle_core::{Result, Tensor};

use crate::{composed, softmax};

/// What an attention does beside the product.
#[derive(Debug, Clone)]
pub struct Attention<'a> {
    /// Multiplies the logits.
    pub scale: f64,
    /// Query i sees keys up to i + (M - L) only.
    pub causal: bool,
    /// (B, M), 1 where a key may be seen, 0 where it is padding. Any numeric type.
    pub key_mask: Option<&'a Tensor>,
    /// (H, L, M), added to the logits of every batch element; has a gradient.
    pub bias: Option<&'a Tensor>,
}

impl Attention<'_> {
    /// Full attention with this scale.
    pub fn full(scale: f64) -> Self {
        Attention { scale, causal: false, key_mask: None, bias: None }
    }
}

/// q: (B, H, L, D), k and v: (B, H', M, D), H a multiple of H' (grouped key-value heads) -> (B, H, L, D).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Tensor> {
    Ok(attention_with_weights(q, k, v, options)?.0)
}

/// As [`attention`], with the probabilities kept: (B, H, L, D) and (B, H, L, M). Both have gradients.
pub fn attention_with_weights(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<(Tensor, Tensor)> {
    composed::attend(q, k, v, options, softmax)
}
