//! Gated activations.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::launch::{ACTIVATION, grid, launch};
use super::place::{Place, contiguous, device, result, suffix};
use super::{not_on_cpu, on_device, unwritten};

/// Values of a block.
const VALUES: usize = 4 * 256;

/// `act(gate) * value` for `name` "swiglu" or "geglu". Both of one shape.
pub fn gated(name: &'static str, gate: &Tensor, value: &Tensor) -> Result<Option<Tensor>> {
    if !on_device(&[gate, value]) {
        return Ok(None);
    }
    contiguous(gate)?.apply_op2(&contiguous(value)?, Gated { name }).map(Some)
}

struct Gated {
    name: &'static str,
}

fn blocks(count: usize) -> LaunchConfig {
    grid((count.div_ceil(VALUES), 1, 1), 256, 0)
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu(self.name)
    }

    fn cuda_fwd(&self, gate: &CudaStorage, gl: &Layout, value: &CudaStorage, vl: &Layout) -> Result<(CudaStorage, Shape)> {
        if gl.shape() != vl.shape() {
            bail!("{}: the gate is {:?}, the value {:?}", self.name, gl.shape(), vl.shape());
        }
        let (y, place) = result(gate.device(), gl.shape(), gate.dtype())?;
        let (name, count) = (format!("{}_forward_{}", self.name, suffix(gate.dtype())?), gl.shape().elem_count());
        let (from, other) = (Place::new(gate, gl)?.address, Place::new(value, vl)?.address);
        launch!(gate.device(), ACTIVATION, &name, blocks(count), from, other, place.address, count as i64);
        Ok((y, gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, value: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let like = || unwritten(gate.shape(), gate, gate.dtype());
        let (grad, dgate, dvalue, count) = (contiguous(grad)?, like()?, like()?, gate.elem_count());
        launch!(
            &device(gate)?,
            ACTIVATION,
            &format!("{}_backward_{}", self.name, suffix(gate.dtype())?),
            blocks(count),
            Place::of(gate)?.address,
            Place::of(value)?.address,
            Place::of(&grad)?.address,
            Place::of(&dgate)?.address,
            Place::of(&dvalue)?.address,
            count as i64,
        );
        Ok((Some(dgate), Some(dvalue)))
    }
}
