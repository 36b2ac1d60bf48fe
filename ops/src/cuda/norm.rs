//! Root-mean-square and layer norm.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::launch::{NORM, grid, launch};
use super::place::{Place, contiguous, device, result, suffix};
use super::{not_on_cpu, on_device, unwritten};

const THREADS: u32 = 256;

/// Groups of rows whose weight gradients are summed apart, at most.
const GROUPS: usize = 256;

/// Layer norm, or root-mean-square norm if not `centred`, over the last axis. x: (..., C), weight: (C), bias: (C) -> (..., C).
/// None unless C is a multiple of 4.
pub fn norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, centred: bool, eps: f64) -> Result<Option<Tensor>> {
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    if !on_device(&tensors) || !weight.elem_count().is_multiple_of(4) {
        return Ok(None);
    }
    let op = Norm { centred, eps: eps as f32 };
    let (x, weight) = (contiguous(x)?, contiguous(weight)?);
    match bias {
        None => x.apply_op2(&weight, op).map(Some),
        Some(bias) => x.apply_op3(&weight, &contiguous(bias)?, op).map(Some),
    }
}

#[derive(Clone, Copy)]
struct Norm {
    centred: bool,
    eps: f32,
}

/// Gradients of x, the weight and the bias.
type Gradients = (Tensor, Option<Tensor>, Option<Tensor>);

impl Norm {
    fn kernel(self, direction: &str, dtype: DType) -> Result<String> {
        let kind = if self.centred { "layer" } else { "rms" };
        Ok(format!("{kind}_norm_{direction}_{}", suffix(dtype)?))
    }

    fn forward(self, x: (&CudaStorage, &Layout), weight: Place, bias: u64) -> Result<(CudaStorage, Shape)> {
        let (shape, width) = (x.1.shape(), weight.layout.shape().elem_count());
        if shape.dims().last() != Some(&width) {
            bail!("norm over the last axis: x is {shape:?}, weight ({width})");
        }
        let (y, place) = result(x.0.device(), shape, x.0.dtype())?;
        let name = self.kernel("forward", x.0.dtype())?;
        let blocks = grid((shape.elem_count() / width, 1, 1), THREADS, 0);
        let (from, to) = (Place::new(x.0, x.1)?.address, place.address);
        launch!(x.0.device(), NORM, &name, blocks, from, weight.address, bias, to, width as i32, self.eps);
        Ok((y, shape.clone()))
    }

    /// The weight's and the bias's gradients only if the weight is trained.
    fn backward(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, grad: &Tensor) -> Result<Gradients> {
        let (width, trained) = (weight.elem_count(), weight.track_op() || bias.is_some_and(|bias| bias.track_op()));
        let rows = x.elem_count() / width;
        let group = rows.div_ceil(GROUPS);
        let groups = rows.div_ceil(group);
        let (grad, dx) = (contiguous(grad)?, unwritten(x.shape(), x, x.dtype())?);
        let partials = trained.then(|| unwritten((groups, 2, width), x, DType::F32)).transpose()?;
        let sums = partials.as_ref().map(Place::of).transpose()?.map_or(0, |place| place.address);
        let shared_bytes = if trained { 2 * width as u32 * 4 } else { 0 };
        launch!(
            &device(x)?,
            NORM,
            &self.kernel("backward", x.dtype())?,
            grid((groups, 1, 1), THREADS, shared_bytes),
            Place::of(x)?.address,
            Place::of(weight)?.address,
            Place::of(&grad)?.address,
            Place::of(&dx)?.address,
            sums,
            rows as i32,
            group as i32,
            width as i32,
            self.eps,
        );
        if !trained {
            return Ok((dx, None, None));
        }
        let (dw, db) = (unwritten(width, x, x.dtype())?, bias.map(|_| unwritten(width, x, x.dtype())).transpose()?);
        let bias_address = db.as_ref().map(Place::of).transpose()?.map_or(0, |place| place.address);
        let (name, blocks) = (format!("norm_sum_{}", suffix(x.dtype())?), grid((width.div_ceil(THREADS as usize), 1, 1), THREADS, 0));
        launch!(&device(x)?, NORM, &name, blocks, sums, Place::of(&dw)?.address, bias_address, groups as i32, width as i32);
        Ok((dx, Some(dw), db))
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        if self.centred { "layer-norm" } else { "rms-norm" }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(CustomOp2::name(self))
    }

    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, weight: &CudaStorage, wl: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward((x, xl), Place::new(weight, wl)?, 0)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.backward(x, weight, None, grad)?;
        Ok((Some(dx), dw))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        CustomOp2::name(self)
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(CustomOp3::name(self))
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
        self.forward((x, xl), Place::new(weight, wl)?, Place::new(bias, bl)?.address)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, db) = self.backward(x, weight, Some(bias), grad)?;
        Ok((Some(dx), dw, db))
    }
}
