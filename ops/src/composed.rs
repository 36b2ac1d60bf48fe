//! The same operations from candle's own primitives: the reference in tests, and what other types and devices than f32 on the CPU take.
//!
//! Shapes as in the fused operation of the same name.

use candle_core::{D, DType, Result, Tensor};

use crate::{Attention, ConvPadding, transfers};

/// GELU with the exact error function. Any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// `silu(gate) * up`, both of one shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// `gelu(gate) * value`, both of one shape.
pub fn geglu(value: &Tensor, gate: &Tensor) -> Result<Tensor> {
    gate.gelu_erf()? * value
}

/// both: (..., 2C) -> (..., C).
pub fn geglu_halves(both: &Tensor) -> Result<Tensor> {
    let half = both.dim(D::Minus1)? / 2;
    geglu(&both.narrow(D::Minus1, 0, half)?, &both.narrow(D::Minus1, half, half)?)
}

/// residual + x W^T. x: (..., in), weight: (out, in), residual: (..., out).
pub fn linear_residual(x: &Tensor, weight: &Tensor, residual: &Tensor) -> Result<Tensor> {
    linear(x, weight, None)? + residual
}

/// Softmax over the last axis. Any shape.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// x: (..., C), weight: (C), bias: (C) -> (..., C).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => normed.broadcast_add(bias),
        None => Ok(normed),
    }
}

/// x: (..., C), weight: (C) -> (..., C).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// x: (..., C) -> (..., C). The square root is of a number that is not 0, where its gradient would be no number.
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.maximum(eps * eps)?.sqrt()?;
    x.broadcast_div(&norm)
}

/// x: (B, H, L, D), cos and sin: (L, D/2) -> (B, H, L, D).
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, cos, sin) = (x.dim(D::Minus1)? / 2, cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

/// x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = x.elem_count() / inputs.max(1);
    let y = x.contiguous()?.reshape((rows, inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    *shape.last_mut().expect("a tensor that has rows has axes") = outputs;
    y.reshape(shape)
}

/// logits: (N, V), targets: (N) u32, weights: (N) f32 -> scalar.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(weights.dtype())?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let own = shifted.gather(&targets.unsqueeze(1)?, D::Minus1)?;
    ((log_sum - own)?.squeeze(1)? * weights)?.sum_all()
}

/// q: (B, H, L, D), k and v: (B, H', M, D) -> (B, H, L, D) and the probabilities (B, H, L, M).
pub fn attention_with_weights(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention) -> Result<(Tensor, Tensor)> {
    attend(q, k, v, options, softmax)
}

pub(crate) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &Attention,
    softmax: fn(&Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (b, h, l, _) = q.dims4()?;
    let m = k.dim(2)?;
    let (k, v) = (repeat_heads(k, h)?, repeat_heads(v, h)?.contiguous()?);
    let mut logits = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * options.scale)?;
    if let Some(bias) = options.bias {
        logits = logits.broadcast_add(bias)?;
    }
    if options.causal {
        let blocked = |i: usize, j: usize| if j + l > i + m { f32::MIN } else { 0.0 };
        let mask: Vec<f32> = (0..l).flat_map(|i| (0..m).map(move |j| blocked(i, j))).collect();
        let mask = transfers::upload(mask, (1, 1, l, m), q.device())?.to_dtype(q.dtype())?;
        logits = logits.broadcast_add(&mask)?;
    }
    if let Some(mask) = options.key_mask {
        let hidden = ((1.0 - mask.to_dtype(DType::F32)?)? * f64::from(f32::MIN))?.to_dtype(q.dtype())?;
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
    x.unsqueeze(2)?.broadcast_as((b, kv, heads / kv, m, d))?.contiguous()?.reshape((b, heads, m, d))
}

/// x: (B, T, H, W, C), weight: (C, 1, 3, 3, 3), bias: (C) -> (B, T, H, W, C).
pub fn depthwise_conv3d(x: &Tensor, weight: &Tensor, bias: &Tensor, padding: ConvPadding) -> Result<Tensor> {
    let (_, t, h, w, c) = x.dims5()?;
    let (front, behind) = match padding {
        ConvPadding::Causal => (2, 0),
        ConvPadding::Same => (1, 1),
    };
    let padded = x.pad_with_zeros(1, front, behind)?.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    let taps = weight.reshape((c, 27))?.t()?.contiguous()?;
    let mut sum = bias.reshape((1, 1, 1, 1, c))?.broadcast_as(x.shape())?.contiguous()?;
    for tap in 0..27 {
        let (dt, dh, dw) = (tap / 9, tap / 3 % 3, tap % 3);
        let window = padded.narrow(1, dt, t)?.narrow(2, dh, h)?.narrow(3, dw, w)?;
        sum = (sum + window.broadcast_mul(&taps.get(tap)?)?)?;
    }
    Ok(sum)
}
