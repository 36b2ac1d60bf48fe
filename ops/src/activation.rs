//! Activations.

use candle_core::{Result, Tensor};

/// GELU with the exact error function, elementwise. Any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// `silu(gate) * up`, elementwise. Both of one shape (LLaMA's feed-forward).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// `gelu(gate) * value`, elementwise. Both of one shape (CT-ViT's feed-forward).
pub fn geglu(value: &Tensor, gate: &Tensor) -> Result<Tensor> {
    gate.gelu_erf()? * value
}
