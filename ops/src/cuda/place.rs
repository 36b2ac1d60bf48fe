//! Where a tensor's values lie on its device.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, DeviceRepr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};

/// Vectors of the kernels and their asynchronous copies are of 16 bytes.
const ALIGNMENT: usize = 16;

/// Address and layout of a tensor's values. It holds no part of the tensor: that must outlive the launch, which it does on its device's one
/// stream even if it is dropped, as memory is given back in the stream's order.
#[derive(Debug, Clone)]
pub struct Place {
    pub address: u64,
    pub dtype: DType,
    pub layout: Layout,
}

/// A (B, H, L, D) view as the kernels take it (`Heads` of attention.cuh), strides in values.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    address: u64,
    batch: i64,
    head: i64,
    row: i64,
}

// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for Heads {}

impl Place {
    pub fn new(storage: &CudaStorage, layout: &Layout) -> Result<Self> {
        let stream = storage.device.cuda_stream();
        let dtype = storage.dtype();
        let address = base(storage, &stream)? + (layout.start_offset() * dtype.size_in_bytes()) as u64;
        Ok(Place { address, dtype, layout: layout.clone() })
    }

    pub fn of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("expected a tensor on a CUDA device") };
        Place::new(storage, layout)
    }

    /// The layout of a (B, H, L, D) tensor whose last axis is dense.
    pub fn heads(&self) -> Heads {
        let stride = self.layout.stride();
        Heads { address: self.address, batch: stride[0] as i64, head: stride[1] as i64, row: stride[2] as i64 }
    }
}

fn base(storage: &CudaStorage, stream: &CudaStream) -> Result<u64> {
    Ok(match &storage.slice {
        CudaStorageSlice::U8(values) => values.device_ptr(stream).0,
        CudaStorageSlice::U32(values) => values.device_ptr(stream).0,
        CudaStorageSlice::BF16(values) => values.device_ptr(stream).0,
        CudaStorageSlice::F16(values) => values.device_ptr(stream).0,
        CudaStorageSlice::F32(values) => values.device_ptr(stream).0,
        _ => bail!("the CUDA kernels take u8, u32, bf16, f16 and f32, found {:?}", storage.dtype()),
    })
}

pub fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        DType::F32 => Ok("f32"),
        other => bail!("the CUDA kernels compute in bf16, f16 and f32, found {other:?}"),
    }
}

/// The device of a tensor.
pub fn device(tensor: &Tensor) -> Result<CudaDevice> {
    Ok(tensor.device().as_cuda_device()?.clone())
}

/// Contiguous, and at an address that vectors can be read from.
pub fn contiguous(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    if Place::of(&x)?.address.is_multiple_of(ALIGNMENT as u64) { Ok(x) } else { x.force_contiguous() }
}

/// x (B, H, L, D) itself if its last axis is dense and each row begins where vectors can be read, else a copy.
pub fn rows(x: &Tensor) -> Result<Tensor> {
    let place = Place::of(x)?;
    let stride = x.stride();
    let size = place.dtype.size_in_bytes();
    let aligned =
        place.address.is_multiple_of(ALIGNMENT as u64) && stride[..3].iter().all(|stride| (stride * size).is_multiple_of(ALIGNMENT));
    if stride[3] == 1 && aligned { Ok(x.clone()) } else { x.force_contiguous() }
}

/// Memory for a result, with its place; what is in it is not defined.
pub fn result(device: &CudaDevice, shape: &Shape, dtype: DType) -> Result<(CudaStorage, Place)> {
    // SAFETY: callers launch a kernel that writes all values before anything reads them
    let storage = unsafe { device.alloc_uninit(shape, dtype)? };
    let place = Place::new(&storage, &Layout::contiguous(shape))?;
    Ok((storage, place))
}
