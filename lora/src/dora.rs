//! The magnitude of weight-decomposed adaptation (Liu et al., 2024), as PEFT 0.13.2 computes it.

use candle_core::{D, Result, Tensor};

/// Lengths of the rows of W + delta, without a gradient (section 4.3 of the paper: the norm counts as a constant).
/// weight, delta: (out, in) -> (out).
pub(crate) fn row_norms(weight: &Tensor, delta: &Tensor) -> Result<Tensor> {
    (weight.detach() + delta.detach())?.sqr()?.sum(D::Minus1)?.sqrt()
}
