//! Packing: strips of a factor in the order in which a tile reads them, as words of 32 bits (see [`super::tile`]).

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::bf16;

use super::Left;
#[cfg(target_arch = "x86_64")]
use super::shorts::Lanes;
#[cfg(target_arch = "x86_64")]
use super::tile::mask;
use super::tile::{Level, WIDTH};
use crate::simd::vectorised;

/// Values that are asked for ahead of those that are turned.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 256;

/// Lanes that are turned at once.
pub const LANES: usize = 16;

/// What a word of 32 bits holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One f32.
    Value,
    /// Two bf16 that are neighbours on the inner axis.
    Pair,
    /// As [`Kind::Pair`], with the left factor in panels and the right one as it stands, turned (`super::standing`).
    Standing,
    /// Two f16 of one place on the inner axis (`super::halves`).
    Halves,
    /// Two integers of 16 bits that are neighbours on the inner axis (`super::shorts`).
    Shorts,
}

/// How words are made of values.
#[derive(Clone, Copy)]
pub struct Words {
    pub kind: Kind,
    pub level: Level,
}

impl Words {
    /// Whether a word holds two neighbours on the inner axis.
    pub fn pairs(self) -> bool {
        self.bf16() || self.kind == Kind::Shorts
    }

    /// Whether these are two bf16.
    pub fn bf16(self) -> bool {
        matches!(self.kind, Kind::Pair | Kind::Standing)
    }

    /// Words of `count` values along the inner axis.
    pub fn of(self, count: usize) -> usize {
        let words = if self.pairs() { count.div_ceil(2) } else { count };
        words + usize::from(self.kind == Kind::Shorts)
    }

    /// Words of `count` values of a row of the left factor.
    pub fn of_left(self, count: usize) -> usize {
        self.of(count) + usize::from(self.kind == Kind::Halves)
    }

    /// Columns of a strip: of its [`WIDTH`] words where it is packed.
    pub fn columns(self) -> usize {
        match self.kind {
            Kind::Halves => 2 * WIDTH,
            Kind::Standing => LANES,
            _ => WIDTH,
        }
    }

    /// Makes words of values that lie along the inner axis: of halves, those of the left factor.
    pub fn along(self, values: &[f32], words: &mut [u32]) {
        match self.kind {
            Kind::Value => return words.copy_from_slice(as_words(values)),
            #[cfg(target_arch = "x86_64")]
            Kind::Halves => return super::halves::scaled(values, words),
            #[cfg(target_arch = "x86_64")]
            Kind::Shorts => return super::shorts::along(values, words),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level has the features.
            Kind::Pair | Kind::Standing if self.level == Level::Avx512Bf16 => return unsafe { narrow(values, words) },
            _ => {}
        }
        for (word, pair) in words.iter_mut().zip(values.chunks(2)) {
            *word = pair_of(pair[0], pair.get(1).copied().unwrap_or(0.0));
        }
    }

    /// Turns `lanes` rows (at most [`LANES`]) of `count` words, `stride` apart, into columns: word p of row r goes to `p * width + r`.
    pub fn turn(self, rows: &[u32], stride: usize, (lanes, count): (usize, usize), width: usize, out: &mut [u32]) {
        if count == 0 || lanes == 0 {
            return;
        }
        assert!(lanes <= LANES && out.len() >= (count - 1) * width + lanes && rows.len() >= (lanes - 1) * stride + count);
        if lanes == 1 && width == 1 {
            return out[..count].copy_from_slice(&rows[..count]);
        }
        #[cfg(target_arch = "x86_64")]
        if self.level != Level::Plain {
            // SAFETY: the level has the features, the lengths are checked.
            return unsafe { turn_512(rows, stride, (lanes, count), width, out) };
        }
        for p in 0..count {
            for r in 0..lanes {
                out[p * width + r] = rows[r * stride + p];
            }
        }
    }

    /// Makes words of `lanes` rows (at most [`LANES`]) of `count` values along the inner axis, `stride` apart, and turns them: word p of row r goes
    /// to `p * width + r`. Of halves and shorts a left factor's.
    pub fn columns_of(self, values: &[f32], stride: usize, (lanes, count): (usize, usize), width: usize, out: &mut [u32]) {
        if count == 0 || lanes == 0 {
            return;
        }
        let length = self.of_left(count);
        assert!(lanes <= LANES && values.len() >= (lanes - 1) * stride + count && out.len() >= (length - 1) * width + lanes);
        if self.kind == Kind::Value {
            return self.turn(as_words(values), stride, (lanes, count), width, out);
        }
        #[cfg(target_arch = "x86_64")]
        if self.level == Level::Avx512Bf16 && self.bf16() {
            // SAFETY: the level has the features, the lengths are checked.
            return unsafe { narrow_turned(values, stride, (lanes, count), width, out) };
        }
        let mut rows = vec![0u32; lanes * length];
        for (row, words) in rows.chunks_exact_mut(length).enumerate() {
            self.along(&values[row * stride..][..count], words);
        }
        self.turn(&rows, length, (lanes, length), width, out);
    }

    /// Makes words of `lanes` values side by side, `count` times `stride` apart on the inner axis: word p of lane r goes to `p * width + r`. Of
    /// shorts a left factor's.
    pub fn rows_of(self, values: &[f32], stride: usize, (lanes, count): (usize, usize), width: usize, out: &mut [u32]) {
        if count == 0 || lanes == 0 {
            return;
        }
        let length = self.of_left(count);
        assert!(lanes <= width && values.len() >= (count - 1) * stride + lanes && out.len() >= (length - 1) * width + lanes);
        #[cfg(target_arch = "x86_64")]
        match (self.kind, self.level) {
            (Kind::Shorts, _) => return super::shorts::across(Lanes { values, stride, lanes, count }, width, out),
            // SAFETY: the level has the features, the lengths are checked.
            (Kind::Pair, Level::Avx512Bf16) => return unsafe { interleaved(values, stride, (lanes, count), width, out) },
            _ => {}
        }
        assert!(self.kind == Kind::Value, "there are pairs only where the processor multiplies them");
        for (p, word) in out.chunks_mut(width).take(count).enumerate() {
            word[..lanes].copy_from_slice(as_words(&values[p * stride..][..lanes]));
        }
    }
}

/// Rows (count, d), `stride` apart, as columns of words: word p of row r goes to `p * width + r`.
pub fn turn(words: Words, (values, stride): (&[f32], usize), (count, d): (usize, usize), width: usize, out: &mut [u32]) {
    for first in (0..count).step_by(LANES) {
        words.columns_of(&values[first * stride..], stride, (LANES.min(count - first), d), width, &mut out[first..]);
    }
}

/// f32 values as words.
pub fn as_words(values: &[f32]) -> &[u32] {
    // SAFETY: both have four bytes and one alignment, and any bits are a value.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// As [`as_words`], to write to.
pub fn words_of(values: &mut [f32]) -> &mut [u32] {
    // SAFETY: as for [`as_words`].
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// The halves of words.
pub fn as_halves(words: &mut [u32]) -> &mut [u16] {
    // SAFETY: any bits are a value of both, and a word's alignment is enough for its halves.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) }
}

/// Words as the f32 values that they are.
pub fn as_values(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: as for [`as_words`].
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

vectorised! {
    /// Spreads a row's words over strips, [`WIDTH`] to each, whose first words lie `step` apart; what the last strip has too many becomes zero.
    pub fn spread(row: &[u32], strips: &mut [u32], step: usize) {
        let mut place = 0;
        for start in (0..row.len()).step_by(WIDTH) {
            let words: &mut [u32; WIDTH] = (&mut strips[place..][..WIDTH]).try_into().expect("the slice has a strip's width");
            match row[start..].first_chunk::<WIDTH>() {
                Some(row) => *words = *row,
                None => {
                    words.fill(0);
                    words[..row.len() - start].copy_from_slice(&row[start..]);
                }
            }
            place += step;
        }
    }

    /// A pair of each bf16 of `first` and its neighbour in `second`: [`WIDTH`] to a strip, whose first words lie `step` apart; what the last
    /// strip has too many becomes zero.
    pub fn interleave_bits(first: &[u16], second: &[u16], strips: &mut [u32], step: usize) {
        let mut place = 0;
        for start in (0..first.len()).step_by(WIDTH) {
            let words = &mut strips[place..][..WIDTH];
            let count = WIDTH.min(first.len() - start);
            if count == WIDTH {
                let (one, two) = (&first[start..][..WIDTH], &second[start..][..WIDTH]);
                for i in 0..WIDTH {
                    words[i] = u32::from(one[i]) | u32::from(two[i]) << 16;
                }
            } else {
                words.fill(0);
                for i in 0..count {
                    words[i] = u32::from(first[start + i]) | u32::from(second[start + i]) << 16;
                }
            }
            place += step;
        }
    }
}

/// Packs the left factor's rows from `first` on, as many as `out` holds.
pub fn pack_tile(left: Left, first: usize, (start, count): (usize, usize), words: Words, out: &mut [u32]) {
    let rows = out.len() / words.of_left(count);
    let part = &left.values[first * left.row + start * left.column..];
    if left.column == 1 {
        words.columns_of(part, left.row, (rows, count), rows, out);
    } else {
        words.rows_of(part, left.column, (rows, count), rows, out);
    }
}

/// Packs the left factor's rows from `first` on, which lie along the inner axis, in sixteens: what `out` holds beyond the last row is zero.
#[cfg(target_arch = "x86_64")]
pub fn pack_panel(left: Left, first: usize, (start, count): (usize, usize), words: Words, out: &mut [u32]) {
    let width = out.len() / words.of(count);
    for group in (0..width).step_by(LANES) {
        let part = left.values.get((first + group) * left.row + start..).unwrap_or(&[]);
        let lanes = if part.len() < count { 0 } else { ((part.len() - count) / left.row.max(1) + 1).min(LANES) };
        words.columns_of(part, left.row, (lanes, count), width, &mut out[group..]);
        if lanes < LANES {
            out[group..].chunks_mut(width).for_each(|words| words[lanes..LANES].fill(0));
        }
    }
}

/// `count` words on whole lines of memory, with whatever is in them.
pub fn aligned(words: &mut Vec<u32>, count: usize) -> &mut [u32] {
    if words.len() < count + 15 {
        words.resize(count + 15, 0);
    }
    let skip = words.as_ptr().align_offset(64);
    &mut words[skip..][..count]
}

fn pair_of(a: f32, b: f32) -> u32 {
    u32::from(bf16::from_f32(a).to_bits()) | u32::from(bf16::from_f32(b).to_bits()) << 16
}

/// Pairs of bf16 of neighbouring values, rounded to even.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn narrow(values: &[f32], words: &mut [u32]) {
    let count = values.len().min(words.len() * 2);
    for start in (0..count).step_by(32) {
        let left = (count - start).min(32);
        let mask = (1u64 << left).wrapping_sub(1) as u32;
        let x = values.as_ptr().wrapping_add(start);
        // SAFETY: masked to the slices' lengths; a last odd value is stored as a whole word, whose other half is zero.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask as u16, x);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(16));
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let stored = (1u32 << left.div_ceil(2)).wrapping_sub(1) as u16;
            _mm512_mask_storeu_epi32(words.as_mut_ptr().wrapping_add(start / 2).cast(), stored, pairs);
        }
    }
}

/// f16's bits in bf16, rounded to even.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn bf16_of_f16(bits: &[u16], out: &mut [u16]) {
    let count = bits.len().min(out.len());
    for start in (0..count).step_by(2 * LANES) {
        let (at, out) = (bits.as_ptr().wrapping_add(start), out.as_mut_ptr().wrapping_add(start));
        let [low, high] = [0, 1].map(|half| mask(count - start, half));
        // SAFETY: whole registers, or masked to the slices' lengths.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4 * AHEAD).cast());
            if high == u16::MAX {
                _mm512_storeu_epi16(out.cast(), bf16_pairs(_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(LANES).cast())));
            } else {
                let last = _mm256_maskz_loadu_epi16(high, at.wrapping_add(LANES).cast());
                let both = bf16_pairs(_mm256_maskz_loadu_epi16(low, at.cast()), last);
                _mm512_mask_storeu_epi16(out.cast(), u32::from(low) | u32::from(high) << LANES, both);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn bf16_pairs(low: __m256i, high: __m256i) -> __m512i {
    // SAFETY: any bits are a value of both.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(_mm512_cvtph_ps(high), _mm512_cvtph_ps(low))) }
}

/// `lanes` rows of `count` values, `stride` apart, as columns of pairs of bf16: pair p of row r goes to `p * width + r`.
///
/// # Safety
/// The processor has the features; both are as long, and `lanes` at most [`LANES`].
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "closures have not these features")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn narrow_turned(values: &[f32], stride: usize, (lanes, count): (usize, usize), width: usize, out: &mut [u32]) {
    let stored = ((1u32 << lanes) - 1) as u16;
    for start in (0..count).step_by(2 * LANES) {
        let left = count - start;
        let (low, high) = (mask(left, 0), mask(left, 1));
        let at = values.as_ptr().wrapping_add(start);
        let mut rows = [_mm512_setzero_si512(); LANES];
        for r in 0..LANES {
            if r < lanes {
                let at = at.wrapping_add(r * stride);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + LANES).cast());
                // SAFETY: masked to the row: the caller's promise.
                unsafe {
                    let (low, high) = (_mm512_maskz_loadu_ps(low, at), _mm512_maskz_loadu_ps(high, at.wrapping_add(LANES)));
                    rows[r] = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                }
            }
        }
        let columns = turn_16(rows);
        for p in 0..LANES.min(left.div_ceil(2)) {
            // SAFETY: masked to the lanes: the caller's promise.
            unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().add((start / 2 + p) * width).cast(), stored, columns[p]) };
        }
    }
}

/// `count` rows of `lanes` values, `stride` apart, as rows of pairs of bf16 of neighbours: pair p of lane r goes to `p * width + r`.
///
/// # Safety
/// The processor has the features; both are as long.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "closures have not these features")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn interleaved(values: &[f32], stride: usize, (lanes, count): (usize, usize), width: usize, out: &mut [u32]) {
    // a pair's halves come from two registers, whose bf16 lie one behind the other
    let order: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
    for first in (0..lanes).step_by(LANES) {
        let mask = mask(lanes - first, 0);
        let (at, out) = (values.as_ptr().wrapping_add(first), out.as_mut_ptr().wrapping_add(first));
        for p in (0..count).step_by(2) {
            // SAFETY: masked to the lanes: the caller's promise.
            unsafe {
                let order = _mm512_loadu_epi16(order.as_ptr().cast());
                let one = _mm512_maskz_loadu_ps(mask, at.wrapping_add(p * stride));
                let second = if p + 1 < count { mask } else { 0 };
                let two = _mm512_maskz_loadu_ps(second, at.wrapping_add((p + 1) * stride));
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(two, one));
                _mm512_mask_storeu_epi32(out.wrapping_add(p / 2 * width).cast(), mask, _mm512_permutexvar_epi16(order, both));
            }
        }
    }
}

/// Blocks of 16 words begin on whole lines of memory where all rows can: a load that spans two lines would ask for each line twice, and a mapped
/// file's rows seldom begin on one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn turn_512(rows: &[u32], stride: usize, (lanes, count): (usize, usize), width: usize, out: &mut [u32]) {
    let stored = ((1u32 << lanes) - 1) as u16;
    let before_line = if stride.is_multiple_of(LANES) { rows.as_ptr().align_offset(64) } else { 0 };
    let mut start = 0;
    while start < count {
        let left = if start == 0 && (1..LANES).contains(&before_line) { before_line } else { LANES }.min(count - start);
        let mask = ((1u32 << left) - 1) as u16;
        let row = rows.as_ptr().wrapping_add(start);
        // SAFETY: the caller has checked the lengths; loads are masked to the count, stores to the lanes.
        unsafe {
            let load = |r: usize| _mm512_maskz_loadu_epi32(mask, row.wrapping_add(r * stride).cast());
            let words = if lanes == LANES {
                std::array::from_fn(load)
            } else {
                std::array::from_fn(|r| if r < lanes { load(r) } else { _mm512_setzero_si512() })
            };
            for (p, column) in turn_16(words).iter().enumerate().take(left) {
                _mm512_mask_storeu_epi32(out.as_mut_ptr().wrapping_add((start + p) * width).cast(), stored, *column);
            }
        }
        start += left;
    }
}

/// Turns 16 rows of 16 words: in pairs of rows, then fours, then by quarters of a register.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub fn turn_16(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..4 {
        fours[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
    }
    let mut columns = fours;
    for i in 0..4 {
        // quarter q of fours[4 g + i] holds column 4 q + i of rows 4 g .. 4 g + 4
        let low = _mm512_shuffle_i32x4::<0x88>(fours[i], fours[4 + i]);
        let high = _mm512_shuffle_i32x4::<0xdd>(fours[i], fours[4 + i]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(fours[8 + i], fours[12 + i]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(fours[8 + i], fours[12 + i]);
        columns[i] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        columns[8 + i] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    columns
}
