//! Rows of f32, f16 and bf16, widened to f32 in the register.

use super::ROWS;
use crate::gemm::Right;
#[cfg(target_arch = "x86_64")]
use crate::matrix::bf12;

/// Values of a row that one register of bf16 holds.
const GROUP: usize = 32;

/// Rows of x with the evens of each [`GROUP`] before its odds: a register of bf16 gives both in one step each.
pub struct Split {
    values: Vec<f32>,
    m: usize,
    k: usize,
}

impl Split {
    /// x: rows of k values; what the last group has too many is zero.
    pub fn new(x: &[f32], k: usize) -> Self {
        let (m, length) = (x.len() / k.max(1), k.next_multiple_of(GROUP));
        let mut values = vec![0.0; m * length];
        for (out, x) in values.chunks_exact_mut(length.max(1)).zip(x.chunks_exact(k.max(1))) {
            for (out, x) in out.chunks_exact_mut(GROUP).zip(x.chunks(GROUP)) {
                let (evens, odds) = out.split_at_mut(GROUP / 2);
                for (pair, x) in x.chunks(2).enumerate() {
                    evens[pair] = x[0];
                    odds[pair] = x.get(1).copied().unwrap_or(0.0);
                }
            }
        }
        Split { values, m, k }
    }
}

/// Rows of x that are multiplied at once: with [`ROWS`] of the matrix, the sums fill the registers.
const AT_ONCE: usize = 6;

/// Calls `$work(size, start)` for groups of at most [`AT_ONCE`] of `$m` rows, the size as a constant.
#[cfg(target_arch = "x86_64")]
macro_rules! in_groups {
    ($m:expr, $start:ident, $work:ident $arguments:tt) => {
        for $start in (0..$m).step_by(AT_ONCE) {
            match ($m - $start).min(AT_ONCE) {
                // SAFETY: the caller has checked the processor; all rows are as long as the matrix's.
                1 => unsafe { x86::$work::<1> $arguments },
                // SAFETY: as above.
                2 => unsafe { x86::$work::<2> $arguments },
                // SAFETY: as above.
                3 => unsafe { x86::$work::<3> $arguments },
                // SAFETY: as above.
                4 => unsafe { x86::$work::<4> $arguments },
                // SAFETY: as above.
                5 => unsafe { x86::$work::<5> $arguments },
                // SAFETY: as above.
                _ => unsafe { x86::$work::<6> $arguments },
            }
        }
    };
}

/// Products of m rows of x with the rows from `first` on; out: (m, rows). The processor has 512-bit registers.
#[cfg(target_arch = "x86_64")]
pub fn rows(x: &[f32], m: usize, right: Right, first: usize, out: &mut [f32]) {
    let k = right.columns;
    in_groups!(m, start, rows(&x[start * k..], right, first, out, (m, start)));
}

/// As [`rows`], of a matrix in bf16.
#[cfg(target_arch = "x86_64")]
pub fn bf16_rows(x: &Split, right: Right, first: usize, out: &mut [f32]) {
    assert!(x.k == right.columns);
    let length = x.k.next_multiple_of(GROUP);
    in_groups!(x.m, start, bf16_rows(&x.values[start * length..], right, first, out, (x.m, start)));
}

/// As [`bf16_rows`], of a matrix of bf16 in 12 bits.
#[cfg(target_arch = "x86_64")]
pub fn bf12_rows(x: &Split, right: Right, first: usize, out: &mut [f32]) {
    assert!(x.k == right.columns && x.k.is_multiple_of(bf12::BLOCK));
    in_groups!(x.m, start, bf12_rows(&x.values[start * x.k..], right, first, out, (x.m, start)));
}

#[cfg(not(target_arch = "x86_64"))]
pub fn rows(x: &[f32], m: usize, right: Right, first: usize, out: &mut [f32]) {
    super::read_rows(x, m, right, first, out);
}

#[cfg(not(target_arch = "x86_64"))]
pub fn bf16_rows(_: &Split, _: Right, _: usize, _: &mut [f32]) {
    unreachable!("rows are split for 512-bit registers only")
}

#[cfg(not(target_arch = "x86_64"))]
pub fn bf12_rows(_: &Split, _: Right, _: usize, _: &mut [f32]) {
    unreachable!("rows are split for 512-bit registers only")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // Plain counting: iterators' closures would be calls, since what they are called by has not these features.
    #![allow(clippy::needless_range_loop, reason = "see above")]

    use std::arch::x86_64::*;

    use super::{GROUP, ROWS};
    use crate::gemm::Right;
    use crate::matrix::Format;
    use crate::matrix::bf12::{self, BLOCK, BLOCK_BYTES};

    const LANES: usize = 16;

    /// Bytes before it is multiplied that a line of memory is asked for: what a core reads while memory answers, and half as much again.
    const AHEAD: usize = 6144;

    /// The rows of a group; a short one reads its last row again.
    #[inline]
    fn group(right: Right, first: usize, count: usize) -> [*const u8; ROWS] {
        let (start, last) = (right.row(first), right.row(first + count - 1).as_ptr());
        let mut rows = [last; ROWS];
        for row in 0..count - 1 {
            rows[row] =
                if right.order.is_none() { start.as_ptr().wrapping_add(row * start.len()) } else { right.row(first + row).as_ptr() };
        }
        rows
    }

    /// The matrix's f32 or f16 rows from `first` on times M rows of x, written to rows `start .. start + M` of `out`, (m, rows).
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and VL; x holds M rows as long as the matrix's.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn rows<const M: usize>(x: &[f32], right: Right, first: usize, out: &mut [f32], (m, start): (usize, usize)) {
        let (k, columns) = (right.columns, out.len() / m);
        assert!(x.len() >= M * k && start + M <= m);
        for index in (0..columns).step_by(ROWS) {
            let count = ROWS.min(columns - index);
            let rows = group(right, first + index, count);
            // SAFETY: the caller's promises.
            let sums = unsafe { if right.format == Format::F32 { f32_rows::<M>(rows, x, k) } else { f16_rows::<M>(rows, x, k) } };
            let stored = ((1u32 << count) - 1) as u8;
            for i in 0..M {
                // SAFETY: masked to the output's columns.
                unsafe { _mm_mask_storeu_ps(out.as_mut_ptr().add((start + i) * columns + index), stored, sums[i]) };
            }
        }
    }

    /// As [`rows`], of a matrix in bf16; x is split.
    ///
    /// # Safety
    /// As for [`rows`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn bf16_rows<const M: usize>(x: &[f32], right: Right, first: usize, out: &mut [f32], (m, start): (usize, usize)) {
        let (k, length) = (right.columns, right.columns.next_multiple_of(GROUP));
        assert!(x.len() >= M * length);
        let columns = out.len() / m;
        for index in 0..columns {
            let row = right.row(first + index).as_ptr();
            let mut sums = [[_mm512_setzero_ps(); 2]; M];
            let whole = k / GROUP * GROUP;
            let mut p = 0;
            while p < k {
                let mask = if p < whole { u32::MAX } else { (1 << (k - whole)) - 1 };
                // the processor's own foresight ends with a page, which often is a row; past the end nothing happens
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(p * 2 + AHEAD).cast());
                // SAFETY: the load of the row is masked to k values, rows of x are as long as whole groups.
                unsafe {
                    let row = _mm512_maskz_loadu_epi16(mask, row.add(p * 2).cast());
                    let evens = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(row));
                    let odds = _mm512_castsi512_ps(_mm512_and_si512(row, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
                    for m in 0..M {
                        let x = x.as_ptr().add(m * length + p);
                        sums[m][0] = _mm512_fmadd_ps(evens, _mm512_loadu_ps(x), sums[m][0]);
                        sums[m][1] = _mm512_fmadd_ps(odds, _mm512_loadu_ps(x.add(LANES)), sums[m][1]);
                    }
                }
                p += GROUP;
            }
            for m in 0..M {
                out[(start + m) * columns + index] = _mm512_reduce_add_ps(_mm512_add_ps(sums[m][0], sums[m][1]));
            }
        }
    }

    /// As [`bf16_rows`], of a matrix of bf16 in 12 bits.
    ///
    /// # Safety
    /// As for [`rows`]; the matrix's rows are whole blocks.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn bf12_rows<const M: usize>(x: &[f32], right: Right, first: usize, out: &mut [f32], (m, start): (usize, usize)) {
        let k = right.columns;
        assert!(x.len() >= M * k);
        let columns = out.len() / m;
        let odd_bits = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for index in 0..columns {
            let (largest, beside, blocks) = bf12::row_parts(right.row(first + index));
            assert!(blocks.len() == k / BLOCK * BLOCK_BYTES);
            let (tables, mut block, mut x_at) = (bf12::x86::tables(largest), blocks.as_ptr(), x.as_ptr());
            let mut sums = [[_mm512_setzero_ps(); 4]; M];
            for _ in 0..k / BLOCK {
                for line in 0..BLOCK_BYTES / 64 {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(AHEAD + 64 * line).cast());
                }
                // SAFETY: a block lies there, and the rows of x are k values long.
                unsafe {
                    let distances = bf12::x86::distances(block);
                    for half in 0..2 {
                        let weights = bf12::x86::weights(block, half, distances[half], tables);
                        for part in 0..2 {
                            let evens = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights[part]));
                            let odds = _mm512_castsi512_ps(_mm512_and_si512(weights[part], odd_bits));
                            for m in 0..M {
                                let x = x_at.add(m * k + (half * 2 + part) * GROUP);
                                let sums = &mut sums[m];
                                sums[2 * part] = _mm512_fmadd_ps(evens, _mm512_loadu_ps(x), sums[2 * part]);
                                sums[2 * part + 1] = _mm512_fmadd_ps(odds, _mm512_loadu_ps(x.add(LANES)), sums[2 * part + 1]);
                            }
                        }
                    }
                }
                (block, x_at) = (block.wrapping_add(BLOCK_BYTES), x_at.wrapping_add(BLOCK));
            }
            for m in 0..M {
                let [a, b, c, d] = sums[m];
                let mut sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
                for &beside in beside {
                    let (place, bits) = bf12::place_and_bits(beside);
                    let at = place / GROUP * GROUP + place % 2 * LANES + place % GROUP / 2;
                    sum = f32::from_bits(u32::from(bits) << 16).mul_add(x[m * k + at], sum);
                }
                out[(start + m) * columns + index] = sum;
            }
        }
    }

    /// The sums over four registers' lanes: they are halved together.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    fn totals_of([a, b, c, d]: [__m512; ROWS]) -> __m128 {
        let pairs = |x, y| _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
        let (ab, cd) = (_mm512_castps_pd(pairs(a, b)), _mm512_castps_pd(pairs(c, d)));
        // in each quarter one sum of a, b, c and d
        let all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(all)));
        let half = _mm256_add_ps(_mm512_castps512_ps256(all), upper);
        _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
    }

    macro_rules! kernel {
        ($name:ident, $bytes:literal, $whole:expr, $part:expr) => {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            #[inline]
            unsafe fn $name<const M: usize>(rows: [*const u8; ROWS], x: &[f32], k: usize) -> [__m128; M] {
                let mut sums = [[_mm512_setzero_ps(); M]; ROWS];
                let whole = k / LANES * LANES;
                let mut p = 0;
                while p < whole {
                    // SAFETY: p + 16 values are in every row.
                    unsafe {
                        let mut columns = [_mm512_setzero_ps(); M];
                        for m in 0..M {
                            columns[m] = _mm512_loadu_ps(x.as_ptr().add(m * k + p));
                        }
                        for r in 0..ROWS {
                            // the next group's rows: a processor's own foresight ends with a page, which often is a row; past the end nothing happens
                            _mm_prefetch::<_MM_HINT_T0>(rows[r].wrapping_add((ROWS * k + p) * $bytes).cast());
                            let row = $whole(rows[r].add(p * $bytes));
                            for m in 0..M {
                                sums[r][m] = _mm512_fmadd_ps(row, columns[m], sums[r][m]);
                            }
                        }
                    }
                    p += LANES;
                }
                if whole < k {
                    let mask = ((1u32 << (k - whole)) - 1) as u16;
                    for r in 0..ROWS {
                        for m in 0..M {
                            // SAFETY: masked to k values.
                            unsafe {
                                let row = $part(mask, rows[r].add(whole * $bytes));
                                sums[r][m] = _mm512_fmadd_ps(row, _mm512_maskz_loadu_ps(mask, x.as_ptr().add(m * k + whole)), sums[r][m]);
                            }
                        }
                    }
                }
                let mut totals = [_mm_setzero_ps(); M];
                for m in 0..M {
                    totals[m] = totals_of([sums[0][m], sums[1][m], sums[2][m], sums[3][m]]);
                }
                totals
            }
        };
    }

    kernel!(f32_rows, 4, |at: *const u8| _mm512_loadu_ps(at.cast()), |mask, at: *const u8| _mm512_maskz_loadu_ps(mask, at.cast()));
    kernel!(f16_rows, 2, |at: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), |mask, at: *const u8| _mm512_cvtph_ps(
        _mm256_maskz_loadu_epi16(mask, at.cast())
    ));
}
