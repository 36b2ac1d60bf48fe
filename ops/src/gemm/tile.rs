//! The innermost loops: a register tile of the output, R rows by [`WIDTH`] columns (twice as many of f16), over one block of the inner axis.
//!
//! Both factors are packed in words of 32 bits: one f32, two bf16 or integers of 16 bits ([`shorts`]) that lie next to each other on the inner axis, or two f16 ([`halves`]). Word p of row r of the
//! left factor lies at `p * R + r`, of column c of the right one at `p * stride + c`, where a packed strip's stride is [`WIDTH`].

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use std::sync::OnceLock;

use super::pack::{Kind, Words};
#[cfg(target_arch = "x86_64")]
use super::{halves, shorts};
use crate::simd::vectorised;

/// Words of a packed strip for each place of the inner axis: its columns, or half as many where a word holds two.
pub const WIDTH: usize = 32;

/// What the processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Whatever the compiler makes of plain loops, AVX2 where there is one.
    Plain,
    /// 512-bit registers.
    Avx512,
    /// 512-bit registers and products of bf16 pairs.
    Avx512Bf16,
    /// 512-bit registers and products of f16.
    Avx512Half,
}

impl Level {
    /// The fastest of this processor; the same one each time, so that a run on one machine repeats its bits.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            // Intel's cores start a product of pairs every other cycle, and two in f32 or in f16 in each: measured on a Xeon of the fifth
            // generation, 165 GFLOP/s in bf16, 343 in f32 and 735 in f16. AMD's start as many of pairs as of f32.
            let passed_over = if is_intel() { Level::Avx512Bf16 } else { Level::Avx512Half };
            *Level::all().iter().rev().find(|&&level| level != passed_over).expect("there is always the plain one")
        })
    }

    /// All that this processor can run, from plain to most able.
    pub fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Level>> = OnceLock::new();
        ALL.get_or_init(|| {
            let mut all = vec![Level::Plain];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                all.push(Level::Avx512);
                all.extend(is_x86_feature_detected!("avx512bf16").then_some(Level::Avx512Bf16));
                all.extend(is_x86_feature_detected!("avx512fp16").then_some(Level::Avx512Half));
            }
            all
        })
    }

    /// Rows of a tile: as many as the registers hold.
    pub fn rows(self) -> usize {
        if self == Level::Plain { 4 } else { 14 }
    }
}

/// Whether the processor says that Intel made it.
fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    let maker = {
        let maker = __cpuid(0);
        [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).concat()
    };
    #[cfg(not(target_arch = "x86_64"))]
    let maker = Vec::new();
    maker == b"GenuineIntel"
}

/// One tile's place in the output.
#[derive(Clone, Copy)]
pub struct Place {
    /// Its first value.
    pub start: *mut f32,
    /// Values from row to row.
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    /// What the product is added to, with its own values from row to row: the place itself, or another.
    pub before: Option<(*const f32, usize)>,
}

impl Place {
    /// What the product's row `r` is added to, in the columns of `mask` of its part `part` of 16.
    ///
    /// # Safety
    /// As for [`multiply`]; needs 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn before_at(&self, r: usize, part: usize, mask: u16) -> __m512 {
        match self.before {
            // SAFETY: masked to the place's columns, which the caller has promised.
            Some((start, stride)) => unsafe { _mm512_maskz_loadu_ps(mask, start.add(r * stride).wrapping_add(16 * part)) },
            None => _mm512_setzero_ps(),
        }
    }
}

/// The right factor: word p of its first column lies at `p * stride`.
#[derive(Clone, Copy)]
pub struct Strip<'a> {
    pub words: &'a [u32],
    pub stride: usize,
}

/// Writes the product of the packed factors, `words` words long, to `place`; its rows are at most [`Level::rows`].
///
/// # Safety
/// The place's rows and columns must lie in memory that nothing else uses meanwhile, and what they are added to likewise. Pairs of bf16 need
/// [`Level::Avx512Bf16`], halves [`Level::Avx512Half`] and a packed strip, shorts [`shorts::available`] and a packed strip.
pub unsafe fn multiply(packed: Words, left: &[u32], right: Strip, words: usize, place: Place) {
    let (Words { kind, level }, width) = (packed, packed.columns());
    let ends = if kind == Kind::Halves { place.rows } else { 0 };
    let packed_only = matches!(kind, Kind::Halves | Kind::Shorts);
    assert!(place.rows <= level.rows() && place.columns <= width && left.len() >= words * place.rows + ends);
    assert!(words == 0 || right.words.len() >= (words - 1) * right.stride + if packed_only { WIDTH } else { place.columns });
    assert!(!packed_only || right.stride == WIDTH, "halves and shorts lie in packed strips");
    assert!(kind != Kind::Halves || level == Level::Avx512Half, "halves need a processor that multiplies them");
    #[cfg(target_arch = "x86_64")]
    if level != Level::Plain {
        let whole = place.columns == width || right.stride == WIDTH && right.words.len() >= words * WIDTH;
        macro_rules! rows {
            ($($rows:literal)*) => {
                match (place.rows, kind, place.columns > width / 2, whole) {
                    // SAFETY: the processor has the level's features; the lengths are checked above, the place by the caller.
                    $(($rows, Kind::Pair, true, true) => unsafe { tile_bf16::<$rows, 2, true>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Pair, true, false) => unsafe { tile_bf16::<$rows, 2, false>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Pair, false, _) => unsafe { tile_bf16::<$rows, 1, false>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Value, true, true) => unsafe { tile_f32::<$rows, 2, true>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Value, true, false) => unsafe { tile_f32::<$rows, 2, false>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Value, false, _) => unsafe { tile_f32::<$rows, 1, false>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Halves, true, _) => unsafe { halves::tile::<$rows, 2>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Halves, false, _) => unsafe { halves::tile::<$rows, 1>(left.as_ptr(), right, words, place) },
                    ($rows, Kind::Shorts, true, _) => unsafe { shorts::tile::<$rows, 2>(left.as_ptr(), right, words - 1, place) },
                    ($rows, Kind::Shorts, false, _) => unsafe { shorts::tile::<$rows, 1>(left.as_ptr(), right, words - 1, place) },)*
                    _ => unreachable!("a tile has 1 to 14 rows"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        return;
    }
    assert!(kind == Kind::Value, "pairs of bf16 need a processor that multiplies them");
    let mut sums = [[0.0; WIDTH]; 4];
    assert!(right.stride == WIDTH, "plain tiles take packed strips");
    tile_plain(left, right.words, words, place.rows, &mut sums);
    for (row, sums) in sums.iter().enumerate().take(place.rows) {
        for (column, sum) in sums.iter().enumerate().take(place.columns) {
            // SAFETY: the caller's promise on the places.
            unsafe {
                let before = place.before.map_or(0.0, |(start, stride)| *start.add(row * stride + column));
                *place.start.add(row * place.stride + column) = before + sum;
            }
        }
    }
}

/// Rows up to which several strips are multiplied at once: the sums of one alone would wait for each other.
pub const THIN: usize = 3;

/// As [`multiply`] of f32 in 512-bit registers, of at most [`THIN`] rows and of all the whole strips that `strips` holds, one after the other.
///
/// # Safety
/// As for [`multiply`]; the place's columns are those of all strips.
#[cfg(target_arch = "x86_64")]
pub unsafe fn multiply_thin(left: &[u32], strips: &[u32], words: usize, place: Place) {
    let count = place.columns / WIDTH;
    assert!(place.columns == count * WIDTH && strips.len() >= count * words * WIDTH && left.len() >= words * place.rows);
    let mut first = 0;
    while first < count {
        let right = strips[first * words * WIDTH..].as_ptr();
        let at = Place {
            start: place.start.wrapping_add(first * WIDTH),
            before: place.before.map(|(values, stride)| (values.wrapping_add(first * WIDTH), stride)),
            ..place
        };
        // SAFETY: the lengths are checked above, the processor and the place by the caller.
        unsafe {
            first += match (place.rows, count - first) {
                (1, 6..) => thin::<1, 6>(left.as_ptr(), right, words, at),
                (1, 4..) => thin::<1, 4>(left.as_ptr(), right, words, at),
                (1, 2..) => thin::<1, 2>(left.as_ptr(), right, words, at),
                (1, _) => thin::<1, 1>(left.as_ptr(), right, words, at),
                (2, 4..) => thin::<2, 4>(left.as_ptr(), right, words, at),
                (2, 2..) => thin::<2, 2>(left.as_ptr(), right, words, at),
                (2, _) => thin::<2, 1>(left.as_ptr(), right, words, at),
                (3, 3..) => thin::<3, 3>(left.as_ptr(), right, words, at),
                (3, 2..) => thin::<3, 2>(left.as_ptr(), right, words, at),
                (3, _) => thin::<3, 1>(left.as_ptr(), right, words, at),
                _ => unreachable!("there are 1 to 3 rows"),
            };
        }
    }
}

/// R rows times S strips, and S.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "closures have not these features")]
#[target_feature(enable = "avx512f")]
unsafe fn thin<const R: usize, const S: usize>(left: *const u32, right: *const u32, words: usize, place: Place) -> usize {
    let mut sums = [[[_mm512_setzero_ps(); 2]; S]; R];
    for p in 0..words {
        for s in 0..S {
            for half in 0..2 {
                // SAFETY: the caller has checked the lengths.
                unsafe {
                    let at = right.add((s * words + p) * WIDTH + 16 * half);
                    let columns = _mm512_loadu_ps(at.cast());
                    for r in 0..R {
                        sums[r][s][half] = _mm512_fmadd_ps(_mm512_set1_ps(f32::from_bits(*left.add(p * R + r))), columns, sums[r][s][half]);
                    }
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (part, &sum) in sums.iter().flatten().enumerate() {
            // SAFETY: the place has as many columns: the caller's promise.
            unsafe {
                let out = place.start.add(r * place.stride + 16 * part);
                _mm512_storeu_ps(out, _mm512_add_ps(place.before_at(r, part, u16::MAX), sum));
            }
        }
    }
    S
}

vectorised! {
    fn tile_plain(left: &[u32], right: &[u32], words: usize, rows: usize, out: &mut [[f32; WIDTH]; 4]) {
        const HALF: usize = WIDTH / 2;
        for half in 0..2 {
            let mut sums = [[0.0f32; HALF]; 4];
            for p in 0..words {
                let b: &[u32; HALF] = right[p * WIDTH + half * HALF..][..HALF].try_into().expect("the slice has half a row's length");
                for r in 0..4 {
                    let a = f32::from_bits(left[p * rows + r.min(rows - 1)]);
                    for c in 0..HALF {
                        sums[r][c] = a.mul_add(f32::from_bits(b[c]), sums[r][c]);
                    }
                }
            }
            for r in 0..4 {
                out[r][half * HALF..][..HALF].copy_from_slice(&sums[r]);
            }
        }
    }
}

/// Lanes of a tile's half that are among `columns`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn mask(columns: usize, half: usize) -> u16 {
    ((1u32 << columns.saturating_sub(half * 16).min(16)) - 1) as u16
}

#[cfg(target_arch = "x86_64")]
macro_rules! tile {
    ($name:ident, $features:literal, $fma:expr) => {
        /// `H`: registers that the columns fill. `W`: whether they are whole in the strip: a masked load would take a place of a product.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const H: usize, const W: bool>(left: *const u32, right: Strip, words: usize, place: Place) {
            let mut sums = [[_mm512_setzero_ps(); H]; R];
            let masks = [mask(place.columns, 0), mask(place.columns, 1)];
            let (mut a, mut b) = (left, right.words.as_ptr());
            if let Some((start, stride)) = place.before {
                // they come while the products are made
                for r in 0..R {
                    for h in 0..H {
                        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(r * stride + 16 * h).cast());
                    }
                }
            }
            macro_rules! step {
                () => {
                    // SAFETY: `multiply` has checked the lengths; loads are masked to the columns where those are not whole.
                    unsafe {
                        let mut columns = [_mm512_setzero_si512(); H];
                        for h in 0..H {
                            let at = b.wrapping_add(16 * h).cast();
                            columns[h] = if W { _mm512_loadu_epi32(at) } else { _mm512_maskz_loadu_epi32(masks[h], at) };
                        }
                        for r in 0..R {
                            let row = _mm512_set1_epi32(*a.add(r) as i32);
                            for h in 0..H {
                                sums[r][h] = $fma(sums[r][h], row, columns[h]);
                            }
                        }
                        a = a.add(R);
                        b = b.wrapping_add(right.stride);
                    }
                };
            }
            // four at a time: counting takes places of products too
            for _ in 0..words / 4 {
                step!();
                step!();
                step!();
                step!();
            }
            for _ in 0..words % 4 {
                step!();
            }
            for (r, sums) in sums.iter().enumerate() {
                for (half, &sum) in sums.iter().enumerate() {
                    let mask = mask(place.columns, half);
                    // SAFETY: masked to the place's columns, which the caller has promised.
                    unsafe {
                        let out = place.start.add(r * place.stride).wrapping_add(half * 16);
                        _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(place.before_at(r, half, mask), sum));
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tile!(tile_f32, "avx512f", |sum, row, column| _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(column), sum));
#[cfg(target_arch = "x86_64")]
tile!(tile_bf16, "avx512f,avx512bf16", |sum, row, column| _mm512_dpbf16_ps(
    sum,
    std::mem::transmute::<__m512i, __m512bh>(row),
    std::mem::transmute::<__m512i, __m512bh>(column)
));
