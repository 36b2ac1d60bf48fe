//! AdamW over all trained tensors in one launch.

use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr};
use candle_core::{CudaDevice, DType, Error, Result, Tensor, Var, bail};

use super::launch::{ADAMW, grid, launch};
use super::place::{Place, contiguous, device};
use super::unwritten;
use crate::transfers;

const THREADS: u32 = 256;

/// Values of a block.
const VALUES: usize = 4 * THREADS as usize;

/// One trained tensor (f32) with its moments, all on one CUDA device.
#[derive(Debug)]
struct Trained {
    var: Var,
    first: Tensor,
    second: Tensor,
    lr_factor: f32,
    decay: f32,
}

/// AdamW as `torch.optim.AdamW`, with values, moments, norm and its limit on the device.
#[derive(Debug)]
pub struct AdamW {
    trained: Vec<Trained>,
    betas: (f64, f64),
    eps: f64,
    steps: i32,
}

/// `adamw::Slot` of adamw.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Slot {
    value: u64,
    first: u64,
    second: u64,
    grad: u64,
    narrow: u64,
    count: i64,
    first_block: i32,
    lr_factor: f32,
    decay: f32,
    unused: i32,
}

/// `adamw::Step`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Step {
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    correction1: f32,
    correction2: f32,
}

// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for Slot {}
// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for Step {}

impl AdamW {
    /// An optimiser of tensors that are yet to be added.
    pub fn new(betas: (f64, f64), eps: f64) -> Self {
        AdamW { trained: Vec::new(), betas, eps, steps: 0 }
    }

    /// Adds a tensor that learns at `lr_factor` times the rate with weight decay `decay`. Errors unless it is f32 on a CUDA device.
    pub fn add(&mut self, var: &Var, lr_factor: f64, decay: f64) -> Result<()> {
        if var.dtype() != DType::F32 || !var.device().is_cuda() || !var.is_contiguous() {
            bail!("AdamW on the device: expected contiguous f32 on a CUDA device, found {:?} on {:?}", var.dtype(), var.device());
        }
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        let (first, second) = (zeros()?, zeros()?);
        self.trained.push(Trained { var: var.clone(), first, second, lr_factor: lr_factor as f32, decay: decay as f32 });
        Ok(())
    }

    /// Steps taken, and each tensor's first and second moment in the order of [`AdamW::add`].
    pub fn state(&self) -> (u64, impl Iterator<Item = [&Tensor; 2]>) {
        (self.steps as u64, self.trained.iter().map(|trained| [&trained.first, &trained.second]))
    }

    /// Goes on after `steps` steps with these moments of the host's memory, f32, in the order of [`AdamW::add`].
    pub fn restore(&mut self, steps: u64, moments: Vec<[Tensor; 2]>) -> Result<()> {
        if moments.len() != self.trained.len() {
            bail!("AdamW: {} tensors, moments of {}", self.trained.len(), moments.len());
        }
        for (trained, [first, second]) in self.trained.iter_mut().zip(moments) {
            if first.dims() != trained.var.dims() || second.dims() != trained.var.dims() || first.dtype() != DType::F32 {
                bail!("AdamW: moments {:?} and {:?} of a tensor {:?}", first.shape(), second.shape(), trained.var.shape());
            }
            let there = |moment: &Tensor| contiguous(&transfers::to_device(moment, trained.var.device())?);
            (trained.first, trained.second) = (there(&first)?, there(&second)?);
        }
        self.steps = i32::try_from(steps).map_err(Error::wrap)?;
        Ok(())
    }

    /// One step at rate `lr` with a gradient (f32) for each tensor in the order of [`AdamW::add`], none for one that keeps its value and
    /// moments. All gradients together are scaled to a norm of at most `limit`. Returns (2) on the device: the norm, and the scale taken.
    pub fn step(&mut self, gradients: &[Option<Tensor>], lr: f64, limit: Option<f64>) -> Result<Tensor> {
        let gradients: Vec<Option<Tensor>> =
            gradients.iter().map(|gradient| gradient.as_ref().map(contiguous).transpose()).collect::<Result<_>>()?;
        let (slots, blocks) = self.slots(&gradients)?;
        let Some(like) = gradients.iter().flatten().next() else { bail!("AdamW: no tensor has a gradient") };
        self.steps += 1;
        let device = device(like)?;
        transfers::note_upload();
        let (count, table) = (slots.len() as i32, device.clone_htod(&slots)?);
        let slots = table.device_ptr(&device.cuda_stream()).0;
        let norm = gradient_norm(&device, like, (slots, count), blocks, limit)?;
        let (beta1, beta2) = self.betas;
        let step = Step {
            lr: lr as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: self.eps as f32,
            correction1: (1.0 - beta1.powi(self.steps)) as f32,
            correction2: (1.0 - beta2.powi(self.steps)).sqrt() as f32,
        };
        launch!(&device, ADAMW, "adamw_update", grid((blocks, 1, 1), THREADS, 0), slots, count, Place::of(&norm)?.address, step);
        Ok(norm)
    }

    /// The kernels' table of the tensors that have a gradient, and the number of blocks for all.
    fn slots(&self, gradients: &[Option<Tensor>]) -> Result<(Vec<Slot>, usize)> {
        let (mut slots, mut blocks) = (Vec::new(), 0);
        for (trained, gradient) in self.trained.iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            if gradient.dims() != trained.var.dims() || gradient.dtype() != DType::F32 {
                bail!("AdamW: a gradient is {:?} {:?}, its tensor {:?} f32", gradient.shape(), gradient.dtype(), trained.var.shape());
            }
            let address = |tensor: &Tensor| Place::of(tensor).map(|place| place.address);
            let count = gradient.elem_count();
            slots.push(Slot {
                value: address(&trained.var)?,
                first: address(&trained.first)?,
                second: address(&trained.second)?,
                grad: address(gradient)?,
                narrow: 0,
                count: count as i64,
                first_block: blocks as i32,
                lr_factor: trained.lr_factor,
                decay: trained.decay,
                unused: 0,
            });
            blocks += count.div_ceil(VALUES);
        }
        Ok((slots, blocks))
    }
}

fn gradient_norm(device: &CudaDevice, like: &Tensor, (slots, count): (u64, i32), blocks: usize, limit: Option<f64>) -> Result<Tensor> {
    let (partials, norm) = (unwritten(blocks, like, DType::F32)?, unwritten(2, like, DType::F32)?);
    let (sums, result) = (Place::of(&partials)?.address, Place::of(&norm)?.address);
    launch!(device, ADAMW, "adamw_squares", grid((blocks, 1, 1), THREADS, 0), slots, count, sums);
    launch!(device, ADAMW, "adamw_limit", grid((1, 1, 1), THREADS, 0), sums, blocks as i32, limit.unwrap_or(0.0) as f32, result);
    Ok(norm)
}
