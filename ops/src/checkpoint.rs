//! Blocks that are run again in the backward pass instead of keeping what they computed (Chen et al., 2016, "Training Deep Nets with
//! Sublinear Memory Cost").
//!
//! The block's backward pass runs the block again and takes all gradients, which go to their tensors by a string of knots ([`crate::knots`]).

use std::fmt::Display;
use std::sync::Mutex;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Error, Layout, Result, Shape, Storage, Tensor, Var, bail};

use crate::kept::Kept;
use crate::knots::{Gradients, tie, zero};

/// `block(inputs, rng)` with nothing of its inside kept: the backward pass runs it once more. Inputs and output of any shape.
///
/// Gradients go to the inputs and to every variable that the block uses. The block must give the same whenever it gets the same inputs and
/// the same state of `rng`, which is left where the first run leaves it. Inside, products with a frozen [`crate::Matrix`] that multiplies in
/// bf16 are rounded to it, as [`checkpoint_keeping_products`] keeps them: both give the same values and gradients to the bit.
pub fn checkpoint<R, E, F>(inputs: &[&Tensor], rng: Option<&mut R>, block: F) -> std::result::Result<Tensor, E>
where
    R: Clone + Send + Sync + 'static,
    E: From<Error> + Display + Send + Sync + 'static,
    F: Fn(&[Tensor], Option<&mut R>) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
{
    let start = rng.as_deref().cloned();
    let (y, kept) = Kept::nothing(|| block(&detached(inputs), rng));
    attach(inputs, y?, kept, move |leaves| block(leaves, start.clone().as_mut()).map_err(Error::wrap))
}

/// As [`checkpoint`], but what products with a frozen [`crate::Matrix`] and attention give is kept, in bf16 where the matrix multiplies so:
/// the second run computes only what is cheap.
pub fn checkpoint_keeping_products<R, E, F>(inputs: &[&Tensor], rng: Option<&mut R>, block: F) -> std::result::Result<Tensor, E>
where
    R: Clone + Send + Sync + 'static,
    E: From<Error> + Display + Send + Sync + 'static,
    F: Fn(&[Tensor], Option<&mut R>) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
{
    let start = rng.as_deref().cloned();
    let (y, kept) = Kept::fill(|| block(&detached(inputs), rng));
    attach(inputs, y?, kept, move |leaves| block(leaves, start.clone().as_mut()).map_err(Error::wrap))
}

fn detached(inputs: &[&Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|input| input.detach()).collect()
}

/// Puts the block, whose first run gave `y`, into the graph.
fn attach<E, F>(inputs: &[&Tensor], y: Tensor, kept: Kept, block: F) -> std::result::Result<Tensor, E>
where
    E: From<Error>,
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
{
    // nothing but variables starts a graph here, so that every one that the block uses is among its nodes
    let weights = y.sorted_nodes().into_iter().filter(|node| node.is_variable()).cloned();
    let inputs: Vec<Tensor> = inputs.iter().map(|input| (*input).clone()).collect();
    let tied: Vec<Tensor> = inputs.iter().filter(|input| input.track_op()).cloned().chain(weights).collect();
    if tied.is_empty() {
        return Ok(y);
    }
    let gradients = Gradients::default();
    let string = tie(&tied, &gradients)?;
    Ok(string.apply_op1(Block { y: Mutex::new(Some(y.detach())), inputs, tied, kept, block, gradients })?)
}

/// The values that `layout` shows of `storage`.
fn copied<S: BackendStorage<Device: BackendDevice<Storage = S>>>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    let mut copy = storage.device().zeros_impl(layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, layout.shape().clone()))
}

struct Block<F> {
    /// The first run's output, until the graph has a copy.
    y: Mutex<Option<Tensor>>,
    inputs: Vec<Tensor>,
    /// The inputs that take gradients, then the variables.
    tied: Vec<Tensor>,
    kept: Kept,
    block: F,
    gradients: Gradients,
}

impl<F: Fn(&[Tensor]) -> Result<Tensor>> Block<F> {
    fn output(&self) -> Tensor {
        self.y.lock().expect("no holder of the lock panics").take().expect("candle runs an operation once")
    }

    /// Runs the block again on leaves of its own; the gradients of `tied` for the output's gradient.
    fn backward(&self, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let leaf = |input: &Tensor| if input.track_op() { Ok(Var::from_tensor(&input.detach())?.into_inner()) } else { Ok(input.clone()) };
        let leaves: Vec<Tensor> = self.inputs.iter().map(leaf).collect::<Result<_>>()?;
        let y = self.kept.replay(|| (self.block)(&leaves))?;
        let mut store = y.apply_op1(Upstream(grad.clone()))?.backward()?;
        let tracked: Vec<&Tensor> = leaves.iter().filter(|leaf| leaf.is_variable()).collect();
        let weights = &self.tied[tracked.len()..];
        // candle wants a gradient for each input, one that the block does not use included
        let mut of_input = |leaf: &&Tensor| Ok(Some(store.remove(leaf).map_or_else(|| leaf.zeros_like(), Ok)?));
        let mut gradients = tracked.iter().map(&mut of_input).collect::<Result<Vec<_>>>()?;
        gradients.extend(weights.iter().map(|weight| store.remove(weight)));
        Ok(gradients)
    }
}

impl<F: Fn(&[Tensor]) -> Result<Tensor>> CustomOp1 for Block<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.output();
        let (storage, layout) = y.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("checkpoint: the inputs are on the CPU, the block's output is not") };
        copied(storage, layout)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = self.output();
        let (storage, layout) = y.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("checkpoint: the inputs are on a GPU, the block's output is not") };
        copied(storage, layout)
    }

    fn bwd(&self, string: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.gradients.set(self.backward(grad)?);
        Ok(Some(string.zeros_like()?))
    }
}

/// A loss whose gradient is known beforehand.
struct Upstream(Tensor);

impl CustomOp1 for Upstream {
    fn name(&self) -> &'static str {
        "checkpoint-upstream"
    }

    fn cpu_fwd(&self, y: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        zero(y)
    }

    fn cuda_fwd(&self, y: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        zero(y)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
