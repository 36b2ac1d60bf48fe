//! Rows of quantised blocks times activations of 8 bits, in integers within a block: the scheme of llama.cpp's CPU kernels.

use super::ROWS;
use crate::gemm::Right;
use crate::matrix::{Format, SPAN};
use crate::simd::{MAGIC, largest_magnitude, vectorised};

/// Rows of x in 8 bits: `x = scale * q` in blocks as long as the matrix's own.
pub struct Activations {
    m: usize,
    k: usize,
    format: Format,
    /// As they lie in x; of Q4_K, whose words hold runs 0 and 1 of 32 values, and 2 and 3, in the order of runs 0, 2, 1, 3.
    values: Vec<i8>,
    scales: Vec<f32>,
    /// What takes the weights' offsets and minima back. Q8_0 (offset 128): minus the offset times the sum of each four neighbours; Q6_K
    /// (offset 32): minus the offset times the sum of each 16; Q4_K: the sums of each 32 in 16 bits, two in a word.
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
    /// Rounds blocks of x, a multiple of 16 values each, to 8 bits with a scale each.
    pub fn round_blocks(x: &[f32], block: usize, out: &mut [i8], scales: &mut [f32]) {
        for (index, scale) in scales.iter_mut().enumerate() {
            let (x, out) = (&x[index * block..][..block], &mut out[index * block..][..block]);
            *scale = largest_magnitude(x) / 127.0;
            let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
            for i in 0..block {
                out[i] = (x[i] * inverse + MAGIC).to_bits() as i8;
            }
        }
    }
}

/// Neighbours whose sum takes the weights' offset back, and minus the offset.
fn offset(format: Format) -> (usize, i32) {
    match format {
        Format::Q8_0 => (4, -128),
        Format::Q6K => (16, -32),
        _ => (SPAN, 1),
    }
}

vectorised! {
    /// The sums of so many neighbours each, times a factor.
    pub fn part_sums(values: &[i8], neighbours: usize, factor: i32, sums: &mut [i32]) {
        for (sum, values) in sums.iter_mut().zip(values.chunks_exact(neighbours)) {
            let mut total = 0;
            for &value in values {
                total += i32::from(value);
            }
            *sum = factor * total;
        }
    }
}

impl Activations {
    /// x: rows of k values, for a matrix in `format`.
    pub fn new(x: &[f32], k: usize, format: Format) -> Self {
        let (block, (neighbours, factor)) = (format.block(), offset(format));
        let mut values = vec![0i8; x.len()];
        let (mut scales, mut sums) = (vec![0.0; x.len() / block], vec![0; x.len() / neighbours]);
        round_blocks(x, block, &mut values, &mut scales);
        part_sums(&values, neighbours, factor, &mut sums);
        if format == Format::Q4K {
            // at most 32 times 127 each
            sums = sums.chunks_exact(2).map(|pair| pair[0] & 0xffff | pair[1] << 16).collect();
            values.chunks_exact_mut(4 * SPAN).for_each(|four| four[SPAN..3 * SPAN].rotate_left(SPAN));
        }
        Activations { m: x.len() / k, k, format, values, scales, sums }
    }

    /// Row `row`, as pointers: a call or a check for each block would cost more than the block's products.
    #[cfg(target_arch = "x86_64")]
    fn row(&self, row: usize) -> x86::Row {
        let (first, sums) = (row * self.k, self.sums.len() / self.m);
        x86::Row {
            values: self.values[first..][..self.k].as_ptr(),
            sums: self.sums[row * sums..][..sums].as_ptr(),
            scales: self.scales[first / self.format.block()..][..self.k / self.format.block()].as_ptr(),
        }
    }
}

/// Products of the activations with the rows from `first` on; out: (m, rows).
#[cfg(target_arch = "x86_64")]
pub fn rows(x: &Activations, right: Right, first: usize, out: &mut [f32]) {
    assert!(right.format == x.format && right.columns == x.k);
    for start in (0..x.m).step_by(ROWS) {
        macro_rules! group {
            ($($size:literal)*) => {
                match (x.m - start).min(ROWS) {
                    $($size => {
                        let mut own = [x.row(start); $size];
                        for (m, own) in own.iter_mut().enumerate() {
                            *own = x.row(start + m);
                        }
                        // SAFETY: `available` is true where there are activations, which are for this format and length.
                        unsafe { x86::rows::<$size>(own, right, first, out, (x.m, start)) }
                    })*
                    _ => unreachable!("a group has 1 to 4 rows"),
                }
            };
        }
        group!(1 2 3 4);
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

    use crate::gemm::Right;
    use crate::matrix::{Format, q4_k_scales};

    /// A row of activations: k values, their sums as the format wants them, a scale a block.
    #[derive(Clone, Copy)]
    pub struct Row {
        pub values: *const i8,
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
        const DISTANCE: usize = 8192;
        for line in 0..LINES {
            _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(DISTANCE + line * 64).cast());
        }
    }

    /// The matrix's rows from `first` on times M rows of x, written to rows `start .. start + M` of `out`, (m, rows).
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI; the rows of x are made for the matrix's format and as long as its own.
    pub unsafe fn rows<const M: usize>(x: [Row; M], right: Right, first: usize, out: &mut [f32], (m, start): (usize, usize)) {
        let columns = out.len() / m;
        macro_rules! each {
            ($row:ident) => {
                for index in 0..columns {
                    // SAFETY: the caller's promise.
                    let sums = unsafe { $row(x, right.row(first + index)) };
                    for i in 0..M {
                        out[(start + i) * columns + index] = sums[i];
                    }
                }
            };
        }
        match right.format {
            Format::Q8_0 => each!(q8_0),
            Format::Q4K => each!(q4_k),
            _ => each!(q6_k),
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
                        let starts = _mm512_loadu_si512(x[m].sums.add(group * 64 + pair * 16).cast());
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
                    (values, _mm256_loadu_si256(x[m].sums.add(index * 8).cast()), *x[m].scales.add(index))
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

    /// The eight scales of a Q4_K block and its eight minima, in 16 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q4_k_parts(block: *const u8) -> [__m128i; 2] {
        // SAFETY: they follow the block's two halves.
        let [scales, minima] = q4_k_scales(unsafe { block.add(4).cast::<[u32; 3]>().read_unaligned() });
        [scales, minima].map(|bytes| _mm_cvtepu8_epi16(_mm_cvtsi64_si128(bytes as i64)))
    }

    /// 16 times number `a`, then 16 times number `b`, in 16 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn halves_16(a: usize, b: usize) -> __m512i {
        _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi16(a as i16), _mm512_set1_epi16(b as i16))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn q4_k<const M: usize>(x: [Row; M], row: &[u8]) -> [f32; M] {
        let mut sums = [_mm512_setzero_ps(); M];
        let nibble = _mm512_set1_epi8(15);
        for index in 0..row.len() / 144 {
            // SAFETY: a block has 144 bytes.
            let block = unsafe { row.as_ptr().add(index * 144) };
            ahead::<3>(block);
            // SAFETY: a block begins with two halves.
            let halves = _mm_cvtph_ps(_mm_cvtsi32_si128(unsafe { block.cast::<i32>().read_unaligned() }));
            let (scale, minimum) =
                (_mm512_broadcastss_ps(halves), _mm512_permutexvar_ps(_mm512_set1_epi32(1), _mm512_castps128_ps512(halves)));
            let [scales, minima] = q4_k_parts(block);
            let scales = _mm512_castsi128_si512(scales);
            let mut whole = [_mm512_setzero_si512(); M];
            for two in 0..2 {
                // SAFETY: a block has four times 32 bytes from its 16th on: low halves for one run of 32 values, high ones for the next.
                let both = unsafe { _mm512_loadu_si512(block.add(16 + two * 64).cast()) };
                let (low, high) = (_mm512_and_si512(both, nibble), _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble));
                let low_scales = _mm512_permutexvar_epi16(halves_16(4 * two, 4 * two + 2), scales);
                let high_scales = _mm512_permutexvar_epi16(halves_16(4 * two + 1, 4 * two + 3), scales);
                for m in 0..M {
                    // SAFETY: a block of activations has 256 values.
                    let (of_low, of_high) = unsafe {
                        let values = x[m].values.add(index * 256 + two * 128);
                        (_mm512_loadu_si512(values.cast()), _mm512_loadu_si512(values.add(64).cast()))
                    };
                    whole[m] = _mm512_dpwssd_epi32(whole[m], _mm512_maddubs_epi16(low, of_low), low_scales);
                    whole[m] = _mm512_dpwssd_epi32(whole[m], _mm512_maddubs_epi16(high, of_high), high_scales);
                }
            }
            for m in 0..M {
                // SAFETY: a block of activations has eight sums in 16 bits and a scale.
                let (own, of_32) = unsafe { (_mm512_set1_ps(*x[m].scales.add(index)), _mm_loadu_si128(x[m].sums.add(index * 4).cast())) };
                let below = _mm_dpwssd_epi32(_mm_setzero_si128(), minima, of_32);
                let below = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_zextsi128_si512(below)), minimum);
                sums[m] = _mm512_fmadd_ps(_mm512_fmsub_ps(_mm512_cvtepi32_ps(whole[m]), scale, below), own, sums[m]);
            }
        }
        let mut out = [0.0; M];
        for m in 0..M {
            out[m] = _mm512_reduce_add_ps(sums[m]);
        }
        out
    }

    /// Eight times each of numbers `4 part .. 4 part + 4`, in 16 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn quarters_16(part: usize) -> __m512i {
        let eighths = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
        let sixteen_bits = _mm512_or_si512(eighths, _mm512_slli_epi64::<16>(eighths));
        let all = _mm512_or_si512(sixteen_bits, _mm512_slli_epi64::<32>(sixteen_bits));
        _mm512_add_epi16(all, _mm512_set1_epi16(4 * part as i16))
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
            let scales = unsafe { _mm_loadu_si128(block.add(192).cast()) };
            let (scales_32, scales) = (_mm512_cvtepi8_epi32(scales), _mm512_zextsi256_si512(_mm256_cvtepi8_epi16(scales)));
            let mut whole = [_mm512_setzero_si512(); M];
            for m in 0..M {
                // SAFETY: a block of activations has 16 sums.
                whole[m] = _mm512_mullo_epi32(scales_32, unsafe { _mm512_loadu_si512(x[m].sums.add(index * 16).cast()) });
            }
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
                for part in 0..2 {
                    let at = half * 2 + part;
                    let scales = _mm512_permutexvar_epi16(quarters_16(at), scales);
                    for m in 0..M {
                        // SAFETY: a block of activations has 256 values.
                        let values = unsafe { _mm512_loadu_si512(x[m].values.add(index * 256 + at * 64).cast()) };
                        whole[m] = _mm512_dpwssd_epi32(whole[m], _mm512_maddubs_epi16(parts[part], values), scales);
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
