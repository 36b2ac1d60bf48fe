//! Small matrix products on padded rows, for use inside one core's piece of work.

use crate::gemm::{self, Added, SmallRight};
use crate::simd::vectorised;

/// Columns of a register tile; widths are padded to a multiple of it.
pub const TILE: usize = 16;
const ROWS: usize = 4;

/// `n` rounded up to whole tiles.
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(TILE)
}

/// The left factor: (m, k) with value (i, p) at `i * row + p * column`, one of which is 1.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
    pub size: (usize, usize),
}

/// out (m, n) = left (m, k) * right (k, n) and what `added` says; rows of both lie `stride` apart, n is a multiple of [`TILE`].
pub fn product(out: &mut [f32], left: Left, right: &SmallRight, n: usize, stride: usize, added: Added) {
    let (m, k) = left.size;
    let factor = gemm::Left { values: left.values, row: left.row, column: left.column };
    if m * k > 0 && gemm::small_product((m, k, n), factor, right, stride, out, added) {
        return;
    }
    for (row, out) in out.chunks_mut(stride).take(m).enumerate() {
        match added {
            Added::Nothing => out[..n].fill(0.0),
            Added::Own => {}
            Added::To(values, stride) => out[..n].copy_from_slice(&values[row * stride..][..n]),
        }
    }
    if m * k > 0 {
        add_product_plain(out, left, right.values().expect("there are pairs only where the processor multiplies them"), n, stride);
    }
}

/// out (m, n) += left (m, k) * right (k, n); as [`product`].
pub fn add_product(out: &mut [f32], left: Left, right: &SmallRight, n: usize, stride: usize) {
    product(out, left, right, n, stride, Added::Own);
}

vectorised! {
    fn add_product_plain(out: &mut [f32], left: Left, right: &[f32], n: usize, stride: usize) {
        let (m, k) = left.size;
        let mut panel = vec![[0.0f32; ROWS]; k];
        for start in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - start);
            for (p, column) in panel.iter_mut().enumerate() {
                *column = [0.0; ROWS];
                for (r, value) in column[..rows].iter_mut().enumerate() {
                    *value = left.values[(start + r) * left.row + p * left.column];
                }
            }
            for tile in (0..n).step_by(TILE) {
                let mut sums = [[0.0f32; TILE]; ROWS];
                // by index: the iterators' constructors are not always inlined into code for wider registers
                for p in 0..k {
                    let a = panel[p];
                    let b: &[f32; TILE] = right[p * stride + tile..][..TILE].try_into().expect("the slice has a tile's length");
                    for r in 0..ROWS {
                        for t in 0..TILE {
                            sums[r][t] = a[r].mul_add(b[t], sums[r][t]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    let out = &mut out[(start + r) * stride + tile..][..TILE];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::multiplies_pairs;

    #[test]
    fn product_adds_the_sum_of_products_for_both_orders_of_the_left_factor() {
        for (m, k, n) in [(1, 1, 16), (4, 3, 16), (7, 5, 32), (13, 9, 48), (33, 70, 16), (20, 40, 80)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i % 5) as f32 - 2.0).collect();
            let value = |i: usize, j: usize| 1.0 + (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum::<f32>();
            let expected: Vec<f32> = (0..m * n).map(|at| value(at / n, at % n)).collect();
            let turned: Vec<f32> = (0..k * m).map(|at| a[at % m * k + at / m]).collect();
            for left in [Left { values: &a, row: k, column: 1, size: (m, k) }, Left { values: &turned, row: 1, column: m, size: (m, k) }] {
                let mut outs = [vec![1.0; m * n], vec![1.0; m * n]];
                add_product(&mut outs[0], left, &SmallRight::Values(b.as_slice().into()), n, n);
                add_product_plain(&mut outs[1], left, &b, n, n);
                assert_eq!(outs, [expected.clone(), expected.clone()]);
                if multiplies_pairs() {
                    // whole numbers of three bits are no less exact in bf16
                    let columns: Vec<f32> = (0..n * k).map(|at| b[at % k * n + at / k]).collect();
                    for right in [SmallRight::paired((&b, n), (k, n), n), SmallRight::turned((&columns, k), (n, k), n, true)] {
                        let mut out = vec![1.0; m * n];
                        add_product(&mut out, left, &right, n, n);
                        assert_eq!(out, expected, "{m} {k} {n}");
                    }
                }
            }
        }
    }
}
