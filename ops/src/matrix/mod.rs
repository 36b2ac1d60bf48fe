//! Frozen matrices: read where they lie (a mapped file), in plain or quantised rows.

mod format;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

pub use format::Format;
pub(crate) use format::{SPAN, half_at, words};

use crate::cpu::{Values, values};
use crate::few::{FEW, few_rows};
use crate::gemm::{Left, Precision, Right, product};

/// Bytes that outlive whoever asked for them: a mapped file, say.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A frozen weight (out, in), its rows in any [`Format`]. Cheap to clone: the bytes are shared.
///
/// Products with f32 weights are in f32, with all others in bf16 with sums in f32 where the processor has such products
/// ([`Matrix::with_precision`] decides otherwise). A few rows at a time (a token being written) are multiplied exactly, or with
/// 8-bit activations where the weight is quantised, as llama.cpp does.
#[derive(Clone)]
pub struct Matrix {
    bytes: Bytes,
    range: Range<usize>,
    format: Format,
    size: (usize, usize),
    precision: Precision,
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Matrix({} x {}, {})", self.size.0, self.size.1, self.format)
    }
}

struct OfTensor(Vec<u8>);

impl AsRef<[u8]> for OfTensor {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

struct OfStorage(Tensor);

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

impl Matrix {
    /// The rows at `range` of `bytes`. size: (out, in).
    pub fn new(bytes: Bytes, range: Range<usize>, format: Format, size: (usize, usize)) -> Result<Self> {
        let needed = size.0 * format.row_bytes(size.1)?;
        let held = (*bytes).as_ref().len();
        if range.len() != needed || range.end > held {
            bail!("a matrix of {} x {} in {format} needs {needed} bytes, found {} of {held}", size.0, size.1, range.len());
        }
        let precision = if matches!(format, Format::F32 | Format::F16) { Precision::F32 } else { Precision::Bf16 };
        Ok(Matrix { bytes, range, format, size, precision })
    }

    /// A copy of a tensor (out, in) of f32, f16 or bf16; f32 on the CPU is shared, not copied, and must not be written afterwards.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (size, format) = (tensor.dims2()?, Format::of(tensor.dtype())?);
        let tensor = tensor.detach().to_device(&Device::Cpu)?.contiguous()?;
        let length = size.0 * format.row_bytes(size.1)?;
        let bytes: Bytes = match format {
            Format::F32 => Arc::new(OfStorage(tensor)),
            Format::F16 => Arc::new(OfTensor(to_bytes(&tensor.flatten_all()?.to_vec1::<half::f16>()?, |v| v.to_le_bytes()))),
            _ => Arc::new(OfTensor(to_bytes(&tensor.flatten_all()?.to_vec1::<half::bf16>()?, |v| v.to_le_bytes()))),
        };
        Matrix::new(bytes, 0..length, format, size)
    }

    /// The same rows, multiplied with another precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// (out, in).
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// How the rows lie in memory.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The rows' bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }

    /// All values, f32 (out, in).
    pub fn to_tensor(&self) -> Result<Tensor> {
        let all: Vec<u32> = (0..self.size.0 as u32).collect();
        self.rows(&all)
    }

    /// The rows of the given indices, f32 (indices, in): an embedding's look-up.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        let (rows, width) = self.size;
        if let Some(index) = indices.iter().find(|&&index| index as usize >= rows) {
            bail!("row {index} is outside a matrix of {rows} rows");
        }
        let (row_bytes, bytes) = (self.format.row_bytes(width)?, self.bytes());
        let mut out = vec![0.0; indices.len() * width];
        if width > 0 {
            let work = |(out, &index): (&mut [f32], &u32)| self.format.read(&bytes[index as usize * row_bytes..][..row_bytes], 0, out);
            out.par_chunks_exact_mut(width).zip(indices).with_min_len(16).for_each(work);
        }
        Tensor::from_vec(out, (indices.len(), width), &Device::Cpu)
    }

    /// x W^T, with the gradient to x only. x: (..., in) f32 on the CPU -> (..., out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(DType::F32)?.contiguous()?.apply_op1(MatrixLinear(self.clone()))
    }

    /// g W without a gradient: the gradient of the forward product's input. g: (..., out) -> (..., in).
    pub fn backward(&self, grad: &Tensor) -> Result<Tensor> {
        let grad = grad.detach().contiguous()?;
        let shape = last_axis(grad.shape(), self.size.0, self.size.1)?;
        let out = self.multiply(&Values::of(&grad)?, false);
        Tensor::from_vec(out, shape, grad.device())
    }

    fn multiply(&self, x: &[f32], turned: bool) -> Vec<f32> {
        let (outputs, inputs) = self.size;
        let (k, n) = if turned { (inputs, outputs) } else { (outputs, inputs) };
        let m = x.len() / k.max(1);
        let mut out = vec![0.0; m * n];
        let right = Right { bytes: self.bytes(), format: self.format, columns: inputs, turned };
        if turned && m <= FEW {
            few_rows(m, x, right, &mut out);
        } else {
            product((m, k, n), Left { values: x, row: k, column: 1 }, right, self.precision, &mut out);
        }
        out
    }
}

fn to_bytes<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

fn last_axis(shape: &Shape, expected: usize, replaced: usize) -> Result<Shape> {
    let mut dims = shape.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == expected => *last = replaced,
        _ => bail!("a frozen matrix: x is {shape:?}, its last axis should be {expected}"),
    }
    Ok(Shape::from(dims))
}

struct MatrixLinear(Matrix);

impl CustomOp1 for MatrixLinear {
    fn name(&self) -> &'static str {
        "frozen-matrix"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = last_axis(layout.shape(), self.0.size.1, self.0.size.0)?;
        Ok((CpuStorage::F32(self.0.multiply(values(x, layout)?, true)), shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.backward(grad)?))
    }
}
