//! A frozen gated feed-forward block with its norm and residual, as one operation: of its inside the graph holds nothing but gate and up, and
//! its gradient takes no pass for each of its parts.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::Matrix;
use crate::activation::swiglu;
use crate::cpu::{PIECE, Values, for_pieces, for_pieces2, fused, values};
use crate::gemm::Precision;
use crate::kept::{self, round_to};
use crate::norm::{rms_gradient, rms_norm, rms_rows};
use crate::simd::{sigmoid, vectorised};

/// x + down(silu(gate(n)) * up(n)) with n = rms_norm(x, norm), LLaMA's feed-forward. x: (..., C), norm: (C), gate and up: (F, C), down: (C, F)
/// -> (..., C).
///
/// The gradient goes to x only: norm and matrices are frozen. Where gate and up multiply in bf16, what they give is rounded to it and kept so;
/// where they are [for reading](Matrix::for_reading), it is not.
pub fn gated_feed_forward(x: &Tensor, norm: &Tensor, eps: f64, [gate, up, down]: [&Matrix; 3]) -> Result<Tensor> {
    let norm = norm.detach();
    if !fused(&[x, &norm]) || ![gate, up, down].iter().all(|matrix| matrix.in_place()) {
        let normed = rms_norm(x, &norm, eps)?;
        return x + down.forward(&swiglu(&gate.forward(&normed)?, &up.forward(&normed)?)?)?;
    }
    let ((inner, width), norm) = (gate.size(), norm.contiguous()?);
    if x.dims().last() != Some(&width) || norm.elem_count() != width || up.size() != (inner, width) || down.size() != (width, inner) {
        let sizes = [gate.size(), up.size(), down.size()];
        bail!("feed-forward: x is {:?}, norm {:?}, gate, up and down {sizes:?}", x.shape(), norm.shape());
    }
    if gate.precision() == Precision::Int8 && !x.track_op() {
        return read(x, &norm, eps as f32, [gate, up, down]);
    }
    let [gate, up, down] = [gate, up, down].map(Matrix::clone);
    x.contiguous()?.apply_op1(FeedForward { norm, eps: eps as f32, gate, up, down, keep: x.track_op(), kept: Mutex::new(None) })
}

/// The block without a graph: nothing of its inside is rounded or kept. The graph's has the same bits.
fn read(x: &Tensor, norm: &Tensor, eps: f32, [gate, up, down]: [&Matrix; 3]) -> Result<Tensor> {
    let x = x.contiguous()?;
    let values = Values::of(&x)?;
    let normed = rms_rows(&values, &Values::of(norm)?, eps);
    let [mut hidden, up] = Matrix::multiply_each([gate, up], &normed, true);
    for_pieces(&mut hidden, PIECE, |i, hidden| activate(hidden, &up[i * PIECE..]));
    let mut y = down.multiply(&hidden, true);
    add_all(&mut y, &values);
    Tensor::from_vec(y, x.shape(), x.device())
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

    fn add(sum: &mut [f32], x: &[f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

fn add_all(sum: &mut [f32], x: &[f32]) {
    for_pieces(sum, PIECE, |i, sum| add(sum, &x[i * PIECE..]));
}

struct FeedForward {
    norm: Tensor,
    eps: f32,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    keep: bool,
    /// What gate and up gave, until the backward pass takes it.
    kept: Mutex<Option<[kept::Values; 2]>>,
}

impl FeedForward {
    /// What gate and up give, rounded as it is kept, and the kept of it.
    fn inner(&self, x: &[f32]) -> Result<([Vec<f32>; 2], [kept::Values; 2])> {
        let normed = rms_rows(x, &Values::of(&self.norm)?, self.eps);
        let [mut gate, mut up] = Matrix::multiply_each([&self.gate, &self.up], &normed, true);
        let kept = [round_to(self.gate.precision(), &mut gate), round_to(self.up.precision(), &mut up)];
        Ok(([gate, up], kept))
    }
}

impl CustomOp1 for FeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let ([mut hidden, up], kept) = self.inner(x)?;
        if self.keep {
            *self.kept.lock().expect("no holder of the lock panics") = Some(kept);
        }
        for_pieces(&mut hidden, PIECE, |i, hidden| activate(hidden, &up[i * PIECE..]));
        let mut y = self.down.multiply(&hidden, true);
        add_all(&mut y, x);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x_values, grad) = (Values::of(x)?, Values::of(&grad)?);
        let kept = self.kept.lock().expect("no holder of the lock panics").take();
        let [mut gate, mut up] = match kept {
            Some(kept) => kept.map(kept::Values::widened),
            None => self.inner(&x_values)?.0,
        };
        let hidden = self.down.multiply(&grad, false);
        for_pieces2((&mut gate, PIECE), (&mut up, PIECE), |i, gate, up| gradients(gate, up, &hidden[i * PIECE..]));
        drop(hidden);
        let mut normed = self.gate.multiply(&gate, false);
        self.up.add_multiply(&up, false, &mut normed);
        let mut dx = rms_gradient(&x_values, &Values::of(&self.norm)?, &normed, self.eps);
        add_all(&mut dx, &grad);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
