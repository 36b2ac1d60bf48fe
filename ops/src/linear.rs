//! Linear layers.

use candle_core::{Result, Tensor};

/// x W^T + b, with gradients to all three. x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows: usize = shape[..shape.len() - 1].iter().product();
    let y = x.contiguous()?.reshape((rows, inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    *shape.last_mut().expect("a tensor that has rows has axes") = outputs;
    y.reshape(shape)
}

/// x W^T + b with W and b frozen: the gradient goes to x only, and none is computed for W.
/// x: (..., in), weight: (out, in), bias: (out) -> (..., out).
pub fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear(x, &weight.detach(), bias.map(Tensor::detach).as_ref())
}
