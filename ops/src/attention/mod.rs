//! Scaled dot-product attention.

pub(crate) mod batch;
mod few;
mod fused;
mod kernel;

use candle_core::{Result, Tensor};

use crate::{composed, cpu, softmax};
pub use few::attend_few;

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
///
/// A query that may see no key gets the mean of all values, and passes its gradient to them only.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<Tensor> {
    let (_, h, l, _) = q.dims4()?;
    let bias_fits = options.bias.is_none_or(|bias| cpu::fused(&[bias]) && bias.dims() == [h, l, k.dims()[2]]);
    if cpu::fused(&[q, k, v]) && bias_fits {
        return fused::attention(q, k, v, options);
    }
    or_cuda!(crate::cuda::attention(q, k, v, options));
    Ok(attention_with_weights(q, k, v, options)?.0)
}

/// As [`attention`], with the probabilities kept: (B, H, L, D) and (B, H, L, M). Both have gradients.
pub fn attention_with_weights(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<(Tensor, Tensor)> {
    composed::attend(q, k, v, options, softmax)
}
