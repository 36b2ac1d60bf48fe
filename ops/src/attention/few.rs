//! Attention of a few queries over cached keys and values, for texts being written.

use super::kernel::Rows;
use crate::few::inner_products;
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

    /// out (R, D) = the values weighted by the `rows` rows of weights (R, M), at most [`TOGETHER`]: `seen` of them in row 0, one more in each row.
    pub fn weighted_sums(weights: &[f32], rows: usize, seen: usize, values: Rows, out: &mut [f32]) {
        match rows {
            1 => sums_of::<1>(weights, seen, values, out),
            2 => sums_of::<2>(weights, seen, values, out),
            3 => sums_of::<3>(weights, seen, values, out),
            _ => sums_of::<TOGETHER>(weights, seen, values, out),
        }
    }
}

#[inline(always)]
fn sums_of<const R: usize>(weights: &[f32], seen: usize, values: Rows, out: &mut [f32]) {
    let (all, width) = (weights.len() / R, out.len() / R);
    for first in (0..width).step_by(CHANNELS) {
        let channels = CHANNELS.min(width - first);
        // all of a register's channels of the values that every row sees, and then one by one what is left
        let together = if channels == CHANNELS { seen } else { 0 };
        let sums = whole_sums::<R>(weights, together, values, first);
        for (r, (sums, out)) in sums.iter().zip(out.chunks_exact_mut(width)).enumerate() {
            let out = &mut out[first..][..channels];
            out.copy_from_slice(&sums[..channels]);
            for j in together..seen + r {
                let p = weights[r * all + j];
                for (sum, &value) in out.iter_mut().zip(&values.values[j * values.stride + first..][..channels]) {
                    *sum = p.mul_add(value, *sum);
                }
            }
        }
    }
}

/// The first `seen` values' channels from `first` on, weighted. What else indexes the sums would keep them out of registers: they are given back whole.
#[inline(always)]
fn whole_sums<const R: usize>(weights: &[f32], seen: usize, values: Rows, first: usize) -> [[f32; CHANNELS]; R] {
    let (all, mut sums) = (weights.len() / R, [[0.0; CHANNELS]; R]);
    for j in 0..seen {
        let row: &[f32; CHANNELS] = values.values[j * values.stride + first..][..CHANNELS].try_into().expect("the slice is so long");
        for r in 0..R {
            let p = weights[r * all + j];
            for c in 0..CHANNELS {
                sums[r][c] = p.mul_add(row[c], sums[r][c]);
            }
        }
    }
    sums
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
