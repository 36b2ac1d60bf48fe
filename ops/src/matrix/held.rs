//! Where the bytes of frozen rows are held.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, Storage, Tensor};

use super::bf12;

/// Bytes that outlive whoever asked for them: a mapped file, say.
pub type Bytes = Arc<dyn Held>;

/// Where bytes are held.
pub trait Held: AsRef<[u8]> + Send + Sync {
    /// Says that these bytes are not read again soon: what can be had again, from a file, may leave the process's memory.
    fn release(&self, _range: Range<usize>) {}
}

impl Held for Vec<u8> {}
impl Held for bf12::Packed {}
impl Held for OfStorage {}

/// A tensor's own values: contiguous f32 on the processor, in no variable.
pub struct OfStorage(pub Tensor);

impl AsRef<[u8]> for OfStorage {
    fn as_ref(&self) -> &[u8] {
        let (storage, layout) = self.0.storage_and_layout();
        let (start, end) = layout.contiguous_offsets().expect("checked when it was made");
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { unreachable!("checked when it was made") };
        let values: *const [f32] = &raw const values[start..end];
        // SAFETY: the tensor is held by `self` and, being detached from every variable, never written; its values are plain bytes.
        unsafe { std::slice::from_raw_parts(values.cast(), size_of::<f32>() * (end - start)) }
    }
}
