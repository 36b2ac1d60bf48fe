//! What LLaMA's two blocks have in common: x + f(n) with n = rms_norm(x, norm), where x goes to the first frozen matrices of f, and its gradient comes
//! back through them.

use candle_core::{Result, Tensor};

use crate::cpu::Values;
use crate::knots::{Gradients, tie};
use crate::low_rank::{AdaptedMatrix, Group, Thin, add_all, trained};
use crate::norm::{rms_gradient, rms_rows};

/// Norm and adapters' gradients of a block.
pub struct Residual {
    norm: Tensor,
    eps: f32,
    /// Whether a backward pass will come, for which the forward pass keeps what it needs.
    pub keep: bool,
    gradients: Gradients,
}

impl Residual {
    /// The frame of a block of these matrices on x, and the string by which it reaches their adapters.
    pub fn new(x: &Tensor, norm: &Tensor, eps: f64, projections: &[AdaptedMatrix]) -> Result<(Self, Tensor)> {
        let (tied, gradients) = (trained(projections), Gradients::default());
        let string = tie(&tied, &gradients)?;
        let keep = x.track_op() || !tied.is_empty();
        Ok((Residual { norm: norm.detach().contiguous()?, eps: eps as f32, keep, gradients }, string))
    }

    pub fn normed(&self, x: &[f32]) -> Result<Vec<f32>> {
        Ok(rms_rows(x, &Values::of(&self.norm)?, self.eps))
    }

    /// The gradients of x and of the string, where `grad` comes to the output and `of_inputs` to the outputs of the matrices that take n; hands the
    /// adapters' own on, of which those behind are `of_output`.
    pub fn backward<const N: usize>(
        &self,
        (x, string, grad): (&Tensor, &Tensor, &[f32]),
        (inputs, thin): (&Group<N>, &Thin),
        of_inputs: [&[f32]; N],
        of_output: Vec<Tensor>,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let values = Values::of(x)?;
        let normed = if inputs.is_adapted() { self.normed(&values)? } else { Vec::new() };
        let (d_normed, adapters) = inputs.backward(&normed, thin, of_inputs)?;
        let mut dx = rms_gradient(&values, &Values::of(&self.norm)?, &d_normed, self.eps);
        add_all(&mut dx, grad);
        self.gradients.set(adapters.into_iter().chain(of_output).map(Some).collect());
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(string.zeros_like()?)))
    }
}
