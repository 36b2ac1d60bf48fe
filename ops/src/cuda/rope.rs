//! Rotary position embedding.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use super::launch::{ROPE, grid, launch};
use super::place::{Place, contiguous, device, result, rows, suffix};
use super::{not_on_cpu, on_device, unwritten};

const THREADS: usize = 256;

/// As [`crate::rope`], for D a multiple of 8; the tables may be of another type.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Option<Tensor>> {
    let (_, _, l, d) = x.dims4()?;
    if !on_device(&[x]) || !d.is_multiple_of(8) || cos.dims() != [l, d / 2] || sin.dims() != cos.dims() {
        return Ok(None);
    }
    let table = |table: &Tensor| contiguous(&table.detach().to_dtype(DType::F32)?);
    rows(x)?.apply_op1(Rope { cos: table(cos)?, sin: table(sin)? }).map(Some)
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `direction` 1 turns, -1 turns back.
    fn turn(&self, device: &CudaDevice, x: &Place, y: &Place, direction: f32) -> Result<()> {
        let (b, h, l, d) = x.layout.shape().dims4()?;
        let count = b * h * l * d / 8;
        launch!(
            device,
            ROPE,
            &format!("rope_{}", suffix(x.dtype)?),
            grid((count.div_ceil(THREADS), 1, 1), THREADS as u32, 0),
            x.heads(),
            y.heads(),
            Place::of(&self.cos)?.address,
            Place::of(&self.sin)?.address,
            0u64,
            h as i32,
            l as i32,
            d as i32,
            count as i64,
            direction,
        );
        Ok(())
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("rope")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (y, place) = result(x.device(), layout.shape(), x.dtype())?;
        self.turn(x.device(), &Place::new(x, layout)?, &place, 1.0)?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (grad, dx) = (rows(grad)?, unwritten(x.shape(), x, x.dtype())?);
        self.turn(&device(x)?, &Place::of(&grad)?, &Place::of(&dx)?, -1.0)?;
        Ok(Some(dx))
    }
}
