//! Scaled dot-product attention.

pub(crate) mod batch;
mod few;
mod fused;
mod kernel;

use candle_core::{DType, Device, Result, Tensor};

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

/// Attention of the last tokens of texts whose keys and values lie on a CUDA device: k and v (B, H', L, D) are written to their places in `stores`,
/// keys and values (B, H', room, D), and q (B, H, Q, D), those of the last Q of them, attend causally to all that is there: the first `lengths` (B, u32,
/// the new ones counted) of each. -> (B, H, Q, D); no gradient. How far a text has come is read on the device alone, so that the same launches serve every
/// token ([`crate::Replays`]). `None`, with nothing written, where the kernels do not take what they are given.
pub fn attend_cached(qkv: [&Tensor; 3], stores: [&Tensor; 2], lengths: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    return crate::cuda::attend_cached(qkv, stores, lengths, scale);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (qkv, stores, lengths, scale);
        Ok(None)
    }
}

/// Whether [`attend_cached`] takes caches of this type and head width on this device.
pub fn caches_on_device(device: &Device, dtype: DType, width: usize) -> bool {
    #[cfg(feature = "cuda")]
    return device.is_cuda() && crate::cuda::attends(dtype, width);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (device, dtype, width);
        false
    }
}

/// As [`attention`], with the probabilities kept: (B, H, L, D) and (B, H, L, M). Both have gradients.
pub fn attention_with_weights(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<(Tensor, Tensor)> {
    composed::attend(q, k, v, options, softmax)
}
