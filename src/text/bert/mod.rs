//! BERT: the frozen encoder with its pooler, and the decoder's layer.

mod encoder;
mod frozen;
mod layer;
mod radbert;

pub use encoder::{BertConfig, BertEncoder};
pub use frozen::Precision;
pub(crate) use layer::layer_sizes;
pub use layer::{BertAttention, BertLayer, NormPlace};
pub use radbert::RadBert;

use candle_core::Tensor;

use crate::Result;
use crate::weights::{Init, Params};

/// BERT's initialisation.
const STD: f64 = 0.02;

/// Weight (outputs, inputs) and bias of a linear layer.
pub(crate) fn linear(params: &Params, inputs: usize, outputs: usize) -> Result<[Tensor; 2]> {
    Ok([params.get("weight", &[outputs, inputs], Init::Normal(STD))?, params.get("bias", &[outputs], Init::Zeros)?])
}

/// Scale and shift of a layer norm.
pub(crate) fn norm(params: &Params, width: usize) -> Result<[Tensor; 2]> {
    Ok([params.get("weight", &[width], Init::Ones)?, params.get("bias", &[width], Init::Zeros)?])
}

/// A linear layer; frozen ones give a gradient to their input only.
pub(crate) fn apply([weight, bias]: &[Tensor; 2], x: &Tensor) -> Result<Tensor> {
    Ok(if weight.is_variable() {
        ctscribe_ops::linear(x, weight, Some(bias))?
    } else {
        ctscribe_ops::frozen_linear(x, weight, Some(bias))?
    })
}

/// A layer norm.
pub(crate) fn apply_norm([weight, bias]: &[Tensor; 2], x: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(ctscribe_ops::layer_norm(x, weight, Some(bias), eps)?)
}
