//! How a frozen matrix's rows lie in memory, and how they are read: plain numbers, or llama.cpp's blocks of quantised ones.
//!
//! The block layouts are those of ggml (`ggml-common.h`): a GGUF file's bytes are used as they are.

use std::fmt::Display;

use candle_core::{DType, Result, bail};
use half::{f16, slice::HalfFloatSliceExt};

use super::bf12;
use crate::simd::vectorised;

/// Values that are always read together: the smallest group of every quantised format is a part of it.
pub const SPAN: usize = 32;
/// Values of a K-quant's block.
const SUPER: usize = 256;

/// The type of a frozen matrix's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits with f32's exponent.
    Bf16,
    /// The same without loss in 12 bits, where a matrix is packed so (see [`Matrix::for_writing`](super::Matrix::for_writing)).
    Bf12,
    /// ggml's Q8_0: 32 values of 8 bits with a scale.
    Q8_0,
    /// ggml's Q4_K: 256 values of 4 bits, eight scales and minima of 6 bits.
    Q4K,
    /// ggml's Q6_K: 256 values of 6 bits, sixteen scales of 8 bits.
    Q6K,
}

impl Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::Bf12 => "bf16 in 12 bits",
            Format::Q8_0 => "Q8_0",
            Format::Q4K => "Q4_K",
            Format::Q6K => "Q6_K",
        })
    }
}

impl Format {
    /// The format of candle's plain types.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Format::F32),
            DType::F16 => Ok(Format::F16),
            DType::BF16 => Ok(Format::Bf16),
            other => bail!("a frozen matrix of {other:?} is not supported (expected f32, f16 or bf16)"),
        }
    }

    /// Values of a block.
    pub fn block(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Bf12 => bf12::BLOCK,
            Format::Q8_0 => SPAN,
            Format::Q4K | Format::Q6K => SUPER,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Bf12 => bf12::BLOCK_BYTES,
            Format::Q8_0 => 2 + SPAN,
            Format::Q4K => 4 + 12 + SUPER / 2,
            Format::Q6K => SUPER / 2 + SUPER / 4 + SUPER / 16 + 2,
        }
    }

    /// Bytes of a row of `columns` values; an error if they are not whole blocks.
    pub fn row_bytes(self, columns: usize) -> Result<usize> {
        if !columns.is_multiple_of(self.block()) {
            bail!("a row of {columns} values is not a whole number of {self} blocks of {}", self.block());
        }
        Ok(columns / self.block() * self.block_bytes())
    }

    /// Whether the values are quantised in blocks.
    pub fn is_quantised(self) -> bool {
        matches!(self, Format::Q8_0 | Format::Q4K | Format::Q6K)
    }

    /// Reads the values `start .. start + out.len()` of a row. In a quantised row both are multiples of 32.
    pub fn read(self, row: &[u8], start: usize, out: &mut [f32]) {
        match self {
            Format::F32 => words::<f32>(row, start, out.len(), |values| out.copy_from_slice(values)),
            Format::F16 => words::<f16>(row, start, out.len(), |values| values.convert_to_f32_slice(out)),
            Format::Bf16 => words::<u16>(row, start, out.len(), |values| widen(values, out)),
            Format::Bf12 => {
                let mut bits = vec![0; out.len()];
                bf12::read(row, start, &mut bits);
                widen(&bits, out);
            }
            _ => {
                for (i, out) in out.chunks_exact_mut(SPAN).enumerate() {
                    self.read_span(row, start / SPAN + i, out);
                }
            }
        }
    }

    fn read_span(self, row: &[u8], span: usize, out: &mut [f32]) {
        let (a_block, bytes) = (self.block() / SPAN, self.block_bytes());
        let block = &row[span / a_block * bytes..][..bytes];
        match self {
            Format::Q8_0 => q8_0(block, out),
            Format::Q4K => q4_k(block, span % a_block, out),
            _ => q6_k(block, span % a_block, out),
        }
    }
}

/// A number of two or four bytes that any bits are a value of.
pub trait Word: Copy {}
impl Word for f32 {}
impl Word for f16 {}
impl Word for u16 {}
impl Word for u32 {}

/// Hands `count` words from word `start` on to `work`; a mapped file keeps to no word's alignment, so they are copied where they must.
pub fn words<T: Word + Default>(row: &[u8], start: usize, count: usize, work: impl FnOnce(&[T])) {
    let bytes = &row[start * size_of::<T>()..][..count * size_of::<T>()];
    // SAFETY: any bits are a value of a `Word`.
    let (before, values, _) = unsafe { bytes.align_to::<T>() };
    if before.is_empty() && values.len() == count {
        return work(values);
    }
    let mut copy = vec![T::default(); count];
    // SAFETY: the copy holds as many bytes, and any bits are a value.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.as_mut_ptr().cast(), bytes.len()) };
    work(&copy);
}

/// A block's f16 at byte `at`.
pub fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The eight scales and the eight minima of a Q4_K block, a byte each, of the three words behind its two halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn q4_k_scales([scales, minima, high]: [u32; 3]) -> [u64; 2] {
    // bytes 0..4: low scales, 4..8: low minima, 8..12: low halves of the high ones; their high bits lie on top of the low ones
    let low = |word: u32| u64::from(word & 0x3f3f_3f3f);
    let top = |word: u32| word >> 6 & 0x0303_0303;
    [
        low(scales) | u64::from((high & 0x0f0f_0f0f) | top(scales) << 4) << 32,
        low(minima) | u64::from((high >> 4 & 0x0f0f_0f0f) | top(minima) << 4) << 32,
    ]
}

/// Scale and minimum of part `j` alone of a Q4_K block, 6 bits each of its bytes 4..16.
fn q4_k_scale(block: &[u8], j: usize) -> (u8, u8) {
    let packed = &block[4..16];
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
    }
}

vectorised! {
    /// f32 of bf16's bits.
    pub(crate) fn widen(values: &[u16], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(values) {
            *out = f32::from_bits(u32::from(x) << 16);
        }
    }

    fn q8_0(block: &[u8], out: &mut [f32]) {
        let scale = half_at(block, 0);
        for (out, &q) in out[..SPAN].iter_mut().zip(&block[2..2 + SPAN]) {
            *out = scale * f32::from(q as i8);
        }
    }

    fn q4_k(block: &[u8], part: usize, out: &mut [f32]) {
        let (scale, minimum) = q4_k_scale(block, part);
        let (scale, minimum) = (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(minimum));
        let shift = part % 2 * 4;
        for (out, &q) in out[..SPAN].iter_mut().zip(&block[16 + part / 2 * SPAN..][..SPAN]) {
            *out = scale * f32::from((q >> shift) & 15) - minimum;
        }
    }

    fn q6_k(block: &[u8], part: usize, out: &mut [f32]) {
        let (half, quarter, scale) = (part / 4, part % 4, half_at(block, 208));
        let low = &block[half * 64 + quarter % 2 * SPAN..][..SPAN];
        let high = &block[128 + half * SPAN..][..SPAN];
        let scales = &block[192 + half * 8 + quarter * 2..][..2];
        let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
        for i in 0..SPAN {
            let q = ((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4);
            out[i] = scale * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    fn noise(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * (1.0 + (i % 13) as f32)).collect()
    }

    #[test]
    fn quantised_blocks_read_as_candle_reads_them_whole_and_by_spans() {
        let values = Tensor::from_vec(noise(4 * 512), (4, 512), &Device::Cpu).unwrap();
        for (format, kind) in [(Format::Q8_0, GgmlDType::Q8_0), (Format::Q4K, GgmlDType::Q4K), (Format::Q6K, GgmlDType::Q6K)] {
            let quantised = QTensor::quantize(&values, kind).unwrap();
            let expected: Vec<f32> = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let bytes = quantised.data().unwrap();
            let row_bytes = format.row_bytes(512).unwrap();
            assert_eq!(bytes.len(), 4 * row_bytes);
            for row in 0..4 {
                let mut whole = vec![0.0; 512];
                format.read(&bytes[row * row_bytes..][..row_bytes], 0, &mut whole);
                let (scale, expected) = (whole.iter().fold(0.0f32, |a, b| a.max(b.abs())), &expected[row * 512..][..512]);
                assert!(whole.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * scale), "{format}");
                let mut part = vec![0.0; 96];
                format.read(&bytes[row * row_bytes..][..row_bytes], 160, &mut part);
                assert_eq!(part, whole[160..256]);
            }
        }
    }

    #[test]
    fn plain_words_are_read_at_any_alignment() {
        let values = [1.5f32, -2.25, 1e-3];
        let mut bytes = vec![0u8];
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let mut out = [0.0; 2];
        Format::F32.read(&bytes[1..], 1, &mut out);
        assert_eq!(out, values[1..]);
        let short: Vec<u8> = std::iter::once(0).chain(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())).collect();
        Format::F16.read(&short[1..], 1, &mut out);
        assert_eq!(out, [-2.25, f16::from_f32(1e-3).to_f32()]);
    }

    #[test]
    fn a_row_of_broken_blocks_is_refused() {
        let message = Format::Q4K.row_bytes(300).unwrap_err().to_string();
        assert!(message.contains("300") && message.contains("Q4_K"), "{message}");
    }
}
