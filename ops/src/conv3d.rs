//! Depthwise 3-D convolution, kernel 3x3x3 (CT-ViT's position generator).

use candle_core::{Result, Tensor};

/// How the first axis is padded; the other two have one zero on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvPadding {
    /// Two zeros in front, none behind: a position sees itself and the two before it.
    Causal,
    /// One zero on each side.
    Same,
}

/// Depthwise cross-correlation. x: (B, T, H, W, C), weight: (C, 1, 3, 3, 3), bias: (C) -> (B, T, H, W, C).
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
