//! The nearest row of a table: by products of bf16, then exactly among the few that could be it.
//!
//! bf16 rounds each value by at most 2^-8 of itself, so an inner product of rounded rows lies within (2 2^-8 + 2^-16) |x| |row| of the exact
//! one (Cauchy and Schwarz): a row that is further than twice that below the best cannot win.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{Values, fused};
use crate::gemm::{Left, Precision, Right, product};
use crate::simd::{dot_of, largest, vectorised};

/// Rows of x at a time: their scores stay small whatever the table.
const BLOCK: usize = 512;

/// How far rounding moves an inner product of rows of length one: the factors' bf16, and the f32 sums of both.
const ROUNDING: f32 = 2.1 / 256.0;

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
    for (indices, x) in indices.chunks_mut(BLOCK).zip(values.chunks(BLOCK * width)) {
        search.block(x, indices);
    }
    Tensor::from_vec(indices, rows, &Device::Cpu)
}

vectorised! {
    /// Indices of the values that are at least `from`.
    fn at_least(values: &[f32], from: f32, found: &mut Vec<u32>) {
        for (chunk, values) in values.chunks(64).enumerate() {
            if largest(values) >= from {
                let here = values.iter().enumerate().filter(|(_, value)| **value >= from);
                found.extend(here.map(|(at, _)| (64 * chunk + at) as u32));
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
    /// Length of the table's longest row.
    longest: f32,
}

impl<'a> Search<'a> {
    fn new(table: &'a [f32], width: usize) -> Self {
        let longest = table.par_chunks_exact(width).map(|row| dot_of(row, row)).reduce(|| 0.0, f32::max).sqrt();
        Search { table, width, longest }
    }

    fn scores(&self, x: &[f32], precision: Precision) -> Vec<f32> {
        let (m, n) = (x.len() / self.width, self.table.len() / self.width);
        let left = Left { values: x, row: self.width, column: 1 };
        product((m, self.width, n), left, Right::values(self.table, self.width, true), precision)
    }

    fn block(&self, x: &[f32], indices: &mut [u32]) {
        let entries = self.table.len() / self.width;
        let scores = self.scores(x, Precision::Bf16);
        let candidates: Vec<Vec<u32>> = (scores.par_chunks_exact(entries).zip(x.par_chunks_exact(self.width)))
            .map(|(scores, x)| {
                let slack = 2.0 * ROUNDING * self.longest * dot_of(x, x).sqrt();
                let mut found = Vec::new();
                at_least(scores, largest_of(scores) - slack, &mut found);
                found
            })
            .collect();
        if candidates.iter().map(Vec::len).sum::<usize>() > CANDIDATES * indices.len() {
            let scores = self.scores(x, Precision::F32);
            let best = |scores: &[f32]| first_largest(scores.iter().copied().enumerate().map(|(at, score)| (at as u32, score)));
            indices.par_iter_mut().zip(scores.par_chunks_exact(entries)).for_each(|(index, scores)| *index = best(scores));
            return;
        }
        indices.par_iter_mut().zip(candidates).zip(x.par_chunks_exact(self.width)).for_each(|((index, candidates), x)| {
            let exact = |row: u32| dot_of(x, &self.table[row as usize * self.width..][..self.width]);
            *index = first_largest(candidates.into_iter().map(|row| (row, exact(row))));
        });
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
    fn rows_that_bf16_cannot_tell_apart_are_told_apart() {
        // rows of length one that differ by less than bf16's steps: every one is a candidate of every other, few enough or too many
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
