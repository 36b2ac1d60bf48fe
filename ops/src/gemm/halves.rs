//! Products in f16, for processors that multiply 32 of them where they multiply 16 values of f32, and bf16 no faster (AVX-512-FP16).
//!
//! Sums of [`SUMMED`] products are taken in f16, those of them in f32. So that none leaves f16's range, a row of the left factor is scaled within
//! each block of the inner axis by a power of two, and the right factor's values are all below [`LIMIT`]. With 11 bits where bf16 has 8 the
//! result lies nearer to f32's than with factors rounded to bf16 (a test measures it).
//!
//! A word of the left factor holds one value twice, and a row ends with a word more: what undoes its scale, in f32. A word of the right factor
//! holds two columns.

use std::arch::x86_64::*;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

use super::pack::{LANES, as_halves, turn_16};
use super::tile::{Place, Strip, WIDTH, mask};
use super::{Lines, Right};
use crate::matrix::{Format, words};
use crate::simd::{largest_magnitude, vectorised};

/// Products that are summed in f16.
const SUMMED: usize = 64;
/// The left factor's rows are scaled so that their largest value has this exponent, and lies below twice its power of two.
const EXPONENT: i32 = 2;
/// What the right factor's values are below: a sum in f16 stays below 8 * 64 * 64, half of f16's largest value.
const LIMIT: f32 = 64.0;

/// Whether all values of a matrix of `columns` are below [`LIMIT`].
pub fn all_small(bytes: &[u8], format: Format, columns: usize) -> bool {
    let row_bytes = columns / format.block() * format.block_bytes();
    let small = |values: &mut Vec<f32>, row: &[u8]| {
        values.resize(columns, 0.0);
        format.read(row, 0, values);
        magnitude(values) < LIMIT
    };
    row_bytes == 0 || bytes.par_chunks_exact(row_bytes).map_init(Vec::new, |values, row| small(values, row)).all(|small| small)
}

vectorised! {
    /// [`largest_magnitude`] for callers outside vector code.
    fn magnitude(values: &[f32]) -> f32 {
        largest_magnitude(values)
    }
}

/// Words of a row of the left factor, and the one that undoes its scale.
pub fn scaled(values: &[f32], words: &mut [u32]) {
    let exponent = (magnitude(values).to_bits() >> 23) as i32 - 127;
    // beside an infinity nothing is scaled, and it stays one
    let shift = if exponent > 127 { 0 } else { exponent.max(-100) - EXPONENT };
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    // SAFETY: this module's products are made where the processor has the features.
    unsafe { doubled(values, power(-shift), words) };
    words[values.len()] = power(shift).to_bits();
}

#[target_feature(enable = "avx512f")]
fn doubled(values: &[f32], scale: f32, words: &mut [u32]) {
    assert!(words.len() >= values.len());
    for start in (0..values.len()).step_by(LANES) {
        let mask = mask(values.len() - start, 0);
        // SAFETY: masked to the slices' lengths.
        unsafe {
            let values = _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(start));
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_mul_ps(values, _mm512_set1_ps(scale)));
            let words32 = _mm512_cvtepu16_epi32(halves);
            let twice = _mm512_or_si512(words32, _mm512_slli_epi32::<16>(words32));
            _mm512_mask_storeu_epi32(words.as_mut_ptr().wrapping_add(start).cast(), mask, twice);
        }
    }
}

/// Bits of the values of a row from `start` on in f16.
fn read(format: Format, row: &[u8], start: usize, values: &mut Vec<f32>, out: &mut [u16]) {
    match format {
        Format::F16 => words::<u16>(row, start, out.len(), |bits| out.copy_from_slice(bits)),
        // SAFETY: this module's products are made where the processor has the features.
        Format::Bf16 => words::<u16>(row, start, out.len(), |bits| unsafe { of_bf16(bits, out) }),
        _ => {
            values.resize(out.len(), 0.0);
            format.read(row, start, values);
            out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn of_bf16(bits: &[u16], out: &mut [u16]) {
    assert!(bits.len() == out.len());
    for start in (0..bits.len()).step_by(LANES) {
        let mask = mask(bits.len() - start, 0);
        // SAFETY: masked to the slices' lengths.
        unsafe {
            let bits = _mm256_maskz_loadu_epi16(mask, bits.as_ptr().wrapping_add(start).cast());
            let values = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)));
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().wrapping_add(start).cast(), mask, halves);
        }
    }
}

/// Columns that are turned at once: a register's.
const TURNED: usize = 2 * LANES;

/// [`TURNED`] rows of `count` halves, `2 * stride` apart, become columns: half p of row r goes to place r of the 32 from word `p * WIDTH` on.
fn turn(rows: &[u32], stride: usize, count: usize, out: &mut [u32]) {
    assert!(count > 0 && count <= 2 * stride && rows.len() >= TURNED * stride && out.len() >= (count - 1) * WIDTH + LANES);
    // SAFETY: this module's products are made where the processor has the features; the lengths are checked.
    unsafe { turn_512(rows, stride, count, out) }
}

#[target_feature(enable = "avx512f")]
unsafe fn turn_512(rows: &[u32], stride: usize, count: usize, out: &mut [u32]) {
    let low = _mm512_set1_epi32(0xffff);
    for start in (0..count.div_ceil(2)).step_by(LANES) {
        let mask = mask(stride - start, 0);
        // words of two neighbours on the inner axis, of every other row
        let turned = |first: usize| {
            let row = rows.as_ptr().wrapping_add(first * stride + start);
            // SAFETY: masked to the rows' lengths, which the caller has checked.
            turn_16(std::array::from_fn(|r| unsafe { _mm512_maskz_loadu_epi32(mask, row.wrapping_add(2 * r * stride).cast()) }))
        };
        let (even, odd) = (turned(0), turned(1));
        for (q, (&even, &odd)) in even.iter().zip(&odd).enumerate() {
            let first = _mm512_or_si512(_mm512_and_si512(even, low), _mm512_slli_epi32::<16>(odd));
            let second = _mm512_or_si512(_mm512_srli_epi32::<16>(even), _mm512_andnot_si512(low, odd));
            for (p, column) in [(2 * (start + q), first), (2 * (start + q) + 1, second)] {
                if p < count {
                    // SAFETY: the caller has checked the output's length for `count` columns.
                    unsafe { _mm512_storeu_epi32(out.as_mut_ptr().wrapping_add(p * WIDTH).cast(), column) };
                }
            }
        }
    }
}

/// Packs strips of 64 columns from `first` on, of the values from `start` on of the inner axis: see `pack_turned` and `pack_straight` of a task.
pub fn pack(right: &Right, (first, columns): (usize, usize), (start, count): (usize, usize), strips: &mut [u32], (lanes, values): Lines) {
    if right.turned {
        let stride = count.div_ceil(2);
        lanes.resize(TURNED * stride, 0);
        for (group, out) in (0..columns.next_multiple_of(2 * WIDTH)).step_by(TURNED).map(|group| (group, group / (2 * WIDTH))) {
            for (lane, words) in lanes.chunks_exact_mut(stride).enumerate() {
                // what the last strip has too many is zero, and so is an odd row's last half
                words[stride - 1] = 0;
                match first + group + lane {
                    column if group + lane < columns => {
                        read(right.format, right.row(column), start, values, &mut as_halves(words)[..count])
                    }
                    _ => words.fill(0),
                }
            }
            turn(lanes, stride, count, &mut strips[out * count * WIDTH + group % (2 * WIDTH) / 2..]);
        }
    } else {
        lanes.resize(columns.next_multiple_of(2 * WIDTH) / 2, 0);
        lanes.fill(0);
        for p in 0..count {
            read(right.format, right.row(start + p), first, values, &mut as_halves(lanes)[..columns]);
            for (strip, lanes) in lanes.chunks_exact(WIDTH).enumerate() {
                strips[(strip * count + p) * WIDTH..][..WIDTH].copy_from_slice(lanes);
            }
        }
    }
}

/// `H`: registers that the columns fill, of 32 each.
#[target_feature(enable = "avx512f,avx512bw,avx512fp16")]
pub unsafe fn tile<const R: usize, const H: usize>(left: *const u32, right: Strip, words: usize, place: Place) {
    let mut totals = [[[_mm512_setzero_ps(); 2]; H]; R];
    let (mut a, mut b) = (left, right.words.as_ptr());
    for start in (0..words).step_by(SUMMED) {
        let mut sums = [[_mm512_setzero_ph(); H]; R];
        for _ in start..words.min(start + SUMMED) {
            // SAFETY: `multiply` has checked the lengths; a strip's rows are whole.
            unsafe {
                let mut columns = [_mm512_setzero_ph(); H];
                for (h, columns) in columns.iter_mut().enumerate() {
                    *columns = _mm512_castsi512_ph(_mm512_loadu_epi32(b.wrapping_add(16 * h).cast()));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = _mm512_castsi512_ph(_mm512_set1_epi32(*a.add(r) as i32));
                    for h in 0..H {
                        sums[h] = _mm512_fmadd_ph(row, columns[h], sums[h]);
                    }
                }
                a = a.add(R);
                b = b.wrapping_add(WIDTH);
            }
        }
        // as a copy: else the compiler would keep the sums in memory all along, since it turns over them here
        let sums = std::hint::black_box(sums);
        for (totals, &sum) in totals.iter_mut().flatten().zip(sums.iter().flatten()) {
            let sum = _mm512_castph_si512(sum);
            totals[0] = _mm512_add_ps(totals[0], _mm512_cvtph_ps(_mm512_castsi512_si256(sum)));
            totals[1] = _mm512_add_ps(totals[1], _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sum)));
        }
    }
    for (r, totals) in totals.iter().enumerate() {
        // SAFETY: a row of the left factor ends with what undoes its scale; the rest is masked to the place's columns, which the caller has
        // promised.
        unsafe {
            let scale = _mm512_castsi512_ps(_mm512_set1_epi32(*a.add(r) as i32));
            for (part, &total) in totals.iter().flatten().enumerate() {
                let mask = mask(place.columns, part);
                let out = place.start.add(r * place.stride).wrapping_add(part * LANES);
                _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(total, scale, place.before_at(r, part, mask)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use half::bf16;

    use super::super::{Left, Level, Precision, products_at};
    use super::*;

    /// Sums of four uniform numbers of Knuth's generator.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| (0..4).map(|_| uniform()).sum::<f32>() / 4.0).collect()
    }

    fn bytes(values: &[f32], format: Format) -> Vec<u8> {
        match format {
            Format::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Format::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }

    fn multiply((m, k, n): (usize, usize, usize), x: &[f32], w: &[f32], format: Format, turned: bool) -> Vec<f32> {
        let (bytes, small) = (bytes(w, format), OnceLock::new());
        let right = Right { bytes: &bytes, format, columns: if turned { k } else { n }, turned, order: None, small: Some(&small) };
        products_at(Level::Avx512Half, (m, k), Left { values: x, row: k, column: 1 }, &[(right, n)], Precision::Bf16).remove(0)
    }

    /// Root mean square of the distance from the product in f64 of factors as `seen`, as a share of the product's.
    fn distance((m, k, n): (usize, usize, usize), found: &[f32], seen: impl Fn(usize, usize, usize) -> f64) -> f64 {
        let exact: Vec<f64> = (0..m * n).map(|at| (0..k).map(|p| seen(at / n, p, at % n)).sum()).collect();
        let all: f64 = exact.iter().map(|x| x * x).sum();
        let off: f64 = exact.iter().zip(found).map(|(exact, &found)| (exact - f64::from(found)).powi(2)).sum();
        (off / all.max(f64::MIN_POSITIVE)).sqrt()
    }

    fn can() -> bool {
        let can = Level::all().contains(&Level::Avx512Half);
        if !can {
            eprintln!("skipped: this processor does not multiply f16");
        }
        can
    }

    #[test]
    fn every_size_format_and_direction_is_nearer_to_the_exact_product_than_factors_of_bf16() {
        if !can() {
            return;
        }
        for size @ (m, k, n) in
            [(1, 1, 1), (3, 5, 7), (14, 512, 64), (15, 513, 65), (29, 255, 97), (5, 1030, 40), (64, 300, 257), (30, 64, 32)]
        {
            // rows of magnitudes far outside f16's range
            let x: Vec<f32> = noise(m * k, 1).iter().enumerate().map(|(i, x)| x * 10f32.powi((i / k % 5) as i32 * 4 - 12)).collect();
            for (format, turned) in
                [Format::F32, Format::F16, Format::Bf16].into_iter().flat_map(|format| [(format, false), (format, true)])
            {
                let w = noise(k * n, 2);
                let of = |p: usize, j: usize| f64::from(if turned { w[j * k + p] } else { w[p * n + j] });
                let seen = |value: f64| if format == Format::Bf16 { bf16::from_f64(value).to_f64() } else { value };
                let out = multiply(size, &x, &w, format, turned);
                // rows of all magnitudes count alike
                let rows = out.chunks_exact(n).enumerate().map(|(row, out)| {
                    let x = |p: usize| f64::from(x[row * k + p]);
                    let narrow =
                        |j: usize| (0..k).map(|p| bf16::from_f64(x(p)).to_f64() * bf16::from_f64(of(p, j)).to_f64()).sum::<f64>() as f32;
                    let narrow: Vec<f32> = (0..n).map(narrow).collect();
                    [out, &narrow].map(|found| distance((1, k, n), found, |_, p, j| x(p) * seen(of(p, j))).powi(2))
                });
                let [found, narrow] = rows.fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]).map(|sum| (sum / m as f64).sqrt());
                // a row of a few values can happen to be exact in bf16
                assert!(found < if k * n < 1000 { 1e-3 } else { 0.8 * narrow }, "{size:?} {format} {turned}: {found} against {narrow}");
            }
        }
    }

    #[test]
    fn what_is_too_large_for_f16_is_multiplied_in_f32() {
        if !can() {
            return;
        }
        let size @ (m, k, n) = (20, 700, 70);
        for large in [LIMIT, 1e6, f32::INFINITY, f32::NAN] {
            let (x, mut w) = (noise(m * k, 3), noise(n * k, 4));
            w[5 * k + 7] = large;
            let out = multiply(size, &x, &w, Format::Bf16, true);
            let exact = |i: usize, p: usize, j: usize| f64::from(x[i * k + p]) * bf16::from_f32(w[j * k + p]).to_f64();
            for j in [4, 5] {
                let column: Vec<f32> = out.iter().skip(j).step_by(n).copied().collect();
                let found = distance((m, k, 1), &column, |i, p, _| exact(i, p, j));
                assert!(if j == 5 && !large.is_finite() { found.is_nan() } else { found < 1e-6 }, "{large}, column {j}: {found}");
            }
        }
        let (mut x, w) = (noise(m * k, 3), noise(n * k, 4));
        (x[2 * k], x[3 * k]) = (f32::INFINITY, f32::NAN);
        let out = multiply(size, &x, &w, Format::Bf16, true);
        let finite: Vec<bool> = out.chunks_exact(n).map(|row| row.iter().any(|y| y.is_finite())).collect();
        assert!(finite.iter().enumerate().all(|(row, &finite)| finite == !matches!(row, 2 | 3)), "{finite:?}");
    }

    #[test]
    fn the_largest_sums_stay_finite() {
        if !can() {
            return;
        }
        let size @ (m, k, n) = (3, 1024, 64);
        let (x, w) = (vec![7.99; m * k], vec![63.9; n * k]);
        let out = multiply(size, &x, &w, Format::F16, true);
        let exact = 7.99 * f64::from(f16::from_f32(63.9).to_f32()) * 1024.0;
        assert!(out.iter().all(|&y| (f64::from(y) / exact - 1.0).abs() < 4e-3), "{} for {exact}", out[0]);
    }
}
