//! Attention of a few queries over cached keys and values, for texts being written.

use super::kernel::Rows;
use crate::few::inner_products;
use crate::gemm::Level;
use crate::simd::vectorised;
use crate::softmax::softmax_row;

/// Queries whose values are summed together.
const TOGETHER: usize = 4;
/// Channels whose sums stay in registers.
const CHANNELS: usize = 32;

/// Softmax attention of a text's last tokens over the rows of `keys` and `values` (M, D), written to `out` (R, D). queries: (R, D); the last one sees
/// all M, each before it one fewer. A query's result depends on nothing but what it sees: it has the same bits whatever is attended to beside it.
pub fn attend_few(queries: &[f32], keys: &[f32], values: &[f32], width: usize, scale: f32, out: &mut [f32]) {
    let (rows, all) = (queries.len() / width, keys.len() / width);
    assert!(rows <= all && values.len() == keys.len() && out.len() == queries.len(), "each query sees a key");
    let mut weights = vec![0.0; rows * all];
    inner_products(queries, keys, width, &mut weights);
    weigh(&mut weights, scale, rows);
    for first in (0..rows).step_by(TOGETHER) {
        let some = first..rows.min(first + TOGETHER);
        weighted_sums(
            &weights[some.start * all..some.end * all],
            some.len(),
            all + 1 + first - rows,
            Rows { values, stride: width },
            &mut out[some.start * width..some.end * width],
        );
    }
}

vectorised! {
    /// Softmax of each row of logits, scaled, over what it sees: weights (R, M).
    fn weigh(weights: &mut [f32], scale: f32, rows: usize) {
        let all = weights.len() / rows;
        for (r, weights) in weights.chunks_exact_mut(all).enumerate() {
            let seen = &mut weights[..all + 1 + r - rows];
            seen.iter_mut().for_each(|weight| *weight *= scale);
            softmax_row(seen);
        }
    }

    /// As [`weighted_sums`], on any processor.
    fn plain_sums(weights: &[f32], rows: usize, seen: usize, values: Rows, out: &mut [f32]) {
        let (all, width) = (weights.len() / rows, out.len() / rows);
        out.fill(0.0);
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            for (j, &p) in weights[r * all..][..seen + r].iter().enumerate() {
                for (sum, &value) in out.iter_mut().zip(&values.values[j * values.stride..][..width]) {
                    *sum = p.mul_add(value, *sum);
                }
            }
        }
    }
}

/// out (R, D) = the values weighted by the `rows` rows of weights (R, M), at most [`TOGETHER`]: `seen` of them in row 0, one more in each row.
pub fn weighted_sums(weights: &[f32], rows: usize, seen: usize, values: Rows, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if Level::best() != Level::Plain {
        macro_rules! rows {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: the processor has 512-bit registers.
                    $($rows => unsafe { x86::sums::<$rows>(weights, seen, values, out) },)*
                    _ => unreachable!("1 to 4 rows are summed together"),
                }
            };
        }
        rows!(1 2 3 4);
        return;
    }
    plain_sums(weights, rows, seen, values, out);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(clippy::needless_range_loop, reason = "closures have not these features")]

    use std::arch::x86_64::*;

    use super::{CHANNELS, Rows};
    use crate::gemm::mask;

    /// See [`super::weighted_sums`]: the sums of R rows' [`CHANNELS`] stay in registers.
    ///
    /// # Safety
    /// The processor has 512-bit registers.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn sums<const R: usize>(weights: &[f32], seen: usize, values: Rows, out: &mut [f32]) {
        let (all, width) = (weights.len() / R, out.len() / R);
        let last = seen + R - 1;
        assert!(last <= all && (last == 0 || values.values.len() >= (last - 1) * values.stride + width));
        for first in (0..width).step_by(CHANNELS) {
            let masks = [mask(width - first, 0), mask(width - first, 1)];
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            for j in 0..last {
                let row = values.values.as_ptr().wrapping_add(j * values.stride + first);
                // row r sees r more than the first
                for r in 0..R {
                    if j < seen + r {
                        // SAFETY: the lengths are checked above; loads are masked to the width.
                        unsafe {
                            let p = _mm512_set1_ps(*weights.get_unchecked(r * all + j));
                            for half in 0..2 {
                                let values = _mm512_maskz_loadu_ps(masks[half], row.wrapping_add(16 * half));
                                sums[r][half] = _mm512_fmadd_ps(p, values, sums[r][half]);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                for half in 0..2 {
                    let place = out.as_mut_ptr().wrapping_add(r * width + first + 16 * half);
                    // SAFETY: masked to the row's width.
                    unsafe { _mm512_mask_storeu_ps(place, masks[half], sums[r][half]) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn each_query_gets_what_softmax_attention_gives_in_f64_and_its_bits_alone() {
        for (rows, m, d) in [(1, 1, 3), (1, 7, 32), (3, 3, 16), (2, 130, 48), (8, 33, 128), (5, 200, 80), (7, 40, 5)] {
            let (queries, keys, values) = (noise(rows * d, 1), noise(m * d, 2), noise(m * d, 3));
            let scale = 1.0 / (d as f64).sqrt();
            let mut out = vec![f32::NAN; rows * d];
            attend_few(&queries, &keys, &values, d, scale as f32, &mut out);
            for (row, (query, out)) in queries.chunks_exact(d).zip(out.chunks_exact(d)).enumerate() {
                let seen = m + 1 + row - rows;
                let logit = |j: usize| scale * (0..d).map(|c| f64::from(query[c]) * f64::from(keys[j * d + c])).sum::<f64>();
                let weights: Vec<f64> = (0..seen).map(|j| logit(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (c, found) in out.iter().enumerate() {
                    let expected = (0..seen).map(|j| weights[j] / total * f64::from(values[j * d + c])).sum::<f64>();
                    assert!((f64::from(*found) - expected).abs() < 1e-6, "{rows} {m} {d}: {found} for {expected}");
                }
                let mut alone = vec![f32::NAN; d];
                attend_few(query, &keys[..seen * d], &values[..seen * d], d, scale as f32, &mut alone);
                assert_eq!(alone, out, "{rows} {m} {d}, row {row}");
            }
        }
    }
}
