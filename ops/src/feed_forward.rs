//! A frozen gated feed-forward block with its norm, adapters and residual, as one operation: of its inside the graph holds nothing but gate and up,
//! and its gradient takes no pass for each of its parts.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{PIECE, Values, for_pieces, for_pieces2, fused, values};
use crate::kept::{self, rounded};
use crate::low_rank::{AdaptedMatrix, Group, Thin};
use crate::residual::Residual;
use crate::simd::{sigmoid, vectorised};

/// x + down(silu(gate(n)) * up(n)) with n = rms_norm(x, norm), LLaMA's feed-forward. x: (..., C), norm: (C), gate and up: (F, C), down: (C, F),
/// all in the host's memory, f32 -> (..., C).
///
/// Gradients go to x and to the adapters: norm and matrices are frozen. Where gate and up multiply in bf16, what they give is rounded to it and
/// kept so; where they are [for reading](crate::Matrix::for_reading), it is not.
pub fn gated_feed_forward(x: &Tensor, norm: &Tensor, eps: f64, projections: [AdaptedMatrix; 3]) -> Result<Tensor> {
    feed_forward(x, norm, eps, projections, false)
}

/// As [`gated_feed_forward`], for the last operation of a block of [`crate::checkpoint`]: when the block is run again for its gradient, nobody looks
/// at what comes out, and the product with down, a fifth of a layer's, is not made.
pub fn closing_feed_forward(x: &Tensor, norm: &Tensor, eps: f64, projections: [AdaptedMatrix; 3]) -> Result<Tensor> {
    feed_forward(x, norm, eps, projections, true)
}

fn feed_forward(x: &Tensor, norm: &Tensor, eps: f64, projections: [AdaptedMatrix; 3], closing: bool) -> Result<Tensor> {
    let [gate, up, down] = projections.each_ref().map(|own| own.matrix.size());
    let (inner, width) = gate;
    if x.dims().last() != Some(&width) || norm.elem_count() != width || up != gate || down != (width, inner) {
        bail!("feed-forward: x is {:?}, norm {:?}, gate, up and down {:?}", x.shape(), norm.shape(), [gate, up, down]);
    }
    if !fused(&[x, norm]) {
        bail!("feed-forward: expected f32 in the host's memory");
    }
    for own in &projections {
        own.check("feed-forward")?;
    }
    let (residual, string) = Residual::new(x, norm, eps, &projections)?;
    x.contiguous()?.apply_op2(&string, FeedForward { residual, projections, closing, kept: Mutex::new(None) })
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
    residual: Residual,
    /// Gate, up and down.
    projections: [AdaptedMatrix; 3],
    /// Whether a block ends with it.
    closing: bool,
    /// Until the backward pass takes it.
    kept: Mutex<Option<Kept>>,
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

    /// What gate and up give, rounded as it is kept, the kept of it where it is wanted, and what the adapters need.
    fn inner(&self, x: &[f32]) -> Result<Inner> {
        let ([mut gate, mut up], thin) = self.inputs()?.forward(&self.residual.normed(x)?)?;
        let [of_gate, of_up, _] = self.projections.each_ref().map(|own| own.matrix.precision());
        let kept = [rounded(of_gate, &mut gate, self.residual.keep), rounded(of_up, &mut up, self.residual.keep)];
        Ok(([gate, up], kept, thin))
    }

    /// Gate, up and the adapters' thin products as the forward pass had them.
    fn kept(&self, x: &[f32]) -> Result<([Vec<f32>; 2], [Thin; 2])> {
        let taken = self.kept.lock().expect("no holder of the lock panics").take();
        if let Some(Kept { inner, thin }) = taken {
            return Ok((inner.map(kept::Values::widened), thin));
        }
        let (inner, _, thin) = self.inner(x)?;
        let of_output = self.thin_of_output(&inner)?;
        Ok((inner, [thin, of_output]))
    }

    /// What the adapter of down needs, without its product.
    fn thin_of_output(&self, [gate, up]: &[Vec<f32>; 2]) -> Result<Thin> {
        let output = self.output()?;
        if output.is_adapted() { output.thin(&activated(gate.clone(), up)) } else { Ok(Thin::new()) }
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
        let (inner, kept, thin) = self.inner(x)?;
        let mut y = x.to_vec();
        let of_output = if self.closing && kept::runs_again() {
            self.thin_of_output(&inner)?
        } else {
            let [gate, up] = inner;
            self.output()?.add_forward(&activated(gate, &up), [&mut y])?
        };
        if let [Some(gate), Some(up)] = kept {
            *self.kept.lock().expect("no holder of the lock panics") = Some(Kept { inner: [gate, up], thin: [thin, of_output] });
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, string: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad = Values::of(&grad)?;
        let ([mut gate, mut up], thin) = self.kept(&Values::of(x)?)?;
        let (inputs, output) = (self.inputs()?, self.output()?);
        let hidden = if output.is_adapted() { activated(gate.clone(), &up) } else { Vec::new() };
        let (d_hidden, of_output) = output.backward(&hidden, &thin[1], [&grad])?;
        for_pieces2((&mut gate, PIECE), (&mut up, PIECE), |i, gate, up| gradients(gate, up, &d_hidden[i * PIECE..]));
        drop((hidden, d_hidden));
        self.residual.backward((x, string, &grad), (&inputs, &thin[0]), [&gate, &up], of_output)
    }
}
