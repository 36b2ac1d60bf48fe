//! The left factor in tiles.

use rayon::prelude::*;

use super::{PARALLEL_FROM, Part, ROWS, SHIFT_BITS};
use crate::cpu::{cleared, written};
use crate::few::quantised::{part_sums, round_blocks};
use crate::matrix::Format;

/// The rows of the left factor in 8 bits, in tiles of up to [`ROWS`]: for each part of each tile its words, of all rows one after the other,
/// then the rows' scales, then the starts of their integer sums or, for a format of minima, the scaled sums of their values.
pub struct PackedLeft {
    pub format: Format,
    pub part: Part,
    words: Vec<u32>,
    rows: usize,
    /// Words of a row.
    row: usize,
}

impl PackedLeft {
    /// x: (m, k), k a multiple of the format's block.
    pub fn new(x: &[f32], (m, k): (usize, usize), format: Format) -> Self {
        let part = Part::of(format);
        let row = k / part.values * part.left_words();
        let work = |(x, out): (&[f32], &mut [_])| pack_tile(x, k, format, cleared(out));
        // SAFETY: the tiles are all there is.
        let words = unsafe {
            written(m * row, |out| match m * k < PARALLEL_FROM / 8 {
                true => x.chunks(ROWS * k).zip(out.chunks_mut(ROWS * row)).for_each(work),
                false => x.par_chunks(ROWS * k).zip(out.par_chunks_mut(ROWS * row)).for_each(work),
            })
        };
        PackedLeft { format, part, words, rows: m, row }
    }

    /// Of the tile that begins with row `first`, the parts of the values `start .. start + count`.
    pub fn tile(&self, first: usize, (start, count): (usize, usize)) -> &[u32] {
        let rows = ROWS.min(self.rows - first);
        let words = |values: usize| values / self.part.values * self.part.left_words() * rows;
        &self.words[first * self.row + words(start)..][..words(count)]
    }
}

fn pack_tile(x: &[f32], k: usize, format: Format, out: &mut [u32]) {
    let (part, rows) = (Part::of(format), x.len() / k);
    let (mut words, mut scales, mut sums) = (vec![0u32; k / 4], vec![0f32; k / format.block()], vec![0i32; k / part.values]);
    for (row, x) in x.chunks_exact(k).enumerate() {
        // SAFETY: a word is four values of 8 bits.
        let values = unsafe { words.align_to_mut::<i8>().1 };
        round_blocks(x, format.block(), values, &mut scales);
        part_sums(values, part.values, 1, &mut sums);
        for (index, out) in out.chunks_exact_mut(part.left_words() * rows).enumerate() {
            let (scale, sum) = (scales[index * part.values / format.block()], sums[index]);
            for (word, value) in words[index * part.words()..][..part.words()].iter().enumerate() {
                out[word * rows + row] = *value;
            }
            out[part.words() * rows + row] = scale.to_bits();
            out[(part.words() + 1) * rows + row] = match format {
                Format::Q8_0 => (SHIFT_BITS - 128 * sum) as u32,
                Format::Q6K => (SHIFT_BITS - 32 * sum) as u32,
                _ => (scale * sum as f32).to_bits(),
            };
        }
    }
}
