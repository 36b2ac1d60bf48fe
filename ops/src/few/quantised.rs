//! Rows of quantised blocks times activations of 8 bits, in integers within a block: the scheme of llama.cpp's CPU kernels.

use super::ROWS;
use crate::gemm::Right;
use crate::matrix::{Format, SPAN};
use crate::simd::vectorised;

/// Rows of x in 8 bits: `x = scale * q` in blocks as long as the matrix's own.
pub struct Activations {
    m: usize,
    k: usize,
    block: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    /// What the integer sums of four neighbours start from: minus the weights' offset times the four values.
    starts: Vec<i32>,
    /// Sums of 32 values, for the blocks' minima.
    sums: Vec<i32>,
}

/// Whether the processor has the integer products.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

vectorised! {
    /// Rounds one block; returns its scale.
    fn round_block(x: &[f32], out: &mut [i8]) -> f32 {
        let mut largest = 0.0f32;
        for x in x {
            largest = largest.max(x.abs());
        }
        let scale = largest / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (out, x) in out.iter_mut().zip(x) {
            *out = (x * inverse).round_ties_even() as i8;
        }
        scale
    }
}

impl Activations {
    /// x: rows of k values, for a matrix in `format`.
    pub fn new(x: &[f32], k: usize, format: Format) -> Self {
        let block = format.block();
        let mut values = vec![0i8; x.len()];
        let scales = x.chunks_exact(block).zip(values.chunks_exact_mut(block)).map(|(x, out)| round_block(x, out)).collect();
        // quantised values are stored with an offset: 128 makes Q8_0's positive, 32 is Q6_K's own
        let offset = if format == Format::Q8_0 { 128 } else { 32 };
        let sum = |values: &[i8]| values.iter().map(|&v| i32::from(v)).sum::<i32>();
        let starts = values.chunks_exact(4).map(|four| -offset * sum(four)).collect();
        let sums = values.chunks_exact(SPAN).map(sum).collect();
        Activations { m: x.len() / k, k, block, values, scales, starts, sums }
    }

    #[cfg(target_arch = "x86_64")]
    fn block(&self, row: usize, index: usize) -> x86::Block<'_> {
        let at = row * self.k / self.block + index;
        x86::Block {
            values: &self.values[at * self.block..][..self.block],
            starts: &self.starts[at * self.block / 4..][..self.block / 4],
            sums: &self.sums[at * self.block / SPAN..][..self.block / SPAN],
            scale: self.scales[at],
        }
    }
}

/// Products of the rows from `first` on with the activations; out: (rows, m).
#[cfg(target_arch = "x86_64")]
pub fn rows(x: &Activations, right: Right, first: usize, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(x.m).enumerate() {
        let row = right.row(first + row);
        for start in (0..x.m).step_by(ROWS) {
            macro_rules! group {
                ($($size:literal)*) => {
                    match (x.m - start).min(ROWS) {
                        // SAFETY: `available` is true where there are activations.
                        $($size => out[start..start + $size].copy_from_slice(&unsafe { x86::row::<$size>(x, start, row, right.format) }),)*
                        _ => unreachable!("a group has 1 to 4 rows"),
                    }
                };
            }
            group!(1 2 3 4);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn rows(_: &Activations, _: Right, _: usize, _: &mut [f32]) {
    unreachable!("no activations are made where `available` is false")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Activations;
    use crate::matrix::{Format, half_at};

    pub struct Block<'a> {
        pub values: &'a [i8],
        pub starts: &'a [i32],
        pub sums: &'a [i32],
        pub scale: f32,
    }

    /// One row of the matrix times M rows of x, from row `start` on.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI.
    pub unsafe fn row<const M: usize>(x: &Activations, start: usize, row: &[u8], format: Format) -> [f32; M] {
        // SAFETY: the caller's promise.
        unsafe {
            match format {
                Format::Q8_0 => q8_0(x, start, row),
                Format::Q4K => q4_k(x, start, row),
                _ => q6_k(x, start, row),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q8_0<const M: usize>(x: &Activations, start: usize, row: &[u8]) -> [f32; M] {
        let mut sums = [_mm256_setzero_ps(); M];
        for (index, block) in row.chunks_exact(34).enumerate() {
            // SAFETY: 32 bytes follow the scale.
            let weights = unsafe { _mm256_loadu_si256(block.as_ptr().add(2).cast()) };
            let (weights, scale) = (_mm256_xor_si256(weights, _mm256_set1_epi8(-128)), half_at(block, 0));
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = x.block(start + m, index);
                // SAFETY: a block of activations has 32 values and 8 starts.
                let (values, starts) =
                    unsafe { (_mm256_loadu_si256(x.values.as_ptr().cast()), _mm256_loadu_si256(x.starts.as_ptr().cast())) };
                let whole = _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(starts, weights, values));
                *sum = _mm256_fmadd_ps(whole, _mm256_set1_ps(scale * x.scale), *sum);
            }
        }
        sums.map(|sum| _mm512_reduce_add_ps(_mm512_zextps256_ps512(sum)))
    }

    /// The eight scales and eight minima of a Q4_K block, 32 bits each.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn q4_k_scales(block: &[u8]) -> (__m256i, __m256i) {
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        // bytes 0..4: low scales, 4..8: low minima, 8..12: low halves of the high ones; their high bits lie on top of the low ones
        let (scales, minima, high) = (word(4), word(8), word(12));
        let low = |word: u32| u64::from(word & 0x3f3f_3f3f);
        let top = |word: u32| word >> 6 & 0x0303_0303;
        let scales_8 = low(scales) | u64::from((high & 0x0f0f_0f0f) | top(scales) << 4) << 32;
        let minima_8 = low(minima) | u64::from((high >> 4 & 0x0f0f_0f0f) | top(minima) << 4) << 32;
        let widen = |bytes: u64| _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64));
        (widen(scales_8), widen(minima_8))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q4_k<const M: usize>(x: &Activations, start: usize, row: &[u8]) -> [f32; M] {
        let (mut sums, mut minima_sums) = ([_mm512_setzero_ps(); M], [_mm256_setzero_ps(); M]);
        let nibble = _mm256_set1_epi8(15);
        for (index, block) in row.chunks_exact(144).enumerate() {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            let (scales, minima) = q4_k_scales(block);
            let scales = _mm512_zextsi256_si512(scales);
            let mut whole = [_mm512_setzero_si512(); M];
            for part in 0..4 {
                // SAFETY: a block has four times 32 bytes from its 16th on.
                let both = unsafe { _mm256_loadu_si256(block.as_ptr().add(16 + part * 32).cast()) };
                let (low, high) = (_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble));
                let weights = _mm512_inserti64x4::<1>(_mm512_zextsi256_si512(low), high);
                let first = _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32(2 * part as i32), _mm512_set1_epi32(2 * part as i32 + 1));
                let scales = _mm512_permutexvar_epi32(first, scales);
                for (m, whole) in whole.iter_mut().enumerate() {
                    // SAFETY: a block of activations has 256 values.
                    let values = unsafe { _mm512_loadu_si512(x.block(start + m, index).values.as_ptr().add(part * 64).cast()) };
                    let products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, values);
                    *whole = _mm512_add_epi32(*whole, _mm512_mullo_epi32(products, scales));
                }
            }
            for m in 0..M {
                let x = x.block(start + m, index);
                sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[m]), _mm512_set1_ps(scale * x.scale), sums[m]);
                // SAFETY: a block of activations has eight sums.
                let below = _mm256_mullo_epi32(minima, unsafe { _mm256_loadu_si256(x.sums.as_ptr().cast()) });
                minima_sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(below), _mm256_set1_ps(minimum * x.scale), minima_sums[m]);
            }
        }
        std::array::from_fn(|m| _mm512_reduce_add_ps(_mm512_sub_ps(sums[m], _mm512_zextps256_ps512(minima_sums[m]))))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q6_k<const M: usize>(x: &Activations, start: usize, row: &[u8]) -> [f32; M] {
        let mut sums = [_mm512_setzero_ps(); M];
        let (nibble, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        for (index, block) in row.chunks_exact(210).enumerate() {
            let scale = half_at(block, 208);
            // SAFETY: a block has 16 scales from its 192nd byte on.
            let scales = _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(block.as_ptr().add(192).cast()) });
            let mut whole = [_mm512_setzero_si512(); M];
            for half in 0..2 {
                // SAFETY: 128 bytes of low bits, then 64 of high ones.
                let (low, high) = unsafe {
                    let high = _mm256_loadu_si256(block.as_ptr().add(128 + half * 32).cast());
                    (_mm512_loadu_si512(block.as_ptr().add(half * 64).cast()), high)
                };
                let pair = |a: __m256i, b: __m256i| _mm512_and_si512(_mm512_inserti64x4::<1>(_mm512_zextsi256_si512(a), b), two_bits);
                let first = pair(_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<2>(high));
                let second = pair(high, _mm256_srli_epi16::<2>(high));
                let parts = [
                    _mm512_or_si512(_mm512_and_si512(low, nibble), first),
                    _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), second),
                ];
                for (part, weights) in parts.into_iter().enumerate() {
                    let at = half * 2 + part;
                    let fours = _mm512_srli_epi32::<2>(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
                    let scales = _mm512_permutexvar_epi32(_mm512_add_epi32(fours, _mm512_set1_epi32(4 * at as i32)), scales);
                    for (m, whole) in whole.iter_mut().enumerate() {
                        let x = x.block(start + m, index);
                        // SAFETY: a block of activations has 256 values and 64 starts.
                        let (values, starts) = unsafe {
                            (
                                _mm512_loadu_si512(x.values.as_ptr().add(at * 64).cast()),
                                _mm512_loadu_si512(x.starts.as_ptr().add(at * 16).cast()),
                            )
                        };
                        let products = _mm512_dpbusd_epi32(starts, weights, values);
                        *whole = _mm512_add_epi32(*whole, _mm512_mullo_epi32(products, scales));
                    }
                }
            }
            for m in 0..M {
                let scale = scale * x.block(start + m, index).scale;
                sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[m]), _mm512_set1_ps(scale), sums[m]);
            }
        }
        sums.map(|sum| _mm512_reduce_add_ps(sum))
    }
}
