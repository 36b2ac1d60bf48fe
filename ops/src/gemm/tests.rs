use super::*;
use half::{bf16, f16};

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
fn rows_of_16_bits_are_multiplied_where_they_lie_in_both_directions() {
    let sizes = || SIZES.into_iter().chain([(70, 1100, 50), (50, 1025, 33)]);
    for (&level, format) in Level::all().iter().flat_map(|level| [(level, Format::Bf16), (level, Format::F16)]) {
        for (size @ (m, k, n), turned) in sizes().flat_map(|size| [(size, false), (size, true)]) {
            let (a, b) = (noise(m * k, 3), noise(k * n, 4));
            let halves = |b: &f32| if format == Format::F16 { f16::from_f32(*b).to_bits() } else { bf16::from_f32(*b).to_bits() };
            let bytes: Vec<u8> = b.iter().flat_map(|b| halves(b).to_le_bytes()).collect();
            let mut b = vec![0.0; k * n];
            format.read(&bytes, 0, &mut b);
            let right = Right { bytes: &bytes, format, columns: if turned { k } else { n }, turned, order: None, small: None };
            let other = |p: usize, j: usize| if turned { b[j * k + p] } else { b[p * n + j] };
            let left = Left { values: &a, row: k, column: 1 };
            let out = products_at(level, (m, k), left, &[(right, n)], Precision::F32).remove(0);
            let exact = expected(size, |i, p| f64::from(a[i * k + p]), |p, j| f64::from(other(p, j)));
            check(&out, &exact, 1e-5 * k as f64, &format!("{format} {level:?} {size:?}"));
            let rounded = |x: f32| if level == Level::Avx512Bf16 { bf16::from_f32(x).to_f64() } else { f64::from(x) };
            let out = products_at(level, (m, k), left, &[(right, n)], Precision::Bf16).remove(0);
            let exact = expected(size, |i, p| rounded(a[i * k + p]), |p, j| rounded(other(p, j)));
            check(&out, &exact, 1e-5 * k as f64, &format!("{format} in bf16 {level:?} {size:?}"));
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_beside_few_and_many() {
    let (k, n) = (1300, 70);
    let (a, b) = (noise(800 * k, 3), noise(k * n, 4));
    let bytes: Vec<u8> = b.iter().flat_map(|&b| bf16::from_f32(b).to_le_bytes()).collect();
    let order: Vec<u32> = (0..n as u32).rev().collect();
    let right = Right { bytes: &bytes, format: Format::Bf16, columns: k, turned: true, order: Some(&order), small: None };
    for &level in Level::all() {
        let of = |m: usize| {
            let left = Left { values: &a[..m * k], row: k, column: 1 };
            products_at(level, (m, k), left, &[(right, n)], Precision::Bf16).remove(0)
        };
        // from 650 rows on a right factor is packed in any case
        let all = of(800);
        for m in [9, 16, 40, 50, 130] {
            assert_eq!(of(m), all[..m * n], "{level:?} {m}");
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

/// Root mean square of the distance from `exact`, as a share of it.
fn distance(found: &[f32], exact: &[f64]) -> f64 {
    let off: f64 = found.iter().zip(exact).map(|(&found, exact)| (f64::from(found) - exact).powi(2)).sum();
    (off / exact.iter().map(|x| x * x).sum::<f64>()).sqrt()
}

#[test]
fn products_in_16_bit_integers_lie_near_those_in_f64() {
    for &level in Level::all() {
        for size @ (m, k, n) in SIZES.into_iter().chain([(20, 2500, 70)]) {
            // rows of the left and columns of the right factor of magnitudes far apart
            let a: Vec<f32> = noise(m * k, 1).iter().enumerate().map(|(i, x)| x * 10f32.powi((i / k % 5) as i32 * 6 - 12)).collect();
            let b = noise(k * n, 2);
            for (left_turned, turned) in [(false, false), (false, true), (true, false), (true, true)] {
                let of_left = |i: usize, p: usize| a[i * k + p];
                let of_right = |p: usize, j: usize| b[p * n + j] * 10f32.powi((j % 3) as i32 * 9 - 9);
                let held: Vec<f32> = (0..m * k).map(|at| if left_turned { of_left(at % m, at / m) } else { a[at] }).collect();
                let left = if left_turned { Left { values: &held, row: 1, column: m } } else { Left { values: &held, row: k, column: 1 } };
                let other: Vec<f32> =
                    (0..k * n).map(|at| if turned { of_right(at % k, at / k) } else { of_right(at / n, at % n) }).collect();
                let right = Right::values(&other, if turned { k } else { n }, turned);
                let out = products_at(level, (m, k), left, &[(right, n)], Precision::Int16).remove(0);
                let exact = expected(size, |i, p| f64::from(of_left(i, p)), |p, j| f64::from(of_right(p, j)));
                for i in 0..m {
                    for j in 0..n.min(3) {
                        let every = |values: usize| (i * n + j..(i + 1) * n).step_by(3).map(move |at| at - values);
                        let (out, exact): (Vec<f32>, Vec<f64>) = every(0).map(|at| (out[at], exact[at])).unzip();
                        // a sum of few values can be small beside them
                        let far = distance(&out, &exact);
                        assert!(k * n < 100 || far < 2e-3, "{level:?} {size:?} {left_turned} {turned}: row {i}, column {j}: {far}");
                    }
                }
            }
        }
    }
}

#[test]
fn sums_of_integers_hold_whatever_the_values_are() {
    // every factor the same: a product is as large as its factors' lengths allow, and one value may be all there is
    for (m, k, n) in [(15, 128, 33), (3, 1100, 64)] {
        for alone in [1, 2, k] {
            let values = |count: usize| (0..count).map(|at| if at % k < alone { 3.7e12 } else { 0.0 }).collect::<Vec<f32>>();
            let (a, b) = (values(m * k), values(n * k));
            let left = Left { values: &a, row: k, column: 1 };
            let out = product((m, k, n), left, Right::values(&b, k, true), Precision::Int16);
            let exact = 3.7e12f64 * 3.7e12 * alone as f64;
            assert!(out.iter().all(|&y| (f64::from(y) / exact - 1.0).abs() < 2e-4), "{m} {k} {n} {alone}: {} for {exact}", out[0]);
        }
    }
}

#[test]
fn what_is_no_number_stays_none_in_integers_and_stays_in_its_row_and_column() {
    let (m, k, n) = (20, 300, 40);
    for odd in [f32::NAN, f32::INFINITY] {
        let (mut a, mut b) = (noise(m * k, 1), noise(n * k, 2));
        (a[3 * k + 5], b[7 * k + 9]) = (odd, odd);
        a[11 * k..][..k].fill(0.0);
        let left = Left { values: &a, row: k, column: 1 };
        let out = product((m, k, n), left, Right::values(&b, k, true), Precision::Int16);
        for (at, y) in out.iter().enumerate() {
            let (row, column) = (at / n, at % n);
            assert_eq!(y.is_finite(), row != 3 && column != 7, "{odd}: row {row}, column {column} is {y}");
            assert!(row != 11 || column == 7 || *y == 0.0, "a row of zeros gives {y}");
        }
    }
}

#[test]
fn a_factor_packed_whole_gives_the_bits_of_one_that_is_not() {
    let (k, n) = (1100, 150);
    let w = noise(n * k, 3);
    let right = PackedRight::new(&w, k, Precision::F32);
    for m in [1, 14, 33] {
        let (x, before) = (noise(m * k, 4), noise(m * n, 5));
        let mut rows = PackedRows::default();
        rows.pack(&x, &right);
        let mut out = before.clone();
        rows.multiply(&right, 0, (0, n), (&mut out, n), Added::Own);
        let (left, mut expected) = (Left { values: &x, row: k, column: 1 }, before.clone());
        add_product((m, k, n), left, Right::values(&w, k, true), Precision::F32, &mut expected);
        assert_eq!(out, expected, "{m} rows");
        // some columns, a block of the inner axis at a time
        let mut part = vec![0.0; m * 70];
        for (block, (start, count)) in right.spans().enumerate() {
            rows.clear(m);
            rows.push(&x[start..], k, count, &right);
            let added = if block == 0 { Added::Nothing } else { Added::Own };
            rows.multiply(&right, block, (64, 70), (&mut part, 70), added);
        }
        let whole = product((m, k, n), left, Right::values(&w, k, true), Precision::F32);
        for (part, whole) in part.chunks_exact(70).zip(whole.chunks_exact(n)) {
            assert_eq!(part, &whole[64..134], "{m} rows");
        }
    }
}
