//! Depthwise 3-D convolution, kernel 3x3x3 (CT-ViT's position generator).

use candle_core::{Result, Tensor};

use crate::composed;

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
    composed::depthwise_conv3d(x, weight, bias, padding)
}
