//! Scaled dot-product attention.

use candle_core::{D, DType, Result, Tensor};

use crate::softmax;

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
    let (b, h, l, _) = q.dims4()?;
    let m = k.dim(2)?;
    let (k, v) = (repeat_heads(k, h)?, repeat_heads(v, h)?);
    let mut logits = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * options.scale)?;
    if let Some(bias) = options.bias {
        logits = logits.broadcast_add(bias)?;
    }
    if options.causal {
        let blocked = |i: usize, j: usize| if j + l > i + m { f32::MIN } else { 0.0 };
        let mask: Vec<f32> = (0..l).flat_map(|i| (0..m).map(move |j| blocked(i, j))).collect();
        logits = logits.broadcast_add(&Tensor::from_vec(mask, (1, 1, l, m), q.device())?)?;
    }
    if let Some(mask) = options.key_mask {
        let hidden = ((1.0 - mask.to_dtype(DType::F32)?)? * f64::from(f32::MIN))?;
        logits = logits.broadcast_add(&hidden.reshape((b, 1, 1, m))?)?.maximum(f64::from(f32::MIN))?;
    }
    let weights = softmax(&logits)?;
    Ok((weights.matmul(&v)?, weights))
}

fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, kv, m, d) = x.dims4()?;
    if kv == heads {
        return x.contiguous();
    }
    x.unsqueeze(2)?.broadcast_as((b, kv, heads / kv, m, d))?.contiguous()?.reshape((b, heads, m, x.dim(D::Minus1)?))
}
