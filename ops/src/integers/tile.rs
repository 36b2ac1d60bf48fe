//! The innermost loops: strips of a quantised matrix, and a register tile of the output.

// A closure handed to a function of the standard library is not inlined here, where it has more processor features than that function,
// and forces what it captures into memory: these kernels have plain loops.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::arch::x86_64::*;

use super::{Part, ROWS, SHIFT, SHIFT_BITS, WIDTH};
use crate::gemm::{Place, Right, mask, turn_16};
use crate::matrix::{Format, q4_k_scales};

/// A line of the cache: what a register takes in one read.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub struct Line(#[expect(dead_code, reason = "written and read as a register")] [u32; Line::WORDS]);

impl Line {
    pub const WORDS: usize = 16;
}

/// Writes the product of so many parts of a packed tile and a packed strip to `place`.
///
/// # Safety
/// The place's rows and columns lie in memory that nothing else uses meanwhile; the processor has the integer products.
pub unsafe fn multiply(part: Part, left: &[u32], strip: &[Line], parts: usize, place: Place) {
    assert!(left.len() >= parts * part.left_words() * place.rows && strip.len() * Line::WORDS >= parts * part.strip_words());
    assert!((1..=ROWS).contains(&place.rows) && place.columns <= WIDTH);
    macro_rules! rows {
        ($($rows:literal)*) => {
            match (place.rows, part) {
                // SAFETY: the lengths are checked above, the rest is the caller's promise.
                $(($rows, Part { minima: true, .. }) => unsafe { tile::<$rows, 8, true>(left.as_ptr(), strip.as_ptr(), parts, place) },
                ($rows, Part { values: 16, .. }) => unsafe { tile::<$rows, 4, false>(left.as_ptr(), strip.as_ptr(), parts, place) },
                ($rows, _) => unsafe { tile::<$rows, 8, false>(left.as_ptr(), strip.as_ptr(), parts, place) },)*
                _ => unreachable!("a tile has 1 to 6 rows"),
            }
        };
    }
    rows!(1 2 3 4 5 6);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<const R: usize, const WORDS: usize, const MINIMA: bool>(left: *const u32, strip: *const Line, parts: usize, place: Place) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for r in 0..R {
        for half in 0..2 {
            // SAFETY: masked to the place's columns.
            sums[r][half] = unsafe { place.before_at(r, half, mask(place.columns, half)) };
        }
    }
    let (mut left, mut strip) = (left.cast::<i32>(), strip.cast::<[__m512i; 2]>());
    for _ in 0..parts {
        // SAFETY: `multiply` has checked the lengths.
        unsafe {
            let (scales, last) = (left.add(WORDS * R), left.add((WORDS + 1) * R));
            let mut whole = [[_mm512_set1_epi32(SHIFT_BITS); 2]; R];
            if !MINIMA {
                for r in 0..R {
                    whole[r] = [_mm512_set1_epi32(*last.add(r)); 2];
                }
            }
            for word in 0..WORDS {
                let columns = *strip.add(word);
                for r in 0..R {
                    let row = _mm512_set1_epi32(*left.add(word * R + r));
                    whole[r][0] = _mm512_dpbusd_epi32(whole[r][0], columns[0], row);
                    whole[r][1] = _mm512_dpbusd_epi32(whole[r][1], columns[1], row);
                }
            }
            let (column_scales, back, minima) = (*strip.add(WORDS), *strip.add(WORDS + 1), strip.add(WORDS + 2));
            for r in 0..R {
                let scale = _mm512_castsi512_ps(_mm512_set1_epi32(*scales.add(r)));
                for half in 0..2 {
                    let (of_column, back) = (_mm512_castsi512_ps(column_scales[half]), _mm512_castsi512_ps(back[half]));
                    let scaled = _mm512_fmadd_ps(_mm512_castsi512_ps(whole[r][half]), of_column, back);
                    sums[r][half] = _mm512_fmadd_ps(scaled, scale, sums[r][half]);
                }
                if MINIMA {
                    let sum = _mm512_castsi512_ps(_mm512_set1_epi32(*last.add(r)));
                    let minima = *minima;
                    for half in 0..2 {
                        sums[r][half] = _mm512_fmadd_ps(_mm512_castsi512_ps(minima[half]), sum, sums[r][half]);
                    }
                }
            }
            left = left.add((WORDS + 2) * R);
            strip = strip.add(WORDS + 2 + MINIMA as usize);
        }
    }
    for r in 0..R {
        for half in 0..2 {
            let out = place.start.wrapping_add(r * place.stride + half * 16);
            // SAFETY: masked to the place's columns.
            unsafe { _mm512_mask_storeu_ps(out, mask(place.columns, half), sums[r][half]) };
        }
    }
}

/// Packs the values `start .. start + count` of the rows from `first` on; lanes beyond the columns hold the last one again.
pub fn pack_strip(right: Right, (first, columns): (usize, usize), (start, count): (usize, usize), strip: &mut [Line]) {
    let (part, block) = (Part::of(right.format), right.format.block());
    assert!(
        strip.len() * Line::WORDS >= count / part.values * part.strip_words() && start.is_multiple_of(block) && count.is_multiple_of(block)
    );
    assert!(start + count <= right.columns && (1..=WIDTH).contains(&columns));
    for half in 0..WIDTH / 16 {
        let mut rows = [std::ptr::null(); 16];
        for (lane, row) in rows.iter_mut().enumerate() {
            let index = first + (half * 16 + lane).min(columns - 1);
            *row = right.row(index)[start / block * right.format.block_bytes()..].as_ptr();
        }
        let strip = strip.as_mut_ptr().wrapping_add(half).cast();
        // SAFETY: the rows hold so many blocks and the strip so many parts; products are asked for where the processor has the features.
        unsafe {
            match right.format {
                Format::Q8_0 => q8_0(rows, count / block, strip),
                Format::Q4K => q4_k(rows, count / block, strip),
                _ => q6_k(rows, count / block, strip),
            }
        }
    }
}

/// Writes the scales of a part's columns, and [`SHIFT`] times minus them, behind its words.
///
/// # Safety
/// There are so many words and two more for each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn store_scales(scales: __m512, part: *mut __m512i, words: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        *part.add(2 * words) = _mm512_castps_si512(scales);
        *part.add(2 * words + 2) = _mm512_castps_si512(_mm512_mul_ps(scales, _mm512_set1_ps(-SHIFT)));
    }
}

/// The halves at byte `at` of 16 rows.
///
/// # Safety
/// They lie there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn halves(rows: [*const u8; 16], at: usize) -> __m512 {
    let mut halves = [0u16; 16];
    for lane in 0..16 {
        // SAFETY: the caller's promise.
        halves[lane] = unsafe { rows[lane].add(at).cast::<u16>().read_unaligned() };
    }
    // SAFETY: 16 halves.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) })
}

/// # Safety
/// The rows hold so many blocks, the strip from this half on as many parts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn q8_0(rows: [*const u8; 16], blocks: usize, strip: *mut __m512i) {
    const LINES: usize = 2 * 10;
    for first in (0..blocks).step_by(2) {
        // an odd last block is read twice
        let pair = [first, (first + 1).min(blocks - 1)];
        let mut words = [_mm512_setzero_si512(); 16];
        // SAFETY: a block has 34 bytes, of which 32 follow the scale; a part has eight words and two scales for each lane.
        unsafe {
            for lane in 0..16 {
                let low = _mm512_castsi256_si512(_mm256_loadu_si256(rows[lane].add(pair[0] * 34 + 2).cast()));
                let both = _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(rows[lane].add(pair[1] * 34 + 2).cast()));
                words[lane] = _mm512_xor_si512(both, _mm512_set1_epi8(-128));
            }
            let words = turn_16(words);
            for (side, block) in pair.into_iter().enumerate() {
                let part = strip.add(block * LINES);
                if side == 0 || block != first {
                    for word in 0..8 {
                        *part.add(2 * word) = words[side * 8 + word];
                    }
                    store_scales(halves(rows, block * 34), part, 8);
                }
            }
        }
    }
}

/// The eight scales of a Q4_K block, then its eight minima.
///
/// # Safety
/// A block lies there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn q4_k_parts(block: *const u8) -> __m512i {
    // SAFETY: they follow the block's two halves.
    let [scales, minima] = q4_k_scales(unsafe { block.add(4).cast::<[u32; 3]>().read_unaligned() });
    _mm512_cvtepu8_epi32(_mm_set_epi64x(minima as i64, scales as i64))
}

/// # Safety
/// The rows hold so many blocks, the strip from this half on as many times eight parts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn q4_k(rows: [*const u8; 16], blocks: usize, strip: *mut __m512i) {
    const LINES: usize = 2 * 11;
    let nibble = _mm512_set1_epi8(15);
    for index in 0..blocks {
        // SAFETY: a block has 144 bytes, of which 128 of nibbles follow halves and scales; a part has eight words, two scales and a minimum for
        // each lane.
        unsafe {
            let parts = strip.add(index * 8 * LINES);
            for two in 0..2 {
                let mut words = [_mm512_setzero_si512(); 16];
                for lane in 0..16 {
                    words[lane] = _mm512_loadu_si512(rows[lane].add(index * 144 + 16 + two * 64).cast());
                }
                let words = turn_16(words);
                for word in 0..16 {
                    let low = parts.add((two * 4 + word / 8 * 2) * LINES + word % 8 * 2);
                    *low = _mm512_and_si512(words[word], nibble);
                    *low.add(LINES) = _mm512_and_si512(_mm512_srli_epi16::<4>(words[word]), nibble);
                }
            }
            let mut scales = [_mm512_setzero_si512(); 16];
            for lane in 0..16 {
                scales[lane] = q4_k_parts(rows[lane].add(index * 144));
            }
            let scales = turn_16(scales);
            let (scale, minimum) = (halves(rows, index * 144), halves(rows, index * 144 + 2));
            let minimum = _mm512_sub_ps(_mm512_setzero_ps(), minimum);
            for part in 0..8 {
                let place = parts.add(part * LINES);
                store_scales(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(scales[part])), place, 8);
                *place.add(2 * 10) = _mm512_castps_si512(_mm512_mul_ps(minimum, _mm512_cvtepi32_ps(scales[8 + part])));
            }
        }
    }
}

/// # Safety
/// The rows hold so many blocks, the strip from this half on as many times 16 parts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn q6_k(rows: [*const u8; 16], blocks: usize, strip: *mut __m512i) {
    const LINES: usize = 2 * 6;
    let (nibble, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    for index in 0..blocks {
        // SAFETY: a block has 210 bytes: 128 of low bits, 64 of high ones, 16 scales and a half; a part has four words and two scales for each
        // lane.
        unsafe {
            let parts = strip.add(index * 16 * LINES);
            let (mut words, mut scales) = ([[_mm512_setzero_si512(); 16]; 3], [_mm512_setzero_si512(); 16]);
            for lane in 0..16 {
                let block = rows[lane].add(index * 210);
                for third in 0..3 {
                    words[third][lane] = _mm512_loadu_si512(block.add(third * 64).cast());
                }
                scales[lane] = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(192).cast()));
            }
            let (low, high) = ([turn_16(words[0]), turn_16(words[1])], turn_16(words[2]));
            for half in 0..2 {
                for word in 0..8 {
                    let high = high[half * 8 + word];
                    let high = [_mm512_slli_epi16::<4>(high), _mm512_slli_epi16::<2>(high), high, _mm512_srli_epi16::<2>(high)];
                    for quarter in 0..4 {
                        let low = low[half][quarter % 2 * 8 + word];
                        let low = if quarter < 2 { low } else { _mm512_srli_epi16::<4>(low) };
                        let value = _mm512_or_si512(_mm512_and_si512(low, nibble), _mm512_and_si512(high[quarter], two_bits));
                        *parts.add((half * 8 + quarter * 2 + word / 4) * LINES + word % 4 * 2) = value;
                    }
                }
            }
            let (scale, scales) = (halves(rows, index * 210 + 208), turn_16(scales));
            for part in 0..16 {
                store_scales(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(scales[part])), parts.add(part * LINES), 4);
            }
        }
    }
}
