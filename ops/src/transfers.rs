//! Values between the host's memory and a tensor's device, counted for the whole process, whatever the device is.
//!
//! A read-back waits until the device has done all that it was asked before; one that hides in a step costs more than the step's own
//! work. So a step reads through these functions alone. What belongs to the host anyway (ids, labels, the CPU's own kernels' operands)
//! is taken by [`host_values`], which refuses a tensor of another device instead of waiting for it.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Result, Shape, Tensor, WithDType, bail};

static READS: AtomicU64 = AtomicU64::new(0);
static UPLOADS: AtomicU64 = AtomicU64::new(0);

/// How often values went each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfers {
    /// From a tensor to the host.
    pub reads: u64,
    /// From the host to a tensor.
    pub uploads: u64,
}

impl Transfers {
    /// So far in this process.
    pub fn so_far() -> Self {
        Transfers { reads: READS.load(Ordering::Relaxed), uploads: UPLOADS.load(Ordering::Relaxed) }
    }

    /// Since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Transfers { reads: self.reads - earlier.reads, uploads: self.uploads - earlier.uploads }
    }
}

/// A tensor's values in their order, with one wait. Any shape.
pub fn read<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    to_host(tensor)?.flatten_all()?.to_vec1()
}

/// As [`read`], row by row. tensor: (rows, columns).
pub fn read_rows<T: WithDType>(tensor: &Tensor) -> Result<Vec<Vec<T>>> {
    to_host(tensor)?.to_vec2()
}

/// A single value of any type of float. tensor: ().
pub fn read_number(tensor: &Tensor) -> Result<f32> {
    to_host(tensor)?.to_dtype(DType::F32)?.to_scalar()
}

/// The tensor in the host's memory, without a graph: itself where it lies there.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    READS.fetch_add(1, Ordering::Relaxed);
    let tensor = tensor.detach();
    // candle copies all that a view's storage holds
    if tensor.device().is_cpu() { Ok(tensor) } else { tensor.force_contiguous()?.to_device(&Device::Cpu) }
}

/// Values as a tensor on `device`.
pub fn upload<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    UPLOADS.fetch_add(1, Ordering::Relaxed);
    Tensor::from_vec(values, shape.into(), device)
}

/// Counts an upload that goes another way.
#[cfg(feature = "cuda")]
pub(crate) fn note_upload() {
    UPLOADS.fetch_add(1, Ordering::Relaxed);
}

/// A tensor of the host's on `device`: itself where that is the host.
pub fn to_device(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    UPLOADS.fetch_add(1, Ordering::Relaxed);
    if device.is_cpu() { Ok(tensor.clone()) } else { tensor.contiguous()?.to_device(device) }
}

/// The values of a tensor that never leaves the host; one of another device is an error. Any shape.
pub fn host_values<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    if !tensor.device().is_cpu() {
        bail!("expected a tensor in the host's memory, found {:?} on {:?}", tensor.shape(), tensor.device().location());
    }
    tensor.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went_and_both_ways_are_counted() {
        // other tests of this process may count too
        let before = Transfers::so_far();
        let there = upload(vec![1u32, 2, 3, 4, 5, 6], (2, 3), &Device::Cpu).unwrap();
        assert_eq!(read::<u32>(&there.t().unwrap()).unwrap(), [1, 4, 2, 5, 3, 6]);
        assert_eq!(read_rows::<u32>(&there.narrow(1, 1, 2).unwrap()).unwrap(), [[2, 3], [5, 6]]);
        assert_eq!(read_number(&Tensor::new(2.5f64, &Device::Cpu).unwrap()).unwrap(), 2.5);
        assert_eq!(host_values::<u32>(&to_device(&there, &Device::Cpu).unwrap()).unwrap(), [1, 2, 3, 4, 5, 6]);
        let counted = Transfers::so_far().since(before);
        assert!(counted.reads >= 3 && counted.uploads >= 2, "{counted:?}");
    }
}
