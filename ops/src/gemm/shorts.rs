//! Products of f32 in integers of 16 bits, two at a time with exact sums in 32 bits (AVX-512-VNNI): twice as many products a cycle as in f32.
//!
//! Within a block of the inner axis each row of the left factor and each column of the right one has a scale of its own. A sum of
//! [`SUMMED`] products of integers is at most the product of the two factors' lengths (Cauchy and Schwarz), so each is scaled as far as
//! no part of `SUMMED` values is longer than [`LENGTH`], and the sum fits 32 bits whatever the values are. Of values that are spread as noise
//! the scale leaves some 13 bits and a sign, where f16 has 11 bits of each and bf16 8; one value that stands out takes from the others.
//!
//! A word holds two neighbours on the inner axis. Rows and strips end with a word more: the scale, in f32.

use std::arch::x86_64::*;

use super::pack::LANES;
use super::tile::{Place, Strip, WIDTH, mask};
use crate::few::quantised;

/// Products that are summed in 32 bits.
const SUMMED: usize = 128;
/// How long [`SUMMED`] integers may be together: 5.7 less than the root of 2^31, since rounding moves each by up to a half.
const LENGTH: f32 = 46_334.0;
/// The largest integer.
const LARGEST: f32 = 32_767.0;
/// Magnitudes whose squares are neither infinite nor too small for f32.
const SQUARED: std::ops::Range<f32> = 1e-15..1e15;

/// Whether the processor has such products.
pub fn available() -> bool {
    quantised::available()
}

/// What values are multiplied by to become integers, and what undoes it, of their largest magnitude and the largest sum of squares of a part.
/// Beside what is no number or infinite, all of them become no number.
fn scales(largest: f32, squares: f32) -> [f32; 2] {
    if !largest.is_finite() {
        return [0.0, f32::NAN];
    }
    let largest = largest.max(f32::MIN_POSITIVE * 1e8);
    let length = if SQUARED.contains(&largest) { squares.sqrt() } else { largest * (SUMMED as f32).sqrt() };
    let scale = (LENGTH / length).min(LARGEST / largest);
    [scale, scale.recip()]
}

/// Words of values that lie along the inner axis, and their scale.
pub fn along(values: &[f32], words: &mut [u32]) {
    assert!(words.len() == values.len().div_ceil(2) + 1);
    // SAFETY: this module's products are made where the processor has the features.
    unsafe {
        let (largest, squares) = measured(values);
        let [scale, back] = scales(largest, squares);
        rounded(values, scale, words);
        words[values.len().div_ceil(2)] = back.to_bits();
    }
}

/// Their largest magnitude (what is no number is larger than all else), and the largest sum of squares of a part.
#[target_feature(enable = "avx512f")]
fn measured(values: &[f32]) -> (f32, f32) {
    let (mut largest, mut squares) = (_mm512_setzero_si512(), 0f32);
    for part in values.chunks(SUMMED) {
        let mut sums = [_mm512_setzero_ps(); 2];
        for start in (0..part.len()).step_by(LANES) {
            // SAFETY: masked to the slice's length.
            let values = unsafe { _mm512_maskz_loadu_ps(mask(part.len() - start, 0), part.as_ptr().wrapping_add(start)) };
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(values)));
            sums[start / LANES % 2] = _mm512_fmadd_ps(values, values, sums[start / LANES % 2]);
        }
        squares = squares.max(_mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])));
    }
    (f32::from_bits(_mm512_reduce_max_epu32(largest)), squares)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn rounded(values: &[f32], scale: f32, words: &mut [u32]) {
    let scale = _mm512_set1_ps(scale);
    for start in (0..values.len()).step_by(2 * LANES) {
        let left = values.len() - start;
        let at = values.as_ptr().wrapping_add(start);
        // SAFETY: masked to the slices' lengths: an odd last value is stored as a whole word, whose other half is zero.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask(left, 0), at);
            let high = _mm512_maskz_loadu_ps(mask(left, 1), at.wrapping_add(LANES));
            let [low, high] = [low, high].map(|values| _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(values, scale))));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            _mm512_mask_storeu_epi32(words.as_mut_ptr().wrapping_add(start / 2).cast(), mask(left.div_ceil(2), 0), both);
        }
    }
}

/// Lanes that lie side by side, with a row of them for each place on the inner axis: value (p, lane) at `p * stride + lane`.
#[derive(Clone, Copy)]
pub struct Lanes<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub lanes: usize,
    pub count: usize,
}

/// Words of each lane, `width` from one to the next of a lane, and the scales behind them: zeros for lanes that are too many.
pub fn across(lanes: Lanes, width: usize, words: &mut [u32]) {
    assert!(lanes.lanes <= width && width <= WIDTH && words.len() == (lanes.count.div_ceil(2) + 1) * width);
    assert!(lanes.count > 0 && lanes.values.len() >= (lanes.count - 1) * lanes.stride + lanes.lanes);
    // SAFETY: this module's products are made where the processor has the features.
    unsafe { if width <= LANES { across_512::<1>(lanes, width, words) } else { across_512::<2>(lanes, width, words) } }
}

#[target_feature(enable = "avx512f")]
fn across_512<const V: usize>(Lanes { values, stride, lanes, count }: Lanes, width: usize, words: &mut [u32]) {
    let masks: [u16; V] = std::array::from_fn(|v| mask(lanes, v));
    let row = |p: usize| -> [__m512; V] {
        let at = values.as_ptr().wrapping_add(p * stride);
        // SAFETY: `across` has checked the lengths; masked to the lanes.
        std::array::from_fn(|v| unsafe { _mm512_maskz_loadu_ps(masks[v], at.wrapping_add(v * LANES)) })
    };
    let (mut largest, mut squares) = ([_mm512_setzero_si512(); V], [_mm512_setzero_ps(); V]);
    for start in (0..count).step_by(SUMMED) {
        let mut sums = [_mm512_setzero_ps(); V];
        for p in start..count.min(start + SUMMED) {
            let values = row(p);
            for v in 0..V {
                largest[v] = _mm512_max_epu32(largest[v], _mm512_castps_si512(_mm512_abs_ps(values[v])));
                sums[v] = _mm512_fmadd_ps(values[v], values[v], sums[v]);
            }
        }
        for v in 0..V {
            squares[v] = _mm512_max_ps(squares[v], sums[v]);
        }
    }
    let (mut to, mut back) = ([0f32; WIDTH], [0f32; WIDTH]);
    for v in 0..V {
        let (mut most, mut sums) = ([0f32; LANES], [0f32; LANES]);
        // SAFETY: each has a register's length.
        unsafe {
            _mm512_storeu_ps(most.as_mut_ptr(), _mm512_castsi512_ps(largest[v]));
            _mm512_storeu_ps(sums.as_mut_ptr(), squares[v]);
        }
        for lane in 0..LANES.min(lanes.saturating_sub(v * LANES)) {
            [to[v * LANES + lane], back[v * LANES + lane]] = scales(most[lane], sums[lane]);
        }
    }
    // SAFETY: both hold two registers' lanes; `across` has checked the words' length for all of them.
    unsafe {
        let to: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(to.as_ptr().wrapping_add(v * LANES)));
        for (word, p) in (0..count).step_by(2).enumerate() {
            let (first, second) = (row(p), if p + 1 < count { row(p + 1) } else { [_mm512_setzero_ps(); V] });
            for v in 0..V {
                let low = _mm512_and_si512(_mm512_cvtps_epi32(_mm512_mul_ps(first[v], to[v])), _mm512_set1_epi32(0xffff));
                let high = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(_mm512_mul_ps(second[v], to[v])));
                let at = words.as_mut_ptr().wrapping_add(word * width + v * LANES);
                _mm512_mask_storeu_epi32(at.cast(), mask(width, v), _mm512_or_si512(low, high));
            }
        }
    }
    let end = words.len() - width;
    words[end..].iter_mut().zip(back).for_each(|(word, back)| *word = back.to_bits());
}

/// `H`: registers that the columns fill.
#[target_feature(enable = "avx512f,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "iterators' closures would not be inlined here")]
pub unsafe fn tile<const R: usize, const H: usize>(left: *const u32, right: Strip, words: usize, place: Place) {
    // in memory, which the compiler must not see through: else it would keep the sums there all along
    let mut totals = std::mem::MaybeUninit::<[[__m512; H]; R]>::uninit();
    let totals = std::hint::black_box(totals.as_mut_ptr()).cast::<__m512>();
    let (mut a, mut b) = (left, right.words.as_ptr());
    for start in (0..words).step_by(SUMMED / 2) {
        let mut sums = [[_mm512_setzero_si512(); H]; R];
        for _ in start..words.min(start + SUMMED / 2) {
            // SAFETY: `multiply` has checked the lengths; a strip's rows are whole.
            unsafe {
                let mut columns = [_mm512_setzero_si512(); H];
                for (h, columns) in columns.iter_mut().enumerate() {
                    *columns = _mm512_loadu_epi32(b.wrapping_add(16 * h).cast());
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = _mm512_set1_epi32(*a.add(r) as i32);
                    for h in 0..H {
                        sums[h] = _mm512_dpwssd_epi32(sums[h], row, columns[h]);
                    }
                }
                a = a.add(R);
                b = b.wrapping_add(WIDTH);
            }
        }
        for r in 0..R {
            for h in 0..H {
                let (total, sum) = (totals.wrapping_add(r * H + h), _mm512_cvtepi32_ps(sums[r][h]));
                // SAFETY: a place of the totals, written before it is read.
                unsafe { total.write(if start > 0 { _mm512_add_ps(total.read(), sum) } else { sum }) };
            }
        }
    }
    // SAFETY: rows and strips end with their scales; the totals are written, since there are words; the rest is masked to the place's columns,
    // which the caller has promised.
    unsafe {
        let of_columns: [__m512; H] = std::array::from_fn(|h| _mm512_loadu_ps(b.wrapping_add(16 * h).cast()));
        for r in 0..R {
            let of_row = _mm512_castsi512_ps(_mm512_set1_epi32(*a.add(r) as i32));
            for h in 0..H {
                let mask = mask(place.columns, h);
                let out = place.start.add(r * place.stride).wrapping_add(h * LANES);
                let whole = _mm512_mul_ps(totals.wrapping_add(r * H + h).read(), of_row);
                _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(whole, of_columns[h], place.before_at(r, h, mask)));
            }
        }
    }
}
