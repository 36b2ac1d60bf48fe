//! Frozen matrices: read where they lie (a mapped file), in plain or quantised rows.

pub(crate) mod bf12;
mod format;
mod held;
mod products;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

pub(crate) use bf12::Line;
pub use format::Format;
#[cfg(target_arch = "x86_64")]
pub(crate) use format::q4_k_scales;
pub(crate) use format::{SPAN, widen, words};
use held::OfStorage;
pub use held::{Bytes, Held};

#[cfg(feature = "cuda")]
use crate::cuda::QuantisedWeight;
use crate::gemm::{Level, PackedRight, Precision, Right};
use crate::transfers::{self, host_values};

/// A frozen weight (out, in), its rows in any [`Format`]. Cheap to clone: the bytes are shared.
///
/// Products with f32 weights are in f32, with all others in factors of 16 bits with sums in f32 where the processor has such products
/// ([`Matrix::with_precision`] decides otherwise). Where those are bf16 (AMD), f16's weights are rounded to them: what f16 holds of a bf16
/// model, as LLaMA2's files do, stays what it was. A few rows at a time (a token being written) are multiplied exactly, or with 8-bit
/// activations where the weight is quantised, as llama.cpp does; many rows so only by [`Matrix::for_reading`].
#[derive(Clone)]
pub struct Matrix {
    rows: Rows,
    format: Format,
    size: (usize, usize),
    precision: Precision,
    /// See [`Matrix::for_reading`].
    reading: bool,
    /// See [`Matrix::for_writing`].
    writing: bool,
    made: Arc<Made>,
}

/// What was found out or made of a matrix's rows once it was wanted, for all its clones.
#[derive(Default)]
struct Made {
    /// Whether the values are small enough for products in f16.
    small: OnceLock<bool>,
    /// What a small matrix of f32 is read as.
    packed: OnceLock<PackedRight>,
    /// What a matrix of bf16 writes with, where that is smaller.
    in_12_bits: OnceLock<Option<Matrix>>,
}

/// Values up to which a matrix of f32 is packed when it is read: packing it for each product would take as long as multiplying.
const PACKED_UP_TO: usize = 1 << 18;

#[derive(Clone)]
enum Rows {
    /// In memory or a mapped file; row i lies where `order` says.
    Host { bytes: Bytes, range: Range<usize>, order: Option<Arc<[u32]>> },
    /// Plain values on another device: what products there take, f32 or bf16.
    Device(Tensor),
    /// Quantised blocks on a CUDA device; single rows are read from the host's bytes.
    #[cfg(feature = "cuda")]
    Blocks(Arc<Blocks>),
}

/// A quantised matrix's rows where they are multiplied and where they are read.
#[cfg(feature = "cuda")]
struct Blocks {
    weight: QuantisedWeight,
    device: Device,
    host: Rows,
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Matrix({} x {}, {})", self.size.0, self.size.1, self.format)
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
        let precision = if format == Format::F32 { Precision::F32 } else { Precision::Bf16 };
        Ok(Matrix {
            rows: Rows::Host { bytes, range, order: None },
            format,
            size,
            precision,
            reading: false,
            writing: false,
            made: Arc::default(),
        })
    }

    /// A tensor (out, in) of f32, f16 or bf16, on its device; f32 is shared, not copied, unless it is a variable.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (size, format) = (tensor.dims2()?, Format::of(tensor.dtype())?);
        // a variable is written in place
        let tensor = if tensor.is_variable() { tensor.detach().copy()? } else { tensor.detach().contiguous()? };
        if !tensor.device().is_cpu() {
            return Ok(Matrix {
                rows: Rows::Device(tensor),
                format,
                size,
                precision: Precision::F32,
                reading: false,
                writing: false,
                made: Arc::default(),
            });
        }
        let length = size.0 * format.row_bytes(size.1)?;
        let bytes: Bytes = match format {
            Format::F32 => Arc::new(OfStorage(tensor)),
            Format::F16 => Arc::new(to_bytes(&host_values::<half::f16>(&tensor)?, |v| v.to_le_bytes())),
            _ => Arc::new(to_bytes(&host_values::<half::bf16>(&tensor)?, |v| v.to_le_bytes())),
        };
        Matrix::new(bytes, 0..length, format, size)
    }

    /// The matrix on `device`. Away from the processor 16-bit rows become bf16 there without passing through f32, f32 stays, and quantised
    /// rows stay as they are where the device's kernels take them (CUDA, outputs in eights), else they become bf16 too; all become f32 where
    /// products are to be exact ([`Precision::F32`]).
    pub fn on(&self, device: &Device) -> Result<Self> {
        match &self.rows {
            Rows::Host { .. } if !device.is_cpu() => self.copy_on(device),
            Rows::Host { .. } => Ok(self.clone()),
            _ => bail!("{self:?} lies on a device already"),
        }
    }

    /// As [`Matrix::on`], a copy whatever the device is: on the processor too it has the form and the types that it has elsewhere, so that
    /// what is done with it can be tried there.
    pub fn copy_on(&self, device: &Device) -> Result<Self> {
        let rows = match self.format {
            #[cfg(feature = "cuda")]
            format
                if format.is_quantised()
                    && self.precision != Precision::F32
                    && device.is_cuda()
                    && QuantisedWeight::takes(format, self.size) =>
            {
                let bytes = self.row_bytes()?;
                let count = bytes.len();
                let blocks = transfers::upload(bytes, count, device)?;
                let weight = QuantisedWeight::new(&blocks, format, self.size)?;
                Rows::Blocks(Arc::new(Blocks { weight, device: device.clone(), host: self.rows.clone() }))
            }
            Format::F32 | Format::F16 | Format::Bf16 => Rows::Device(self.dense_on(device)?),
            _ => Rows::Device(transfers::to_device(&self.to_tensor()?.to_dtype(self.dtype_away())?, device)?),
        };
        let format = match &rows {
            Rows::Device(tensor) => Format::of(tensor.dtype())?,
            _ => self.format,
        };
        Ok(Matrix { rows, format, size: self.size, precision: Precision::F32, reading: false, writing: false, made: Arc::default() })
    }

    /// The type of plain values on another device.
    fn dtype_away(&self) -> DType {
        if self.format == Format::F32 || self.precision == Precision::F32 { DType::F32 } else { DType::BF16 }
    }

    /// Plain rows as f32 or bf16 (out, in) on `device`.
    fn dense_on(&self, device: &Device) -> Result<Tensor> {
        let bytes = self.row_bytes()?;
        match self.format {
            Format::F32 => transfers::upload(of_bytes(&bytes, f32::from_le_bytes), self.size, device),
            Format::F16 => transfers::upload(of_bytes(&bytes, half::f16::from_le_bytes), self.size, device)?.to_dtype(self.dtype_away()),
            _ => transfers::upload(of_bytes(&bytes, half::bf16::from_le_bytes), self.size, device)?.to_dtype(self.dtype_away()),
        }
    }

    /// The rows' bytes in their order.
    fn row_bytes(&self) -> Result<Vec<u8>> {
        let Rows::Host { bytes, range, order } = &self.rows else { bail!("{self:?} is not in the host's memory") };
        let bytes = &(**bytes).as_ref()[range.clone()];
        let row = self.format.row_bytes(self.size.1)?;
        Ok(match order {
            Some(order) if row > 0 => order.iter().flat_map(|&at| bytes[at as usize * row..][..row].iter().copied()).collect(),
            _ => bytes.to_vec(),
        })
    }

    /// Whether its rows are multiplied where they lie in the host's memory, by the processor's own kernels; those of a copy for a device are not.
    pub fn in_place(&self) -> bool {
        matches!(self.rows, Rows::Host { .. })
    }

    /// The type that activations have beside it: f32 on the processor, the products' own elsewhere.
    pub fn activation_dtype(&self) -> DType {
        match &self.rows {
            Rows::Host { .. } => DType::F32,
            Rows::Device(tensor) => tensor.dtype(),
            #[cfg(feature = "cuda")]
            Rows::Blocks(_) => DType::BF16,
        }
    }

    /// The same rows, multiplied with another precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The same rows for reading without a gradient: where they are quantised and multiply in bf16, as [`Precision::Int8`]; a small matrix of f32
    /// keeps a packed copy of itself then, by which up to 256 rows are multiplied in f32.
    pub fn for_reading(&self) -> Self {
        let int8 = self.format.is_quantised() && self.precision == Precision::Bf16;
        Matrix { reading: true, ..self.clone().with_precision(if int8 { Precision::Int8 } else { self.precision }) }
    }

    /// The same rows for a process that writes and trains nothing: rows of bf16, and of f16 whose values bf16 has, are packed in 12 bits,
    /// without loss, when a few are first multiplied by them (a token is written), and let go where they lay. Tokens are written at the speed
    /// at which memory is read: a quarter less of it.
    pub fn for_writing(self) -> Self {
        Matrix { writing: self.may_be_packed(), ..self }
    }

    fn may_be_packed(&self) -> bool {
        matches!(self.format, Format::Bf16 | Format::F16) && self.in_place() && bf12::takes(self.size.1)
    }

    /// Bytes that [`Matrix::for_writing`] takes, as good as: 12 bits a weight and a line for each row; none where it packs nothing.
    pub fn packed_bytes(&self) -> u64 {
        if self.may_be_packed() { (self.byte_count() / 4 * 3 + self.size.0 * bf12::Line::BYTES) as u64 } else { 0 }
    }

    /// The rows in 12 bits.
    fn in_12_bits(&self) -> Option<Matrix> {
        let Rows::Host { bytes, range, order } = &self.rows else { return None };
        let right = self.right(bytes, range, order, true);
        // asked before, where it is asked at all
        if Level::best() == Level::Avx512Half {
            right.is_small();
        }
        let rows = bf12::pack(&right, self.size.0)?;
        self.release();
        let (order, range) = (Some(rows.starts.as_slice().into()), 0..rows.as_ref().len());
        let rows = Rows::Host { bytes: Arc::new(rows), range, order };
        let made = Made { small: self.made.small.clone(), ..Made::default() };
        Some(Matrix { rows, format: Format::Bf12, writing: false, made: Arc::new(made), ..self.clone() })
    }

    /// Whether it is so small that it keeps a copy of itself for reading, into which an adapter may as well be merged.
    pub fn is_copied_for_reading(&self) -> bool {
        self.format == Format::F32 && self.in_place() && (1..=PACKED_UP_TO).contains(&(self.size.0 * self.size.1))
    }

    /// Another weight, f32 (out, in), multiplied with the same precision.
    pub fn with_weight(&self, weight: &Tensor) -> Result<Self> {
        Ok(Matrix::from_tensor(weight)?.with_precision(self.precision))
    }

    /// How exact its products are.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether products round what they multiply, and gradients come after them.
    pub(crate) fn rounds_in_training(&self) -> bool {
        !self.reading && matches!(self.precision, Precision::Bf16 | Precision::Int16)
    }

    /// (out, in).
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// How the rows lie in memory.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The same matrix with its rows in another order: row i is what lies at place `order[i]`. Nothing is moved.
    pub fn reordered(mut self, order: Vec<u32>) -> Result<Self> {
        let mut seen = vec![false; self.size.0];
        order.iter().for_each(|&at| seen.get_mut(at as usize).into_iter().for_each(|seen| *seen = true));
        if order.len() != self.size.0 || seen.contains(&false) {
            bail!("an order of {} rows is not one of a matrix of {}", order.len(), self.size.0);
        }
        (self.made, self.writing) = (Arc::default(), false);
        match &mut self.rows {
            Rows::Host { order: own, .. } => *own = Some(order.into()),
            _ => bail!("{self:?} is reordered before it goes to its device"),
        }
        Ok(self)
    }

    /// Bytes that the rows take.
    pub fn byte_count(&self) -> usize {
        self.size.0 * (self.size.1 / self.format.block() * self.format.block_bytes())
    }

    /// The device that multiplies.
    pub fn device(&self) -> &Device {
        match &self.rows {
            Rows::Host { .. } => &Device::Cpu,
            Rows::Device(tensor) => tensor.device(),
            #[cfg(feature = "cuda")]
            Rows::Blocks(blocks) => &blocks.device,
        }
    }

    /// All values, f32 (out, in), on the matrix's device.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let all = || (0..self.size.0 as u32).collect::<Vec<_>>();
        match &self.rows {
            Rows::Device(tensor) => tensor.to_dtype(DType::F32),
            // they stay where they are: no upload
            host @ Rows::Host { .. } => Tensor::from_vec(self.read(host, &all()), self.size, &Device::Cpu),
            #[cfg(feature = "cuda")]
            Rows::Blocks(_) => self.rows(&all()),
        }
    }

    /// The values of some rows of `from`, which are in the host's memory.
    fn read(&self, from: &Rows, indices: &[u32]) -> Vec<f32> {
        let Rows::Host { bytes, range, order } = from else { unreachable!("single rows are read in the host's memory") };
        let (right, width) = (self.right(bytes, range, order, true), self.size.1);
        let mut out = vec![0.0; indices.len() * width];
        if width > 0 {
            let work = |(out, &index): (&mut [f32], &u32)| self.format.read(right.row(index as usize), 0, out);
            out.par_chunks_exact_mut(width).zip(indices).with_min_len(16).for_each(work);
        }
        out
    }

    /// Says that the matrix is not read again soon: what a file holds of it may leave the process's memory until it is.
    pub fn release(&self) {
        if let Rows::Host { bytes, range, .. } = &self.rows {
            bytes.release(range.clone());
        }
    }

    /// The rows as the products read them.
    fn right<'a>(&'a self, bytes: &'a Bytes, range: &Range<usize>, order: &'a Option<Arc<[u32]>>, turned: bool) -> Right<'a> {
        let bytes = &(**bytes).as_ref()[range.clone()];
        Right { bytes, format: self.format, columns: self.size.1, turned, order: order.as_deref(), small: Some(&self.made.small) }
    }

    /// The rows of the given indices, f32 (indices, in), on the matrix's device with one upload: an embedding's look-up.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        let (rows, width) = self.size;
        if let Some(index) = indices.iter().find(|&&index| index as usize >= rows) {
            bail!("row {index} is outside a matrix of {rows} rows");
        }
        let (from, device) = match &self.rows {
            host @ Rows::Host { .. } => (host, &Device::Cpu),
            #[cfg(feature = "cuda")]
            Rows::Blocks(blocks) => (&blocks.host, &blocks.device),
            Rows::Device(tensor) => {
                let indices = transfers::upload(indices.to_vec(), indices.len(), tensor.device())?;
                return tensor.index_select(&indices, 0)?.to_dtype(DType::F32);
            }
        };
        transfers::upload(self.read(from, indices), (indices.len(), width), device)
    }
}

fn of_bytes<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
}

fn to_bytes<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

#[cfg(test)]
mod tests;
