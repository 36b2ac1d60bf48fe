//! Attention of one query over cached keys and values, for texts being written.

use super::kernel::{Rows, inner_products, weighted_sum};
use crate::simd::vectorised;
use crate::softmax::softmax_row;

vectorised! {
    /// Softmax attention of one query (D) over the rows of `keys` and `values` (M, D), written to `out` (D). A query's result depends on
    /// nothing but its own keys and values: it has the same bits whatever else is attended to beside it.
    pub fn attend_one(query: &[f32], keys: &[f32], values: &[f32], scale: f32, out: &mut [f32]) {
        let stride = query.len();
        let mut weights = vec![0.0; keys.len() / stride];
        inner_products(query, Rows { values: keys, stride }, scale, &mut weights);
        softmax_row(&mut weights);
        weighted_sum(&weights, Rows { values, stride }, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn one_query_gets_what_softmax_attention_gives_in_f64() {
        for (m, d) in [(1, 3), (7, 32), (130, 48), (33, 128)] {
            let (query, keys, values) = (noise(d, 1), noise(m * d, 2), noise(m * d, 3));
            let scale = 1.0 / (d as f64).sqrt();
            let logit = |j: usize| scale * (0..d).map(|c| f64::from(query[c]) * f64::from(keys[j * d + c])).sum::<f64>();
            let weights: Vec<f64> = (0..m).map(|j| logit(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut out = vec![f32::NAN; d];
            attend_one(&query, &keys, &values, scale as f32, &mut out);
            for (c, found) in out.iter().enumerate() {
                let expected = (0..m).map(|j| weights[j] / total * f64::from(values[j * d + c])).sum::<f64>();
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{m} {d}: {found} for {expected}");
            }
        }
    }
}
