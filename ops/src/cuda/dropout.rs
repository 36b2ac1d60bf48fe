//! Dropout whose draws are made where the values lie.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::launch::{DROPOUT, grid, launch};
use super::place::{Place, contiguous, device, result, suffix};
use super::{not_on_cpu, on_device, unwritten};
use crate::dropout::{BLOCK, Draw};

/// Of a block of the grid; each takes a block of words.
const THREADS: usize = 256;

/// `dropout::Source` of dropout.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Source {
    key: [u32; 8],
    stream: [u32; 2],
    block: u64,
}

// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for Source {}

/// As [`crate::dropout`], with the values kept that it keeps on the processor.
pub fn dropout(x: &Tensor, draw: &Draw) -> Result<Option<Tensor>> {
    if !on_device(&[x]) {
        return Ok(None);
    }
    let key = std::array::from_fn(|word| u32::from_le_bytes(std::array::from_fn(|byte| draw.seed[word * 4 + byte])));
    let source = Source { key, stream: [draw.stream as u32, (draw.stream >> 32) as u32], block: draw.block };
    contiguous(x)?.apply_op1(Dropout { source, threshold: draw.threshold, scale: draw.scale }).map(Some)
}

struct Dropout {
    source: Source,
    threshold: u32,
    scale: f32,
}

impl Dropout {
    fn apply(&self, device: &CudaDevice, x: &Place, y: &Place) -> Result<()> {
        let count = x.layout.shape().elem_count();
        launch!(
            device,
            DROPOUT,
            &format!("dropout_{}", suffix(x.dtype)?),
            grid((count.div_ceil(THREADS * BLOCK), 1, 1), THREADS as u32, 0),
            x.address,
            y.address,
            self.source,
            self.threshold,
            self.scale,
            count as i64,
        );
        Ok(())
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("dropout")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (y, place) = result(x.device(), layout.shape(), x.dtype())?;
        self.apply(x.device(), &Place::new(x, layout)?, &place)?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (grad, dx) = (contiguous(grad)?, unwritten(x.shape(), x, x.dtype())?);
        self.apply(&device(x)?, &Place::of(&grad)?, &Place::of(&dx)?)?;
        Ok(Some(dx))
    }
}
