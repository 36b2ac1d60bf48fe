//! A frozen gated feed-forward block with its norm, adapters and residual, as one operation: of its inside the graph holds nothing but gate and up,
//! and its gradient takes no pass for each of its parts.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{PIECE, Values, for_pieces, for_pieces2, fused, values};
use crate::gemm::Precision;
use crate::kept::{Fine, nearest_bf16, rounded, runs_again};
use crate::low_rank::{AdaptedMatrix, Group, Thin};
use crate::residual::Residual;
use crate::simd::{sigmoid, vectorised};

/// x + down(silu(gate(n)) * up(n)) with n = rms_norm(x, norm), LLaMA's feed-forward. x: (..., C), norm: (C), gate and up: (F, C), down: (C, F),
/// all in the host's memory, f32 -> (..., C).
///
/// Gradients go to x and to the adapters: norm and matrices are frozen. Where gate and up multiply in bf16, what they give is rounded to it and
/// kept so; where they are [for reading](crate::Matrix::for_reading), it is not. Where down rounds what it multiplies and is not for reading, what
/// comes out is rounded to 2^-15 of the largest of each 32 values, a hundredth of bf16's step: [`crate::checkpoint_layers`] keeps such values in half
/// of their bytes.
pub fn gated_feed_forward(x: &Tensor, norm: &Tensor, eps: f64, projections: [AdaptedMatrix; 3]) -> Result<Tensor> {
    feed_forward(x, norm, eps, projections, false)
}

/// As [`gated_feed_forward`], for the last operation of a block of [`crate::checkpoint`]: when the block is run again for its gradient, nobody looks
/// at what comes out. The product with down, a fifth of a layer's, is not made then, and the tensor that comes out holds nothing: to read it panics.
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

/// The gradients of gate and up, for the gradient g of silu(gate) * up.
#[inline(always)]
fn gradient(gate: f32, up: f32, g: f32) -> (f32, f32) {
    let s = sigmoid(gate);
    (g * up * s * (1.0 + gate * (1.0 - s)), g * gate * s)
}

/// Gate and up of a pair.
#[inline(always)]
fn apart(pair: f32) -> (f32, f32) {
    (f32::from_bits(pair.to_bits() << 16), f32::from_bits(pair.to_bits() & 0xffff_0000))
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
            (*gate, *up) = gradient(*gate, *up, g);
        }
    }

    /// Rounds gate and up to bf16 and puts them together in gate's place.
    fn pair(gate: &mut [f32], up: &[f32]) {
        for (gate, &up) in gate.iter_mut().zip(up) {
            *gate = f32::from_bits(nearest_bf16(*gate) >> 16 | nearest_bf16(up));
        }
    }

    /// As [`activate`], of pairs.
    fn activate_pairs(pairs: &[f32], out: &mut [f32]) {
        for (&pair, out) in pairs.iter().zip(out) {
            let (gate, up) = apart(pair);
            *out = gate * sigmoid(gate) * up;
        }
    }

    /// As [`gradients`], that of gate in the place of the pair, that of up in the place of the gradient.
    fn gradients_of_pairs(pairs: &mut [f32], grad: &mut [f32]) {
        for (pair, grad) in pairs.iter_mut().zip(grad) {
            let (gate, up) = apart(*pair);
            (*pair, *grad) = gradient(gate, up, *grad);
        }
    }
}

/// What gate and up gave.
enum Inner {
    /// As it was.
    Whole([Vec<f32>; 2]),
    /// Both in bf16, the bits of gate's value and of up's in a word: their gradients take no more room than they and the gradient that comes.
    Pairs(Vec<f32>),
}

/// silu(gate) * up.
fn activated(mut gate: Vec<f32>, up: &[f32]) -> Vec<f32> {
    for_pieces(&mut gate, PIECE, |i, gate| activate(gate, &up[i * PIECE..]));
    gate
}

impl Inner {
    /// What is kept of gate and up, rounded, and room for as many values as each has, where there is some left.
    fn of([mut gate, mut up]: [Vec<f32>; 2], precision: [Precision; 2]) -> (Inner, Vec<f32>) {
        if precision == [Precision::Bf16; 2] {
            for_pieces(&mut gate, PIECE, |i, gate| pair(gate, &up[i * PIECE..]));
            return (Inner::Pairs(gate), up);
        }
        let [of_gate, of_up] = precision;
        rounded(of_gate, &mut gate, false);
        rounded(of_up, &mut up, false);
        (Inner::Whole([gate, up]), Vec::new())
    }

    /// silu(gate) * up, of pairs in `room` if there is as much.
    fn activated(&self, mut room: Vec<f32>) -> Vec<f32> {
        match self {
            Inner::Whole([gate, up]) => activated(gate.clone(), up),
            Inner::Pairs(pairs) => {
                room.resize(pairs.len(), 0.0);
                for_pieces(&mut room, PIECE, |i, out| activate_pairs(&pairs[i * PIECE..], out));
                room
            }
        }
    }

    /// The same of what is not kept.
    fn into_activated(self, room: Vec<f32>) -> Vec<f32> {
        match self {
            Inner::Whole([gate, up]) => activated(gate, &up),
            pairs => pairs.activated(room),
        }
    }

    /// The gradients of gate and up, for that of silu(gate) * up.
    fn gradients(self, mut grad: Vec<f32>) -> [Vec<f32>; 2] {
        match self {
            Inner::Whole([mut gate, mut up]) => {
                for_pieces2((&mut gate, PIECE), (&mut up, PIECE), |i, gate, up| gradients(gate, up, &grad[i * PIECE..]));
                [gate, up]
            }
            Inner::Pairs(mut pairs) => {
                for_pieces2((&mut pairs, PIECE), (&mut grad, PIECE), |_, pairs, grad| gradients_of_pairs(pairs, grad));
                [pairs, grad]
            }
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
    inner: Inner,
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

    /// What gate and up give, room for as many values, and what the adapters need.
    fn inner(&self, x: &[f32]) -> Result<(Inner, Vec<f32>, Thin)> {
        let (inner, thin) = self.inputs()?.forward(&self.residual.normed(x)?)?;
        let [of_gate, of_up, _] = self.projections.each_ref().map(|own| own.matrix.precision());
        let (inner, room) = Inner::of(inner, [of_gate, of_up]);
        Ok((inner, room, thin))
    }

    fn keep(&self, inner: Inner, thin: [Thin; 2]) {
        *self.kept.lock().expect("no holder of the lock panics") = Some(Kept { inner, thin });
    }

    /// Gate, up and the adapters' thin products as the forward pass had them.
    fn kept(&self, x: &[f32]) -> Result<Kept> {
        let taken = self.kept.lock().expect("no holder of the lock panics").take();
        if let Some(kept) = taken {
            return Ok(kept);
        }
        let (inner, room, thin) = self.inner(x)?;
        let of_output = self.thin_of_output(&inner, room)?;
        Ok(Kept { inner, thin: [thin, of_output] })
    }

    /// What the adapter of down needs, without its product.
    fn thin_of_output(&self, inner: &Inner, room: Vec<f32>) -> Result<Thin> {
        let output = self.output()?;
        if output.is_adapted() { output.thin(&inner.activated(room)) } else { Ok(Thin::new()) }
    }
}

impl CustomOp2 for FeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (inner, room, thin) = self.inner(x)?;
        if self.closing && runs_again() {
            let of_output = self.thin_of_output(&inner, room)?;
            self.keep(inner, [thin, of_output]);
            return Ok((CpuStorage::F32(Vec::new()), layout.shape().clone()));
        }
        let mut y = x.to_vec();
        if self.residual.keep {
            let of_output = self.output()?.add_forward(&inner.activated(room), [&mut y])?;
            self.keep(inner, [thin, of_output]);
        } else {
            self.output()?.add_forward(&inner.into_activated(room), [&mut y])?;
        }
        if self.projections[2].matrix.rounds_in_training() {
            Fine::round(&mut y);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, string: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad = Values::of(&grad)?;
        let Kept { inner, thin } = self.kept(&Values::of(x)?)?;
        let (inputs, output) = (self.inputs()?, self.output()?);
        let hidden = if output.is_adapted() { inner.activated(Vec::new()) } else { Vec::new() };
        let (d_hidden, of_output) = output.backward(&hidden, &thin[1], [&grad])?;
        drop(hidden);
        let [d_gate, d_up] = inner.gradients(d_hidden);
        self.residual.backward((x, string, &grad), (&inputs, &thin[0]), [&d_gate, &d_up], of_output)
    }
}
