//! Blocks that are run again in the backward pass instead of keeping what they computed (Chen et al., 2016, "Training Deep Nets with
//! Sublinear Memory Cost").
//!
//! The block's backward pass runs the block again and takes all gradients, which go to their tensors by a string of knots ([`crate::knots`]).

use std::fmt::Display;
use std::iter::once;
use std::sync::Mutex;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Device, Error, Layout, Result, Shape, Storage, Tensor, Var, bail};

use crate::cpu::{Values, fused};
use crate::kept::{self, Kept};
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
    attach(inputs, rng, vec![block], |block, inputs, rng| Kept::nothing(|| block(inputs, rng)))
}

/// [`checkpoint`] of layers one after the other: the first of the inputs is the first layer's, what a layer gives the next one's, all others go to each.
///
/// The layers are one operation, which gives up what it keeps of them from the last to the first: at no time it holds the inputs of all and the
/// gradients of all. What a layer gives is kept in half of its bytes where it is rounded for that, as [`crate::closing_feed_forward`] rounds.
pub fn checkpoint_layers<R, E, F>(inputs: &[&Tensor], rng: Option<&mut R>, layers: Vec<F>) -> std::result::Result<Tensor, E>
where
    R: Clone + Send + Sync + 'static,
    E: From<Error> + Display + Send + Sync + 'static,
    F: Fn(&[Tensor], Option<&mut R>) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
{
    attach(inputs, rng, layers, |layer, inputs, rng| Kept::nothing(|| layer(inputs, rng)))
}

/// As [`checkpoint`], but what products with a frozen [`crate::Matrix`] and attention give is kept, in bf16 where the matrix multiplies so:
/// the second run computes only what is cheap.
pub fn checkpoint_keeping_products<R, E, F>(inputs: &[&Tensor], rng: Option<&mut R>, block: F) -> std::result::Result<Tensor, E>
where
    R: Clone + Send + Sync + 'static,
    E: From<Error> + Display + Send + Sync + 'static,
    F: Fn(&[Tensor], Option<&mut R>) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
{
    attach(inputs, rng, vec![block], |block, inputs, rng| Kept::fill(|| block(inputs, rng)))
}

/// Runs the layers, each by `first`, and puts them into the graph.
fn attach<R, E, F>(
    inputs: &[&Tensor],
    rng: Option<&mut R>,
    layers: Vec<F>,
    first: impl Fn(&F, &[Tensor], Option<&mut R>) -> (std::result::Result<Tensor, E>, Kept),
) -> std::result::Result<Tensor, E>
where
    R: Clone + Send + Sync + 'static,
    E: From<Error> + Display + Send + Sync + 'static,
    F: Fn(&[Tensor], Option<&mut R>) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
{
    let start = rng.as_deref().cloned();
    let inputs: Vec<Tensor> = inputs.iter().map(|input| (*input).clone()).collect();
    if inputs.is_empty() {
        return Err(Error::Msg("checkpoint: a block has an input".to_string()).into());
    }
    let Ran { y, steps, weights } = run(&inputs, rng, &layers, first)?;
    let tied: Vec<Tensor> = inputs.iter().filter(|input| input.track_op()).cloned().chain(weights).collect();
    if tied.is_empty() {
        return Ok(y);
    }
    let gradients = Gradients::default();
    let string = tie(&tied, &gradients)?;
    let again = |layer: F| move |inputs: &[Tensor], rng: Option<&mut R>| layer(inputs, rng).map_err(Error::wrap);
    let layers = layers.into_iter().map(again).collect();
    Ok(string.apply_op1(Layers { y: Mutex::new(Some(y)), inputs, tied, layers, start, steps: Mutex::new(steps), gradients })?)
}

/// What a layer's second run needs beside the inputs that go to all.
struct Step<R> {
    /// `None`: the first input of all.
    input: Option<Input>,
    rng: Option<R>,
    kept: Kept,
}

/// What a layer gave the next one.
enum Input {
    Whole(Tensor),
    Fine(kept::Fine, Shape),
}

impl Input {
    /// `room`: where it may be kept in half of its bytes.
    fn of(x: Tensor, room: kept::Fine) -> Result<Self> {
        if !fused(&[&x]) || !x.is_contiguous() {
            return Ok(Input::Whole(x));
        }
        let fine = room.hold(&Values::of(&x)?);
        Ok(fine.map_or_else(|| Input::Whole(x.clone()), |fine| Input::Fine(fine, x.shape().clone())))
    }

    /// The same as a leaf of a graph.
    fn leaf(self) -> Result<Tensor> {
        match self {
            Input::Whole(x) => Ok(Var::from_tensor(&x)?.into_inner()),
            Input::Fine(fine, shape) => Ok(Var::from_vec(fine.widened(), shape, &Device::Cpu)?.into_inner()),
        }
    }
}

/// What the first run of layers leaves.
struct Ran<R> {
    y: Tensor,
    steps: Vec<Step<R>>,
    /// The variables that the layers use.
    weights: Vec<Tensor>,
}

/// Runs layers one after the other, each by `first`.
fn run<R: Clone, E: From<Error>, F>(
    inputs: &[Tensor],
    mut rng: Option<&mut R>,
    layers: &[F],
    first: impl Fn(&F, &[Tensor], Option<&mut R>) -> (std::result::Result<Tensor, E>, Kept),
) -> std::result::Result<Ran<R>, E> {
    let (mut inputs, mut steps, mut weights): (Vec<Tensor>, _, Vec<Tensor>) =
        (inputs.iter().map(Tensor::detach).collect(), Vec::new(), Vec::new());
    let mut rooms = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let start = rng.as_deref().cloned();
        let (y, kept) = first(layer, &inputs, rng.as_deref_mut());
        let y = y?;
        // nothing but variables starts a graph here, so that every one that the layer uses is among its nodes
        for node in y.sorted_nodes() {
            if node.is_variable() && weights.iter().all(|weight| weight.id() != node.id()) {
                weights.push(node.clone());
            }
        }
        let input = std::mem::replace(&mut inputs[0], y.detach());
        let input = if index > 0 { Some(Input::of(input, rooms.pop().unwrap_or_default())?) } else { None };
        if let (1, Some(Input::Fine(_, shape))) = (index, &input) {
            // all others at once, before the layers leave the heap in pieces
            rooms.extend(layers.iter().skip(2).map(|_| kept::Fine::room(shape.elem_count())));
        }
        steps.push(Step { input, rng: start, kept });
    }
    Ok(Ran { y: inputs.swap_remove(0), steps, weights })
}

/// The values that `layout` shows of `storage`.
fn copied<S: BackendStorage<Device: BackendDevice<Storage = S>>>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    let mut copy = storage.device().zeros_impl(layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, layout.shape().clone()))
}

struct Layers<R, F> {
    /// The first run's output, until the graph has a copy.
    y: Mutex<Option<Tensor>>,
    inputs: Vec<Tensor>,
    /// The inputs that take gradients, then the variables.
    tied: Vec<Tensor>,
    layers: Vec<F>,
    /// Where the generator stood before the first layer.
    start: Option<R>,
    /// Until the backward pass takes them.
    steps: Mutex<Vec<Step<R>>>,
    gradients: Gradients,
}

impl<R: Clone, F: Fn(&[Tensor], Option<&mut R>) -> Result<Tensor>> Layers<R, F> {
    fn output(&self) -> Tensor {
        self.y.lock().expect("no holder of the lock panics").take().expect("candle runs an operation once")
    }

    /// What the first run left; of a backward pass after the first one it is made once more.
    fn steps(&self) -> Result<Vec<Step<R>>> {
        let steps = std::mem::take(&mut *self.steps.lock().expect("no holder of the lock panics"));
        if !steps.is_empty() {
            return Ok(steps);
        }
        let first = |layer: &F, inputs: &[Tensor], rng: Option<&mut R>| Kept::nothing(|| layer(inputs, rng));
        Ok(run::<_, Error, _>(&self.inputs, self.start.clone().as_mut(), &self.layers, first)?.steps)
    }

    /// Runs the layers again on leaves of their own, from the last one on; the gradients of `tied` for the output's gradient.
    fn backward(&self, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let leaf = |input: &Tensor| if input.track_op() { Input::Whole(input.detach()).leaf() } else { Ok(input.clone()) };
        let beside: Vec<Tensor> = self.inputs.iter().skip(1).map(leaf).collect::<Result<_>>()?;
        let weights = &self.tied[self.inputs.iter().filter(|input| input.track_op()).count()..];
        let (mut of_beside, mut of_weights) = (vec![None; beside.len()], vec![None; weights.len()]);
        let (mut grad, mut steps) = (Some(grad.clone()), self.steps()?);
        while let Some(Step { input, mut rng, kept }) = steps.pop() {
            let x = input.map_or_else(|| leaf(&self.inputs[0]), Input::leaf)?;
            let leaves: Vec<Tensor> = once(&x).chain(&beside).cloned().collect();
            let y = kept.replay(|| self.layers[steps.len()](&leaves, rng.as_mut()))?;
            let upstream = grad.take().map_or_else(|| y.zeros_like(), Ok)?;
            let mut store = y.apply_op1(Upstream(Mutex::new(Some(upstream))))?.backward()?;
            grad = store.remove(&x);
            for (sum, leaf) in of_beside.iter_mut().zip(&beside).chain(of_weights.iter_mut().zip(weights)) {
                if let Some(own) = store.remove(leaf) {
                    *sum = Some(sum.take().map_or_else(|| Ok(own.clone()), |sum: Tensor| sum + &own)?);
                }
            }
        }
        // candle wants a gradient for each input, one that no layer uses included
        let of_inputs = once(grad).chain(of_beside).zip(&self.inputs).filter(|(_, input)| input.track_op());
        let of_inputs = of_inputs.map(|(own, input)| own.map_or_else(|| input.zeros_like(), Ok).map(Some));
        of_inputs.chain(of_weights.into_iter().map(Ok)).collect()
    }
}

impl<R: Clone + Send + Sync, F: Fn(&[Tensor], Option<&mut R>) -> Result<Tensor> + Send + Sync> CustomOp1 for Layers<R, F> {
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

/// A loss whose gradient is known beforehand, and given up when it is asked for: candle makes its own of it.
struct Upstream(Mutex<Option<Tensor>>);

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
        Ok(self.0.lock().expect("no holder of the lock panics").take())
    }
}
