use super::*;
use half::bf16;

fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

const SIZES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (3, 5, 7), (14, 512, 32), (15, 513, 33), (29, 255, 64), (5, 1030, 40), (40, 17, 100), (2, 600, 31), (64, 300, 257)];

fn expected((m, k, n): (usize, usize, usize), left: impl Fn(usize, usize) -> f64, right: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..m * n).map(|at| (0..k).map(|p| left(at / n, p) * right(p, at % n)).sum()).collect()
}

fn check(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= tolerance, "{what}: {found} for {expected}");
    }
}

#[test]
fn products_equal_those_in_f64_for_every_level_order_and_odd_size() {
    for &level in Level::all() {
        for size @ (m, k, n) in SIZES {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            for (left_turned, turned) in [(false, false), (false, true), (true, false), (true, true)] {
                let left = if left_turned { Left { values: &a, row: 1, column: m } } else { Left { values: &a, row: k, column: 1 } };
                let right = Right::values(&b, if turned { k } else { n }, turned);
                let value = |i: usize, p: usize| f64::from(a[i * left.row + p * left.column]);
                let other = |p: usize, j: usize| f64::from(if turned { b[j * k + p] } else { b[p * n + j] });
                let out = products_at(level, (m, k), left, &[(right, n)], Precision::F32).remove(0);
                check(&out, &expected(size, value, other), 1e-5 * k as f64, &format!("{level:?} {size:?} {left_turned} {turned}"));
                // factors rounded alike in f64 leave the sums' f32 rounding alone
                let rounded = |x: f64| if level == Level::Avx512Bf16 { bf16::from_f64(x).to_f64() } else { x };
                let out = products_at(level, (m, k), left, &[(right, n)], Precision::Bf16).remove(0);
                let expected = expected(size, |i, p| rounded(value(i, p)), |p, j| rounded(other(p, j)));
                check(&out, &expected, 1e-5 * k as f64, &format!("bf16 {level:?} {size:?} {left_turned} {turned}"));
            }
        }
    }
}

#[test]
fn bf16_rows_are_multiplied_where_they_lie_in_both_directions() {
    for &level in Level::all() {
        for size @ (m, k, n) in SIZES {
            for turned in [false, true] {
                let (a, b) = (noise(m * k, 3), noise(k * n, 4));
                let b: Vec<bf16> = b.iter().map(|&b| bf16::from_f32(b)).collect();
                let bytes: Vec<u8> = b.iter().flat_map(|b| b.to_le_bytes()).collect();
                let right =
                    Right { bytes: &bytes, format: Format::Bf16, columns: if turned { k } else { n }, turned, order: None, small: None };
                let other = |p: usize, j: usize| (if turned { b[j * k + p] } else { b[p * n + j] }).to_f64();
                let left = Left { values: &a, row: k, column: 1 };
                let out = products_at(level, (m, k), left, &[(right, n)], Precision::F32).remove(0);
                check(&out, &expected(size, |i, p| f64::from(a[i * k + p]), other), 1e-5 * k as f64, &format!("{level:?} {size:?}"));
            }
        }
    }
}

#[test]
fn rows_may_begin_anywhere_in_a_line_of_memory() {
    for &level in Level::all() {
        let size @ (m, k, n) = (15, 528, 40);
        let (a, b) = (noise(m * k, 7), noise(k * n + 16, 8));
        for skip in 0..16 {
            let (b, left) = (&b[skip..][..k * n], Left { values: &a, row: k, column: 1 });
            let out = products_at(level, (m, k), left, &[(Right::values(b, k, true), n)], Precision::F32).remove(0);
            let exact = expected(size, |i, p| f64::from(a[i * k + p]), |p, j| f64::from(b[j * k + p]));
            check(&out, &exact, 1e-5 * k as f64, &format!("{level:?} {skip}"));
        }
    }
}

#[test]
fn a_product_is_added_to_what_is_there() {
    for (m, k, n) in SIZES {
        let (a, b, before) = (noise(m * k, 9), noise(k * n, 10), noise(m * n, 11));
        let (left, mut out) = (Left { values: &a, row: k, column: 1 }, before.clone());
        add_product((m, k, n), left, Right::values(&b, k, true), Precision::F32, &mut out);
        let product = expected((m, k, n), |i, p| f64::from(a[i * k + p]), |p, j| f64::from(b[j * k + p]));
        let exact: Vec<f64> = product.iter().zip(&before).map(|(x, &before)| x + f64::from(before)).collect();
        check(&out, &exact, 1e-5 * k as f64, &format!("{m} {k} {n}"));
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (m, k, n) = (130, 700, 500);
    let (a, b) = (noise(m * k, 5), noise(k * n, 6));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let left = Left { values: &a, row: k, column: 1 };
        pool.install(|| product((m, k, n), left, Right::values(&b, k, true), Precision::Bf16))
    };
    assert_eq!(run(1), run(3));
}
