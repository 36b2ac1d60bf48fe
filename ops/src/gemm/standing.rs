//! Products x W^T of bf16 pairs with the rows of W as they stand, in a mapped file say: two neighbours of a row are a pair already, which a tile hands
//! to all lanes. What is packed is x, in panels of [`PANEL`] rows, of which a register holds sixteen; the sums have a row for each row of W and
//! are turned when they are written. Against strips of W this saves turning all of W for each product, a sixth of the time with 126 rows of x.

// Plain counting: iterators' closures would be calls, since what they are called by has not these features.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::arch::x86_64::*;

use super::pack::{LANES, aligned, as_values, turn_16};
use super::tile::mask;
use super::{Before, Scratch, Task, blocks};
use crate::matrix::Format;

/// Rows of x in a panel: three registers.
pub const PANEL: usize = 3 * LANES;

/// Rows of W of a tile: with a panel's three registers the sums fill the rest.
const TILE: usize = 8;

/// Values of the sums of a panel with sixteen rows of W.
const SUMS: usize = LANES * PANEL;

impl Task<'_> {
    /// Multiplies `count` times sixteen rows of W from the `first` sixteen on, or as many as there are.
    pub fn standing(&self, first: usize, count: usize, scratch: &mut Scratch) {
        let (right, words) = (&self.factor.right, self.factor.words);
        let ((_, k, n), (top, bottom), first) = (self.size, self.rows, first * LANES);
        let columns = (count * LANES).min(n - first);
        let (panels, strips) = ((bottom - top).div_ceil(PANEL), columns.div_ceil(LANES));
        let as_it_stands = right.format == Format::Bf16 && k.is_multiple_of(2);
        let several = blocks(k, words).count() > 1;
        let sums = as_values(aligned(&mut scratch.sums, SUMS * if several { panels * strips } else { 1 }));
        let mut spans = blocks(k, words).enumerate().peekable();
        while let Some((block, span @ (start, depth))) = spans.next() {
            let next = self.next((first, columns), span.1, spans.peek().map(|&(_, span)| span));
            let (last, pairs) = (spans.peek().is_none(), words.of(depth));
            let unpacked = aligned(&mut scratch.strips, if as_it_stands { 0 } else { columns * pairs });
            scratch.values.resize(scratch.values.len().max(depth), 0.0);
            for (column, row) in unpacked.chunks_exact_mut(pairs).enumerate() {
                self.factor.read_along(right.row(first + column), start, &mut scratch.values[..depth], row);
            }
            for (panel, row) in (top..bottom).step_by(PANEL).enumerate() {
                for strip in 0..strips {
                    let (share, column) = (panel * strips + strip, strip * LANES);
                    let height = LANES.min(columns - column);
                    right.expect(next.0, next.1, share..share + 1, panels * strips);
                    // what a short strip has too many reads its last row again
                    let of = |r: usize| match column + r.min(height - 1) {
                        column if as_it_stands => right.row(first + column)[2 * start..][..2 * depth].as_ptr(),
                        column => unpacked[column * pairs..][..pairs].as_ptr().cast(),
                    };
                    let rows: [*const u8; LANES] = std::array::from_fn(of);
                    let sums = &mut sums[if several { share * SUMS } else { 0 }..][..SUMS];
                    // SAFETY: the words' level has the features; the rows of W are so many pairs long; these rows and columns of the output are
                    // this task's.
                    unsafe {
                        multiply(self.packed.tile(block, row), &rows, pairs, sums, block > 0);
                        if last {
                            self.write(sums, (row, PANEL.min(bottom - row)), (first + column, height));
                        }
                    }
                }
            }
        }
    }

    /// Turns a panel's sums and writes `rows` rows of `columns`, first and number.
    ///
    /// # Safety
    /// The processor has 512-bit registers; nothing else uses these places of the output meanwhile.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, sums: &[f32], rows: (usize, usize), columns: (usize, usize)) {
        assert!(sums.len() == SUMS && columns.1 <= LANES);
        let mask = mask(columns.1, 0);
        for part in (0..rows.1).step_by(LANES) {
            let mut lanes = [_mm512_setzero_si512(); LANES];
            for r in 0..LANES {
                // SAFETY: there are 16 rows of a panel's length.
                lanes[r] = unsafe { _mm512_loadu_epi32(sums.as_ptr().add(r * PANEL + part).cast()) };
            }
            let turned = turn_16(lanes);
            for r in 0..LANES.min(rows.1 - part) {
                // SAFETY: masked to the output's columns: the caller's promise.
                unsafe {
                    let out = self.out.0.add((rows.0 + part + r) * self.size.2 + columns.0);
                    let sum = _mm512_castsi512_ps(turned[r]);
                    let before = if self.before == Before::Kept { _mm512_maskz_loadu_ps(mask, out) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(before, sum));
                }
            }
        }
    }
}

/// Products of a packed panel's rows with 16 rows of W, `pairs` long, added to what is in `sums` or written there: a row of [`PANEL`] for each
/// row of W.
///
/// # Safety
/// The processor multiplies pairs of bf16; the rows of W are as long.
unsafe fn multiply(x: &[u32], rows: &[*const u8; LANES], pairs: usize, sums: &mut [f32], added: bool) {
    let registers = x.len() / (pairs * LANES);
    assert!(sums.len() == SUMS && x.len() == registers * pairs * LANES);
    for (rows, sums) in rows.chunks_exact(TILE).zip(sums.chunks_exact_mut(TILE * PANEL)) {
        let (rows, sums) = (rows.first_chunk().expect("a chunk has a tile's rows"), sums.as_mut_ptr());
        // SAFETY: the caller's promises; the panel has as many registers of pairs, the sums a tile's rows.
        unsafe {
            match registers {
                1 => tile::<1>(x.as_ptr(), rows, pairs, sums, added),
                2 => tile::<2>(x.as_ptr(), rows, pairs, sums, added),
                3 => tile::<3>(x.as_ptr(), rows, pairs, sums, added),
                _ => unreachable!("a panel has 1 to 3 registers"),
            }
        }
    }
}

/// `H`: registers of the panel.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const H: usize>(x: *const u32, rows: &[*const u8; TILE], pairs: usize, out: *mut f32, added: bool) {
    let (mut sums, mut x, mut byte) = ([[_mm512_setzero_ps(); H]; TILE], x, 0);
    macro_rules! step {
        ($at:literal) => {
            // SAFETY: the caller's promise.
            unsafe {
                let mut lanes = [_mm512_setzero_si512(); H];
                for h in 0..H {
                    lanes[h] = _mm512_loadu_epi32(x.add(LANES * (H * $at + h)).cast());
                }
                for r in 0..TILE {
                    let pair = _mm512_set1_epi32(rows[r].add(byte + 4 * $at).cast::<i32>().read_unaligned());
                    for h in 0..H {
                        sums[r][h] = _mm512_dpbf16_ps(
                            sums[r][h],
                            std::mem::transmute::<__m512i, __m512bh>(lanes[h]),
                            std::mem::transmute::<__m512i, __m512bh>(pair),
                        );
                    }
                }
            }
        };
    }
    // four at a time: counting takes places of products too
    for _ in 0..pairs / 4 {
        step!(0);
        step!(1);
        step!(2);
        step!(3);
        (x, byte) = (x.wrapping_add(4 * LANES * H), byte + 16);
    }
    for _ in 0..pairs % 4 {
        step!(0);
        (x, byte) = (x.wrapping_add(LANES * H), byte + 4);
    }
    for r in 0..TILE {
        for h in 0..H {
            // SAFETY: the caller's promise.
            unsafe {
                let out = out.add(r * PANEL + LANES * h);
                let before = if added { _mm512_loadu_ps(out) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(out, _mm512_add_ps(before, sums[r][h]));
            }
        }
    }
}
