//! Activations, each one pass forward and one pass backward.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{PIECE, Values, fused, made_in_pieces, made_in_pieces2, rows_a_piece, values};
use crate::simd::{normal_cdf, normal_density, sigmoid, vectorised};

/// GELU with the exact error function, elementwise. Any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if fused(&[x]) { x.contiguous()?.apply_op1(Gelu) } else { composed::gelu(x) }
}

/// `silu(gate) * up`, elementwise. Both of one shape (LLaMA's feed-forward).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    or_cuda!(crate::cuda::gated("swiglu", gate, up));
    if !fused(&[gate, up]) {
        return composed::swiglu(gate, up);
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Gated { name: "swiglu", forward: silu_gate, backward: silu_gate_gradients })
}

/// `gelu(gate) * value`, elementwise. Both of one shape (CT-ViT's feed-forward).
pub fn geglu(value: &Tensor, gate: &Tensor) -> Result<Tensor> {
    or_cuda!(crate::cuda::gated("geglu", gate, value));
    if !fused(&[value, gate]) {
        return composed::geglu(value, gate);
    }
    gate.contiguous()?.apply_op2(&value.contiguous()?, Gated { name: "geglu", forward: gelu_gate, backward: gelu_gate_gradients })
}

/// As [`geglu`] of the two halves of the last axis, the value before the gate. both: (..., 2C) -> (..., C).
pub fn geglu_halves(both: &Tensor) -> Result<Tensor> {
    if fused(&[both]) {
        return both.contiguous()?.apply_op1(GegluHalves);
    }
    let half = both.dim(D::Minus1)? / 2;
    geglu(&both.narrow(D::Minus1, 0, half)?.contiguous()?, &both.narrow(D::Minus1, half, half)?.contiguous()?)
}

vectorised! {
    /// GELU of y + bias in y's place; rows are as long as `bias`.
    pub(crate) fn gelu_sums(y: &mut [f32], bias: &[f32]) {
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, &b) in y.iter_mut().zip(bias) {
                let x = *y + b;
                *y = x * normal_cdf(x);
            }
        }
    }

    fn gelu_values(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal_cdf(x);
        }
    }

    fn gelu_gradient(x: &[f32], grad: &[f32], dx: &mut [f32]) {
        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(grad) {
            *dx = g * (normal_cdf(x) + x * normal_density(x));
        }
    }

    pub(crate) fn gelu_gate(gate: &[f32], value: &[f32], y: &mut [f32]) {
        for ((y, &gate), &value) in y.iter_mut().zip(gate).zip(value) {
            *y = gate * normal_cdf(gate) * value;
        }
    }

    fn gelu_gate_gradients(gate: &[f32], value: &[f32], grad: &[f32], dgate: &mut [f32], dvalue: &mut [f32]) {
        for ((((dgate, dvalue), &gate), &value), &g) in dgate.iter_mut().zip(dvalue).zip(gate).zip(value).zip(grad) {
            let cdf = normal_cdf(gate);
            *dgate = g * value * (cdf + gate * normal_density(gate));
            *dvalue = g * gate * cdf;
        }
    }

    fn silu_gate(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(gate) * up;
        }
    }

    fn silu_gate_gradients(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((dgate, dup), &gate), &up), &g) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(grad) {
            let s = sigmoid(gate);
            *dgate = g * up * s * (1.0 + gate * (1.0 - s));
            *dup = g * gate * s;
        }
    }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let y = made_in_pieces(x.len(), PIECE, |i, y| gelu_values(&x[i * PIECE..], y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x_values, grad) = (Values::of(x)?, Values::of(&grad)?);
        let dx = made_in_pieces(x_values.len(), PIECE, |i, dx| gelu_gradient(&x_values[i * PIECE..], &grad[i * PIECE..], dx));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct GegluHalves;

impl CustomOp1 for GegluHalves {
    fn name(&self) -> &'static str {
        "geglu-halves"
    }

    fn cpu_fwd(&self, both: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut().filter(|last| **last > 0 && last.is_multiple_of(2)) else {
            bail!("geglu: the last axis of {:?} has no two halves", layout.shape());
        };
        *last /= 2;
        let (half, both) = (*last, values(both, layout)?);
        let piece = rows_a_piece(half) * half;
        let y = made_in_pieces(both.len() / 2, piece, |i, y| {
            for (y, both) in y.chunks_exact_mut(half).zip(both[2 * i * piece..].chunks_exact(2 * half)) {
                gelu_gate(&both[half..], &both[..half], y);
            }
        });
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, both: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (half, grad) = (y.dim(D::Minus1)?, grad.contiguous()?);
        let (values, grad) = (Values::of(both)?, Values::of(&grad)?);
        let piece = rows_a_piece(2 * half) * half;
        let gradient = made_in_pieces(values.len(), 2 * piece, |i, gradient| {
            let rows = values[2 * i * piece..].chunks_exact(2 * half).zip(grad[i * piece..].chunks_exact(half));
            for (gradient, (both, grad)) in gradient.chunks_exact_mut(2 * half).zip(rows) {
                let (dvalue, dgate) = gradient.split_at_mut(half);
                gelu_gate_gradients(&both[half..], &both[..half], grad, dgate, dvalue);
            }
        });
        Ok(Some(Tensor::from_vec(gradient, both.shape(), both.device())?))
    }
}

/// (gate, value, grad, dgate, dvalue).
type GateGradients = fn(&[f32], &[f32], &[f32], &mut [f32], &mut [f32]);

/// `act(gate) * value`; `forward` takes (gate, value, y).
struct Gated {
    name: &'static str,
    forward: fn(&[f32], &[f32], &mut [f32]),
    backward: GateGradients,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, value: &CpuStorage, vl: &Layout) -> Result<(CpuStorage, Shape)> {
        if gl.shape() != vl.shape() {
            bail!("{}: the gate is {:?}, the value {:?}", self.name, gl.shape(), vl.shape());
        }
        let (gate, value) = (values(gate, gl)?, values(value, vl)?);
        let y = made_in_pieces(gate.len(), PIECE, |i, y| (self.forward)(&gate[i * PIECE..], &value[i * PIECE..], y));
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, value: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (g, v, grad) = (Values::of(gate)?, Values::of(value)?, Values::of(&grad)?);
        let (dgate, dvalue) = made_in_pieces2((g.len(), PIECE), (g.len(), PIECE), |i, dgate, dvalue| {
            let start = i * PIECE;
            (self.backward)(&g[start..], &v[start..], &grad[start..], dgate, dvalue);
        });
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(dgate)?), Some(tensor(dvalue)?)))
    }
}
