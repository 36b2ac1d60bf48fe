//! Rows of f32, f16 and bf16, widened to f32 in the register.

use super::ROWS;
use crate::gemm::Right;

/// Products of the rows from `first` on with m rows of x; out: (rows, m). The processor has 512-bit registers.
#[cfg(target_arch = "x86_64")]
pub fn rows(x: &[f32], m: usize, right: Right, first: usize, out: &mut [f32]) {
    let k = right.columns;
    let count = out.len() / m;
    // a short group reads its last row again
    let rows: [*const u8; ROWS] = std::array::from_fn(|row| right.row(first + row.min(count - 1)).as_ptr());
    for start in (0..m).step_by(ROWS) {
        let part = &x[start * k..];
        macro_rules! group {
            ($($size:literal)*) => {
                match (m - start).min(ROWS) {
                    // SAFETY: the caller has checked the processor; all rows hold k values.
                    $($size => unsafe { store(&x86::group::<$size>(rows, part, k, right.format), out, (m, start)) },)*
                    _ => unreachable!("a group has 1 to 4 rows"),
                }
            };
        }
        group!(1 2 3 4);
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn rows(x: &[f32], m: usize, right: Right, first: usize, out: &mut [f32]) {
    super::read_rows(x, m, right, first, out);
}

#[cfg(target_arch = "x86_64")]
fn store<const M: usize>(sums: &[[f32; M]; ROWS], out: &mut [f32], (m, start): (usize, usize)) {
    for (out, sums) in out.chunks_exact_mut(m).zip(sums) {
        out[start..start + M].copy_from_slice(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::ROWS;
    use crate::matrix::Format;

    const LANES: usize = 16;

    /// Inner products of [`ROWS`] rows of the matrix with M rows of x, k values each.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and VL; the rows hold k values in `format`, x M rows of k.
    pub unsafe fn group<const M: usize>(rows: [*const u8; ROWS], x: &[f32], k: usize, format: Format) -> [[f32; M]; ROWS] {
        assert!(x.len() >= M * k);
        // SAFETY: the caller's promises.
        unsafe {
            match format {
                Format::F32 => f32_rows(rows, x, k),
                Format::F16 => f16_rows(rows, x, k),
                _ => bf16_rows(rows, x, k),
            }
        }
    }

    macro_rules! kernel {
        ($name:ident, $bytes:literal, $whole:expr, $part:expr) => {
            #[allow(clippy::needless_range_loop, reason = "see below")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn $name<const M: usize>(rows: [*const u8; ROWS], x: &[f32], k: usize) -> [[f32; M]; ROWS] {
                // plain counting: iterators' closures would be calls, since what they are called by has not these features
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
                let mut totals = [[0.0; M]; ROWS];
                for r in 0..ROWS {
                    for m in 0..M {
                        totals[r][m] = _mm512_reduce_add_ps(sums[r][m]);
                    }
                }
                totals
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    fn widen(words: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
    }

    kernel!(f32_rows, 4, |at: *const u8| _mm512_loadu_ps(at.cast()), |mask, at: *const u8| _mm512_maskz_loadu_ps(mask, at.cast()));
    kernel!(f16_rows, 2, |at: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), |mask, at: *const u8| _mm512_cvtph_ps(
        _mm256_maskz_loadu_epi16(mask, at.cast())
    ));
    kernel!(bf16_rows, 2, |at: *const u8| widen(_mm256_loadu_si256(at.cast())), |mask, at: *const u8| widen(_mm256_maskz_loadu_epi16(
        mask,
        at.cast()
    )));
}
