//! Depthwise 3-D convolution.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::launch::{CONV3D, grid, launch};
use super::place::{Place, contiguous, device, result, suffix};
use super::{not_on_cpu, on_device, unwritten};

/// Channels and rows of a block, one thread each.
const CHANNELS: usize = 32;
const ROWS: usize = 8;

const TAPS: usize = 27;

/// Groups of rows whose weight gradients are summed apart, at most.
const GROUPS: usize = 256;

/// `conv3d::Size` of conv3d.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Size {
    batch: i32,
    depth: i32,
    height: i32,
    width: i32,
    channels: i32,
    front: i32,
}

// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for Size {}

impl Size {
    fn new(x: &Shape, front: usize) -> Result<Self> {
        let (b, t, h, w, c) = x.dims5()?;
        let [batch, depth, height, width, channels, front] = [b, t, h, w, c, front].map(|n| n as i32);
        Ok(Size { batch, depth, height, width, channels, front })
    }

    /// Rows along the last spatial axis.
    fn rows(self) -> usize {
        (self.batch * self.depth * self.height) as usize
    }

    fn blocks(self, rows: usize) -> LaunchConfig {
        let grid_dim = ((self.channels as usize).div_ceil(CHANNELS) as u32, rows as u32, 1);
        LaunchConfig { grid_dim, block_dim: (CHANNELS as u32, ROWS as u32, 1), shared_mem_bytes: 0 }
    }
}

/// As [`crate::depthwise_conv3d`], with `front` zeros before the first plane.
pub fn depthwise_conv3d(x: &Tensor, weight: &Tensor, bias: &Tensor, front: usize) -> Result<Option<Tensor>> {
    if !on_device(&[x, weight, bias]) {
        return Ok(None);
    }
    contiguous(x)?.apply_op3(&contiguous(weight)?, &contiguous(bias)?, Depthwise { front }).map(Some)
}

struct Depthwise {
    front: usize,
}

/// Correlates with the taps as they are, or reversed, which gives dx from dy. `bias` may be 0, none.
fn correlate(device: &CudaDevice, [x, weight]: [&Place; 2], bias: u64, y: &Place, (size, reversed): (Size, bool)) -> Result<()> {
    let (name, blocks) = (format!("conv3d_{}", suffix(x.dtype)?), size.blocks(size.rows().div_ceil(ROWS)));
    launch!(device, CONV3D, &name, blocks, x.address, weight.address, bias, y.address, size, i32::from(reversed));
    Ok(())
}

/// dL/dweight (C, 1, 3, 3, 3) and dL/dbias (C).
fn weight_gradients(x: &Tensor, weight: &Tensor, grad: &Tensor, size: Size) -> Result<(Tensor, Tensor)> {
    let (device, end, channels) = (device(x)?, suffix(x.dtype())?, size.channels as usize);
    let group = size.rows().div_ceil(GROUPS);
    let groups = size.rows().div_ceil(group);
    let partials = unwritten((groups, TAPS + 1, channels), x, DType::F32)?;
    let (dw, db) = (unwritten(weight.shape(), x, x.dtype())?, unwritten(channels, x, x.dtype())?);
    let (from, grad, sums) = (Place::of(x)?.address, Place::of(grad)?.address, Place::of(&partials)?.address);
    launch!(&device, CONV3D, &format!("conv3d_weight_{end}"), size.blocks(groups), from, grad, sums, size, group as i32);
    let (blocks, to) = (grid((((TAPS + 1) * channels).div_ceil(256), 1, 1), 256, 0), Place::of(&dw)?.address);
    launch!(&device, CONV3D, &format!("conv3d_sum_{end}"), blocks, sums, to, Place::of(&db)?.address, groups as i32, channels as i32);
    Ok((dw, db))
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise-conv3d"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("depthwise-conv3d")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        weight: &CudaStorage,
        wl: &Layout,
        bias: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let c = xl.shape().dims5()?.4;
        if wl.dims() != [c, 1, 3, 3, 3] || bl.dims() != [c] {
            bail!("depthwise conv: x is {:?}, weight {:?}, bias {:?}", xl.shape(), wl.shape(), bl.shape());
        }
        let (y, place) = result(x.device(), xl.shape(), x.dtype())?;
        let bias = Place::new(bias, bl)?.address;
        let size = Size::new(xl.shape(), self.front)?;
        correlate(x.device(), [&Place::new(x, xl)?, &Place::new(weight, wl)?], bias, &place, (size, false))?;
        Ok((y, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = contiguous(grad)?;
        let mut gradients = (None, None, None);
        if x.track_op() {
            let dx = unwritten(x.shape(), x, x.dtype())?;
            let adjoint = (Size::new(x.shape(), 2 - self.front)?, true);
            correlate(&device(x)?, [&Place::of(&grad)?, &Place::of(weight)?], 0, &Place::of(&dx)?, adjoint)?;
            gradients.0 = Some(dx);
        }
        if weight.track_op() || bias.track_op() {
            let (dw, db) = weight_gradients(x, weight, &grad, Size::new(x.shape(), self.front)?)?;
            (gradients.1, gradients.2) = (Some(dw), Some(db));
        }
        Ok(gradients)
    }
}
