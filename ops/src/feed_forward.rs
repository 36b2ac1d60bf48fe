//! A frozen gated feed-forward block with its norm, adapters and residual, as one operation: of its inside the graph holds nothing but gate and up,
//! and its gradient takes no pass for each of its parts.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::activation::swiglu;
use crate::cpu::{PIECE, Values, for_pieces, for_pieces2, fused, values};
use crate::kept::{self, rounded};
use crate::knots::{Gradients, tie};
use crate::low_rank::{AdaptedMatrix, Group, Thin, add_all, trained};
use crate::norm::{rms_gradient, rms_norm, rms_rows};
use crate::simd::{sigmoid, vectorised};

/// x + down(silu(gate(n)) * up(n)) with n = rms_norm(x, norm), LLaMA's feed-forward. x: (..., C), norm: (C), gate and up: (F, C), down: (C, F)
/// -> (..., C).
///
/// Gradients go to x and to the adapters: norm and matrices are frozen. Where gate and up multiply in bf16, what they give is rounded to it and
/// kept so; where they are [for reading](crate::Matrix::for_reading), it is not. On another device it is composed of its parts, and takes no adapters.
pub fn gated_feed_forward(x: &Tensor, norm: &Tensor, eps: f64, projections: [AdaptedMatrix; 3]) -> Result<Tensor> {
    let norm = norm.detach();
    let [gate, up, down] = projections.each_ref().map(|own| &own.matrix);
    if !fused(&[x, &norm]) || ![gate, up, down].iter().all(|matrix| matrix.in_place()) {
        if projections.iter().any(|own| own.low_rank.is_some()) {
            bail!("feed-forward: adapters are for matrices in the host's memory");
        }
        let normed = rms_norm(x, &norm, eps)?;
        return x + down.forward(&swiglu(&gate.forward(&normed)?, &up.forward(&normed)?)?)?;
    }
    let ((inner, width), norm) = (gate.size(), norm.contiguous()?);
    if x.dims().last() != Some(&width) || norm.elem_count() != width || up.size() != (inner, width) || down.size() != (width, inner) {
        let sizes = [gate.size(), up.size(), down.size()];
        bail!("feed-forward: x is {:?}, norm {:?}, gate, up and down {sizes:?}", x.shape(), norm.shape());
    }
    for own in &projections {
        own.check("feed-forward")?;
    }
    let (tied, gradients) = (trained(&projections), Gradients::default());
    let string = tie(&tied, &gradients)?;
    let keep = x.track_op() || !tied.is_empty();
    x.contiguous()?.apply_op2(&string, FeedForward { norm, eps: eps as f32, projections, keep, kept: Mutex::new(None), gradients })
}

vectorised! {
    /// silu(gate) * up, in the place of gate.
    fn activate(gate: &mut [f32], up: &[f32]) {
        for (gate, &up) in gate.iter_mut().zip(up) {
            *gate = *gate * sigmoid(*gate) * up;
        }
    }

    /// The gradients of gate and up in their places.
    fn gradients(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
        for ((gate, up), &g) in gate.iter_mut().zip(up).zip(grad) {
            let s = sigmoid(*gate);
            let dgate = g * *up * s * (1.0 + *gate * (1.0 - s));
            *up = g * *gate * s;
            *gate = dgate;
        }
    }
}

struct FeedForward {
    norm: Tensor,
    eps: f32,
    /// Gate, up and down.
    projections: [AdaptedMatrix; 3],
    keep: bool,
    /// Until the backward pass takes it.
    kept: Mutex<Option<Kept>>,
    gradients: Gradients,
}

/// What a forward pass leaves.
struct Kept {
    /// What gate and up gave.
    inner: [kept::Values; 2],
    thin: [Thin; 2],
}

impl FeedForward {
    fn inputs(&self) -> Result<Group<'_, 2>> {
        let [gate, up, _] = &self.projections;
        Group::of([gate, up])
    }

    fn output(&self) -> Result<Group<'_, 1>> {
        Group::of([&self.projections[2]])
    }

    fn normed(&self, x: &[f32]) -> Result<Vec<f32>> {
        Ok(rms_rows(x, &Values::of(&self.norm)?, self.eps))
    }

    /// What gate and up give, rounded as it is kept, the kept of it where it is wanted, and what the adapters need.
    fn inner(&self, x: &[f32]) -> Result<Inner> {
        let ([mut gate, mut up], thin) = self.inputs()?.forward(&self.normed(x)?)?;
        let [of_gate, of_up, _] = self.projections.each_ref().map(|own| own.matrix.precision());
        let kept = [rounded(of_gate, &mut gate, self.keep), rounded(of_up, &mut up, self.keep)];
        Ok(([gate, up], kept, thin))
    }

    /// Gate, up and the adapters' thin products as the forward pass had them.
    fn kept(&self, x: &[f32]) -> Result<([Vec<f32>; 2], [Thin; 2])> {
        let taken = self.kept.lock().expect("no holder of the lock panics").take();
        if let Some(Kept { inner, thin }) = taken {
            return Ok((inner.map(kept::Values::widened), thin));
        }
        let (inner, _, thin) = self.inner(x)?;
        let of_output = self.output()?.thin(&activated(inner[0].clone(), &inner[1]));
        Ok((inner, [thin, of_output]))
    }
}

/// Gate and up, what is kept of them, thin products.
type Inner = ([Vec<f32>; 2], [Option<kept::Values>; 2], Thin);

/// silu(gate) * up.
fn activated(mut gate: Vec<f32>, up: &[f32]) -> Vec<f32> {
    for_pieces(&mut gate, PIECE, |i, gate| activate(gate, &up[i * PIECE..]));
    gate
}

impl CustomOp2 for FeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let ([gate, up], kept, thin) = self.inner(x)?;
        let hidden = activated(gate, &up);
        let mut y = x.to_vec();
        self.projections[2].matrix.add_multiply(&hidden, true, &mut y);
        let of_output = self.output()?.add_adapters(&hidden, [&mut y])?;
        if let [Some(gate), Some(up)] = kept {
            *self.kept.lock().expect("no holder of the lock panics") = Some(Kept { inner: [gate, up], thin: [thin, of_output] });
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, string: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x_values, grad) = (Values::of(x)?, Values::of(&grad)?);
        let ([mut gate, mut up], thin) = self.kept(&x_values)?;
        let (inputs, output) = (self.inputs()?, self.output()?);
        let hidden = if output.is_adapted() { activated(gate.clone(), &up) } else { Vec::new() };
        let (d_hidden, of_output) = output.backward(&hidden, &thin[1], [&grad])?;
        for_pieces2((&mut gate, PIECE), (&mut up, PIECE), |i, gate, up| gradients(gate, up, &d_hidden[i * PIECE..]));
        drop((hidden, d_hidden));
        let normed = if inputs.is_adapted() { self.normed(&x_values)? } else { Vec::new() };
        let (d_normed, of_inputs) = inputs.backward(&normed, &thin[0], [&gate, &up])?;
        let mut dx = rms_gradient(&x_values, &Values::of(&self.norm)?, &d_normed, self.eps);
        add_all(&mut dx, &grad);
        self.gradients.set(of_inputs.into_iter().chain(of_output).map(Some).collect());
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(string.zeros_like()?)))
    }
}
