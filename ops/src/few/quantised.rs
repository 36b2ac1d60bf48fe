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

    /// Row `row`, as pointers: a call or a check for each block would cost more than the block's products.
    #[cfg(target_arch = "x86_64")]
    fn row(&self, row: usize) -> x86::Row {
        let first = row * self.k;
        x86::Row {
            values: self.values[first..][..self.k].as_ptr(),
            starts: self.starts[first / 4..][..self.k / 4].as_ptr(),
            sums: self.sums[first / SPAN..][..self.k / SPAN].as_ptr(),
            scales: self.scales[first / self.block..][..self.k / self.block].as_ptr(),
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
    // A closure handed to a function of the standard library is not inlined here, where it has more processor features than that function,
    // and forces what it captures into memory: these kernels have plain loops.
    #![allow(clippy::needless_range_loop, reason = "see above")]

    use std::arch::x86_64::*;

    use super::Activations;
    use crate::matrix::Format;

    /// A row of activations: k values, k / 4 starts, k / 32 sums, a scale a block.
    #[derive(Clone, Copy)]
    pub struct Row {
        pub values: *const i8,
        pub starts: *const i32,
        pub sums: *const i32,
        pub scales: *const f32,
    }

    /// The half at byte `at` of a block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn half(block: *const u8, at: usize) -> f32 {
        // SAFETY: a block's halves lie inside it.
        let bits = unsafe { block.add(at).cast::<u16>().read_unaligned() };
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }

    /// Asks for so many lines of memory that will be read in some blocks' time: the processor's own foresight ends with a page. Past the end
    /// nothing happens.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn ahead<const LINES: usize>(block: *const u8) {
        const DISTANCE: usize = 4096;
        for line in 0..LINES {
            _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(DISTANCE + line * 64).cast());
        }
    }

    /// One row of the matrix times M rows of x, from row `start` on.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI.
    pub unsafe fn row<const M: usize>(x: &Activations, start: usize, row: &[u8], format: Format) -> [f32; M] {
        let x = std::array::from_fn(|m| x.row(start + m));
        // SAFETY: the caller's promise; rows of x and of the matrix have as many blocks.
        unsafe {
            match format {
                Format::Q8_0 => q8_0(x, row),
                Format::Q4K => q4_k(x, row),
                _ => q6_k(x, row),
            }
        }
    }

    /// Eight blocks at a time, and then one by one those that are left.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q8_0<const M: usize>(x: [Row; M], row: &[u8]) -> [f32; M] {
        let blocks = row.len() / 34;
        let mut sums = [_mm512_setzero_ps(); M];
        for group in 0..blocks / 8 {
            // SAFETY: eight blocks of 34 bytes, and of activations 256 values, 64 starts and eight scales.
            unsafe {
                let (scales, weights) = q8_0_group(row.as_ptr().add(group * 8 * 34));
                for m in 0..M {
                    let own = _mm256_mul_ps(scales, _mm256_loadu_ps(x[m].scales.add(group * 8)));
                    let own = _mm512_zextps256_ps512(own);
                    for pair in 0..4 {
                        let values = _mm512_loadu_si512(x[m].values.add(group * 256 + pair * 64).cast());
                        let starts = _mm512_loadu_si512(x[m].starts.add(group * 64 + pair * 16).cast());
                        let whole = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(starts, weights[pair], values));
                        sums[m] = _mm512_fmadd_ps(whole, _mm512_permutexvar_ps(halves_of(pair), own), sums[m]);
                    }
                }
            }
        }
        let mut last = [_mm256_setzero_ps(); M];
        for index in blocks / 8 * 8..blocks {
            // SAFETY: a block has 34 bytes; 32 follow the scale.
            let (block, weights) = unsafe {
                let block = row.as_ptr().add(index * 34);
                (block, _mm256_loadu_si256(block.add(2).cast()))
            };
            let (weights, scale) = (_mm256_xor_si256(weights, _mm256_set1_epi8(-128)), half(block, 0));
            for m in 0..M {
                // SAFETY: a block of activations has 32 values, 8 starts and a scale.
                let (values, starts, own) = unsafe {
                    let values = _mm256_loadu_si256(x[m].values.add(index * 32).cast());
                    (values, _mm256_loadu_si256(x[m].starts.add(index * 8).cast()), *x[m].scales.add(index))
                };
                let whole = _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(starts, weights, values));
                last[m] = _mm256_fmadd_ps(whole, _mm256_set1_ps(scale * own), last[m]);
            }
        }
        let mut out = [0.0; M];
        for m in 0..M {
            out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sums[m], _mm512_zextps256_ps512(last[m])));
        }
        out
    }

    /// Eight lanes of number `2 pair`, then eight of the next.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn halves_of(pair: usize) -> __m512i {
        _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32(2 * pair as i32), _mm512_set1_epi32(2 * pair as i32 + 1))
    }

    /// The scales of eight Q8_0 blocks, and their values, 128 added, two blocks in each.
    ///
    /// # Safety
    /// Eight blocks lie from `first` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn q8_0_group(first: *const u8) -> (__m256, [__m512i; 4]) {
        let (mut scales, mut weights) = ([0u16; 8], [_mm512_setzero_si512(); 4]);
        ahead::<5>(first);
        for index in 0..8 {
            // SAFETY: the caller's promise.
            scales[index] = unsafe { first.add(index * 34).cast::<u16>().read_unaligned() };
        }
        for pair in 0..4 {
            // SAFETY: the caller's promise.
            let (low, high) = unsafe {
                let block = first.add(pair * 2 * 34 + 2);
                (_mm256_loadu_si256(block.cast()), _mm256_loadu_si256(block.add(34).cast()))
            };
            weights[pair] = _mm512_xor_si512(_mm512_inserti64x4::<1>(_mm512_zextsi256_si512(low), high), _mm512_set1_epi8(-128));
        }
        // SAFETY: eight halves.
        (_mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.as_ptr().cast()) }), weights)
    }

    /// The eight scales and eight minima of a Q4_K block, 32 bits each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q4_k_scales(block: *const u8) -> (__m256i, __m256i) {
        // bytes 0..4: low scales, 4..8: low minima, 8..12: low halves of the high ones; their high bits lie on top of the low ones
        // SAFETY: they follow the block's two halves.
        let [scales, minima, high] = unsafe { block.add(4).cast::<[u32; 3]>().read_unaligned() };
        let low = |word: u32| u64::from(word & 0x3f3f_3f3f);
        let top = |word: u32| word >> 6 & 0x0303_0303;
        let scales_8 = low(scales) | u64::from((high & 0x0f0f_0f0f) | top(scales) << 4) << 32;
        let minima_8 = low(minima) | u64::from((high >> 4 & 0x0f0f_0f0f) | top(minima) << 4) << 32;
        let widen = |bytes: u64| _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64));
        (widen(scales_8), widen(minima_8))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q4_k<const M: usize>(x: [Row; M], row: &[u8]) -> [f32; M] {
        let (mut sums, mut minima_sums) = ([_mm512_setzero_ps(); M], [_mm256_setzero_ps(); M]);
        let nibble = _mm256_set1_epi8(15);
        for index in 0..row.len() / 144 {
            // SAFETY: a block has 144 bytes.
            let block = unsafe { row.as_ptr().add(index * 144) };
            ahead::<3>(block);
            let (scale, minimum) = (half(block, 0), half(block, 2));
            let (scales, minima) = q4_k_scales(block);
            let scales = _mm512_zextsi256_si512(scales);
            let mut whole = [_mm512_setzero_si512(); M];
            for part in 0..4 {
                // SAFETY: a block has four times 32 bytes from its 16th on.
                let both = unsafe { _mm256_loadu_si256(block.add(16 + part * 32).cast()) };
                let (low, high) = (_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble));
                let weights = _mm512_inserti64x4::<1>(_mm512_zextsi256_si512(low), high);
                let scales = _mm512_permutexvar_epi32(halves_of(part), scales);
                for m in 0..M {
                    // SAFETY: a block of activations has 256 values.
                    let values = unsafe { _mm512_loadu_si512(x[m].values.add(index * 256 + part * 64).cast()) };
                    let products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, values);
                    whole[m] = _mm512_add_epi32(whole[m], _mm512_mullo_epi32(products, scales));
                }
            }
            for m in 0..M {
                // SAFETY: a block of activations has eight sums and a scale.
                let (own, of_32) = unsafe { (*x[m].scales.add(index), _mm256_loadu_si256(x[m].sums.add(index * 8).cast())) };
                sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[m]), _mm512_set1_ps(scale * own), sums[m]);
                let below = _mm256_mullo_epi32(minima, of_32);
                minima_sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(below), _mm256_set1_ps(minimum * own), minima_sums[m]);
            }
        }
        let mut out = [0.0; M];
        for m in 0..M {
            out[m] = _mm512_reduce_add_ps(_mm512_sub_ps(sums[m], _mm512_zextps256_ps512(minima_sums[m])));
        }
        out
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q6_k<const M: usize>(x: [Row; M], row: &[u8]) -> [f32; M] {
        let mut sums = [_mm512_setzero_ps(); M];
        let (nibble, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        for index in 0..row.len() / 210 {
            // SAFETY: a block has 210 bytes.
            let block = unsafe { row.as_ptr().add(index * 210) };
            ahead::<4>(block);
            let scale = half(block, 208);
            // SAFETY: a block has 16 scales from its 192nd byte on.
            let scales = _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(block.add(192).cast()) });
            let mut whole = [_mm512_setzero_si512(); M];
            for half in 0..2 {
                // SAFETY: 128 bytes of low bits, then 64 of high ones.
                let (low, high) = unsafe {
                    let high = _mm256_loadu_si256(block.add(128 + half * 32).cast());
                    (_mm512_loadu_si512(block.add(half * 64).cast()), high)
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
                    for m in 0..M {
                        // SAFETY: a block of activations has 256 values and 64 starts.
                        let (values, starts) = unsafe {
                            let values = _mm512_loadu_si512(x[m].values.add(index * 256 + at * 64).cast());
                            (values, _mm512_loadu_si512(x[m].starts.add(index * 64 + at * 16).cast()))
                        };
                        let products = _mm512_dpbusd_epi32(starts, weights, values);
                        whole[m] = _mm512_add_epi32(whole[m], _mm512_mullo_epi32(products, scales));
                    }
                }
            }
            for m in 0..M {
                // SAFETY: a block of activations has a scale.
                let own = unsafe { *x[m].scales.add(index) };
                sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[m]), _mm512_set1_ps(scale * own), sums[m]);
            }
        }
        let mut out = [0.0; M];
        for m in 0..M {
            out[m] = _mm512_reduce_add_ps(sums[m]);
        }
        out
    }
}
