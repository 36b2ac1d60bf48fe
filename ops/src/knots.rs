//! Nodes of the graph that reach any number of tensors, where candle's operations have three arguments at most.
//!
//! A node's last argument is a string of knots, each an operation on the knot before it and one tensor, a single value in size:
//!
//! ```text
//! x1 - knot - knot - knot - node - y
//!             |      |
//!             x2     weight
//! ```
//!
//! The node's backward pass lays the gradients of all tensors out; each knot's backward pass, which comes later, hands its own on.

use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

/// The gradients of the tensors on a string, in their order, between the node's backward pass and the knots'.
#[derive(Clone, Default)]
pub struct Gradients(Arc<Mutex<Vec<Option<Tensor>>>>);

impl Gradients {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Tensor>>> {
        self.0.lock().expect("no holder of the lock panics")
    }

    /// Lays out the gradients of all tensors on the string.
    pub fn set(&self, gradients: Vec<Option<Tensor>>) {
        *self.lock() = gradients;
    }
}

/// A string of `tensors`; of none, a single zero on the processor.
pub fn tie(tensors: &[Tensor], gradients: &Gradients) -> Result<Tensor> {
    let Some((first, others)) = tensors.split_first() else { return Tensor::zeros(1, DType::F32, &Device::Cpu) };
    let knot = |index| Knot { index, gradients: gradients.clone() };
    let mut string = first.apply_op1(knot(0))?;
    for (index, tensor) in others.iter().enumerate() {
        string = string.apply_op2(tensor, knot(index + 1))?;
    }
    Ok(string)
}

/// A single zero beside `storage`.
pub fn zero<S: BackendStorage<Device: BackendDevice<Storage = S>>>(storage: &S) -> Result<(S, Shape)> {
    Ok((storage.device().zeros_impl(&Shape::from(1), storage.dtype())?, Shape::from(1)))
}

struct Knot {
    index: usize,
    gradients: Gradients,
}

impl Knot {
    fn own(&self) -> Option<Tensor> {
        self.gradients.lock().get_mut(self.index)?.take()
    }
}

impl CustomOp1 for Knot {
    fn name(&self) -> &'static str {
        "first-knot"
    }

    fn cpu_fwd(&self, x: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        zero(x)
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        zero(x)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.own())
    }
}

impl CustomOp2 for Knot {
    fn name(&self) -> &'static str {
        "knot"
    }

    fn cpu_fwd(&self, string: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        zero(string)
    }

    fn cuda_fwd(&self, string: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        zero(string)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), self.own()))
    }
}
