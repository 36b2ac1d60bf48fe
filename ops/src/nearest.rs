//! The nearest row of a table: by products of 16-bit integers, then exactly among the few that could be it.
//!
//! [`Precision::Int16`] moves each value by at most half of its row's scale, which is at most the row's length over 32,767: an inner product
//! of rows of C values by at most sqrt(C) / 32,767 of both lengths' product (Cauchy and Schwarz). A row that is further than twice that below the
//! best cannot win.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{Values, fused};
use crate::gemm::{Added, Left, PackedRight, PackedRows, Precision, Right, product};
use crate::simd::{dot_of, largest, vectorised};

/// Rows of x that one core takes at a time, and rows of the table: their scores stay in its cache.
const BLOCK: usize = 98;
const COLUMNS: usize = 512;

/// With more candidates a row than this an f32 product of all is faster.
const CANDIDATES: usize = 48;

/// For each row of x the index of the row of `table` with the largest inner product, the first of equal ones; no gradient.
/// x: (N, C), table: (K, C), K > 0 -> u32 (N).
pub fn nearest_rows(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (x, table) = (x.detach().contiguous()?, table.detach().contiguous()?);
    let ((rows, width), (entries, table_width)) = (x.dims2()?, table.dims2()?);
    if !fused(&[&x, &table]) || width == 0 || width != table_width || entries == 0 {
        return x.matmul(&table.t()?)?.argmax(D::Minus1);
    }
    let (values, table) = (Values::of(&x)?, Values::of(&table)?);
    let search = Search::new(&table, width);
    let mut indices = vec![0u32; rows];
    let work = |rows: &mut PackedRows, (indices, x): (&mut [u32], &[f32])| search.block(x, indices, rows);
    indices.par_chunks_mut(BLOCK).zip(values.par_chunks(BLOCK * width)).for_each_init(PackedRows::default, work);
    Tensor::from_vec(indices, rows, &Device::Cpu)
}

vectorised! {
    /// The values that are at least `from`, with their indices from `first` on.
    fn at_least(values: &[f32], from: f32, first: usize, found: &mut Vec<(u32, f32)>) {
        for (chunk, values) in values.chunks(64).enumerate() {
            if largest(values) >= from {
                let here = values.iter().enumerate().filter(|(_, value)| **value >= from);
                found.extend(here.map(|(at, value)| ((first + 64 * chunk + at) as u32, *value)));
            }
        }
    }

    fn largest_of(values: &[f32]) -> f32 {
        largest(values)
    }
}

struct Search<'a> {
    table: &'a [f32],
    width: usize,
    packed: PackedRight,
    /// What a score can lie below the best and still be the best's, for an x of length one.
    slack: f32,
}

impl<'a> Search<'a> {
    fn new(table: &'a [f32], width: usize) -> Self {
        let longest = table.par_chunks_exact(width).map(|row| dot_of(row, row)).reduce(|| 0.0, f32::max).sqrt();
        // beside the integers' rounding that of sums in f32
        let rounding = 1.01 * (width as f32).sqrt() / 32_767.0 + 1e-5;
        Search { table, width, packed: PackedRight::new(table, width, Precision::Int16), slack: 2.0 * rounding * longest }
    }

    fn block(&self, x: &[f32], indices: &mut [u32], rows: &mut PackedRows) {
        let (entries, count) = (self.packed.columns(), indices.len());
        rows.pack(x, &self.packed);
        let mut scores = vec![0.0; count * COLUMNS.min(entries)];
        let slack: Vec<f32> = x.chunks_exact(self.width).map(|x| self.slack * dot_of(x, x).sqrt()).collect();
        // best score so far and those near it
        let mut found: Vec<(f32, Vec<(u32, f32)>)> = vec![(f32::NEG_INFINITY, Vec::new()); count];
        for first in (0..entries).step_by(COLUMNS) {
            let columns = COLUMNS.min(entries - first);
            rows.multiply(&self.packed, 0, (first, columns), (&mut scores, columns), Added::Nothing);
            for ((scores, (best, near)), slack) in scores.chunks_exact(columns).zip(&mut found).zip(&slack) {
                *best = best.max(largest_of(scores));
                at_least(scores, *best - slack, first, near);
            }
        }
        for ((best, near), slack) in found.iter_mut().zip(&slack) {
            near.retain(|(_, score)| *score >= *best - slack);
        }
        if found.iter().map(|(_, near)| near.len()).sum::<usize>() > CANDIDATES * count {
            let left = Left { values: x, row: self.width, column: 1 };
            let scores = product((count, self.width, entries), left, Right::values(self.table, self.width, true), Precision::F32);
            let best = |scores: &[f32]| first_largest(scores.iter().copied().enumerate().map(|(at, score)| (at as u32, score)));
            indices.iter_mut().zip(scores.chunks_exact(entries)).for_each(|(index, scores)| *index = best(scores));
            return;
        }
        for ((index, (_, near)), x) in indices.iter_mut().zip(found).zip(x.chunks_exact(self.width)) {
            let exact = |row: u32| dot_of(x, &self.table[row as usize * self.width..][..self.width]);
            *index = first_largest(near.into_iter().map(|(row, _)| (row, exact(row))));
        }
    }
}

/// 0 for nothing and for NaN only.
fn first_largest(scores: impl Iterator<Item = (u32, f32)>) -> u32 {
    scores.fold((0, f32::NEG_INFINITY), |best, (at, score)| if score > best.1 { (at, score) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize, seed: usize) -> Tensor {
        // a hash: the usual ramp modulo a prime makes some rows nearly equal
        let value = |i: usize| {
            let mixed = ((i + seed) as u32).wrapping_mul(2_654_435_761);
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519);
            ((mixed ^ (mixed >> 13)) >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn exact(x: &Tensor, table: &Tensor) -> Vec<u32> {
        let (x, table) = (x.to_vec2::<f32>().unwrap(), table.to_vec2::<f32>().unwrap());
        let score = |x: &[f32], row: &[f32]| x.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let best = |x: &[f32]| {
            let scores = table.iter().map(|row| score(x, row)).enumerate();
            scores.fold((0, f64::NEG_INFINITY), |best, (at, score)| if score > best.1 { (at, score) } else { best }).0 as u32
        };
        x.iter().map(|x| best(x)).collect()
    }

    #[test]
    fn the_nearest_rows_are_those_of_f64() {
        for (rows, entries, width) in [(1, 1, 1), (3, 70, 5), (600, 300, 64), (20, 500, 33)] {
            let (x, table) = (noise(rows, width, 1), noise(entries, width, 90));
            assert_eq!(nearest_rows(&x, &table).unwrap().to_vec1::<u32>().unwrap(), exact(&x, &table), "{rows} {entries} {width}");
        }
    }

    #[test]
    fn rows_that_rounding_cannot_tell_apart_are_told_apart() {
        // rows of length one that differ by less than rounding moves a product: every one is a candidate of every other, few enough or too many
        for entries in [40u32, 200] {
            let base = noise(1, 64, 100_003).broadcast_as((entries as usize, 64)).unwrap();
            let rows = (base + (noise(entries as usize, 64, 17) * 4e-3).unwrap()).unwrap();
            let table = crate::l2_normalize(&rows, 1e-12).unwrap();
            assert_eq!(nearest_rows(&table, &table).unwrap().to_vec1::<u32>().unwrap(), (0..entries).collect::<Vec<_>>());
        }
    }

    #[test]
    fn of_equal_rows_the_first_is_taken() {
        let table = Tensor::new(&[[0f32, 1.0], [1.0, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let x = Tensor::new(&[[2f32, 0.5], [0.0, 3.0]], &Device::Cpu).unwrap();
        assert_eq!(nearest_rows(&x, &table).unwrap().to_vec1::<u32>().unwrap(), [1, 0]);
    }
}
