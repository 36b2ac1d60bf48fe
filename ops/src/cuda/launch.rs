//! Kernels by name, and their launches.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig};
use candle_core::{CudaDevice, Result, bail};

/// Above this a kernel must ask for its shared memory.
const USUAL_SHARED_BYTES: u32 = 48 * 1024;

/// What the tiled attention kernels need: name, rows of a block, bytes of dynamic shared memory. Written by the kernels' own proofs.
const LAUNCHES: &str = include_str!("../../cuda/launches.txt");

/// One compiled file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    name: &'static str,
    ptx: &'static str,
}

macro_rules! modules {
    ($($constant:ident $name:literal),+ $(,)?) => {
        $(pub const $constant: Module = Module { name: $name, ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")) };)+
    };
}
modules! {
    ACTIVATION "activation",
    ADAMW "adamw",
    ATTENTION_BACKWARD "attention_backward",
    ATTENTION_DECODE "attention_decode",
    ATTENTION_FORWARD "attention_forward",
    CONV3D "conv3d",
    CROSS_ENTROPY "cross_entropy",
    DROPOUT "dropout",
    NORM "norm",
    PRODUCT "product",
    ROPE "rope",
}

/// Loads a kernel, at its first use the module as well.
pub fn kernel(device: &CudaDevice, module: Module, name: &str, shared_bytes: u32) -> Result<CudaFunction> {
    let kernel = device.get_or_load_custom_func(name, module.name, module.ptx)?.into_cuda_function();
    if shared_bytes > USUAL_SHARED_BYTES {
        kernel.set_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as i32).w()?;
    }
    Ok(kernel)
}

/// A grid of blocks of `threads`.
pub fn grid(blocks: (usize, usize, usize), threads: u32, shared_bytes: u32) -> LaunchConfig {
    let grid_dim = (blocks.0 as u32, blocks.1 as u32, blocks.2 as u32);
    LaunchConfig { grid_dim, block_dim: (threads, 1, 1), shared_mem_bytes: shared_bytes }
}

/// Rows of a block and bytes of shared memory of a tiled attention kernel.
pub fn tile(name: &str) -> Result<(usize, u32)> {
    let mut lines = LAUNCHES.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    match lines.find(|fields| fields[0] == name).as_deref() {
        Some([_, rows, bytes]) => match (rows.parse(), bytes.parse()) {
            (Ok(rows), Ok(bytes)) => Ok((rows, bytes)),
            _ => bail!("ops/cuda/launches.txt: {name}: expected two numbers, found '{rows} {bytes}'"),
        },
        _ => bail!("ops/cuda/launches.txt knows no kernel '{name}'"),
    }
}

/// Launches kernel `$name` of a module with arguments in the order and types of its source: addresses as u64, `int` as i32, `int64` as
/// i64, structures in C's layout.
macro_rules! launch {
    ($device:expr, $module:expr, $name:expr, $config:expr, $($argument:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::PushKernelArg};
        let (device, config): (&candle_core::CudaDevice, _) = ($device, $config);
        let kernel = $crate::cuda::launch::kernel(device, $module, $name, config.shared_mem_bytes)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        $(
            let argument = $argument;
            builder.arg(&argument);
        )+
        // SAFETY: the arguments are those of the kernel's source, the places they name belong to tensors of the shapes given
        unsafe { builder.launch(config) }.w()?;
    }};
}
pub(crate) use launch;
