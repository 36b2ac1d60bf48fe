//! Strips of the right factor, packed where it lies: f32 words or pairs of bf16 (f16 has [`super::halves`]), or integers of 16 bits.

#[cfg(target_arch = "x86_64")]
use super::halves;
#[cfg(target_arch = "x86_64")]
use super::pack::bf16_of_f16;
use super::pack::{Kind, LANES, Words, as_halves, as_values, as_words, interleave_bits, spread};
#[cfg(target_arch = "x86_64")]
use super::shorts::{self, Lanes};
use super::tile::WIDTH;
use super::{DEPTH, GROUP, Lines, Right};
use crate::matrix::{Format, bf12, words};

/// The right factor and how it is packed.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    pub right: Right<'a>,
    pub words: Words,
}

impl Factor<'_> {
    /// Packs strips of the columns (first, count), of the values (first, count) of the inner axis.
    pub fn pack(&self, columns: (usize, usize), span: (usize, usize), strips: &mut [u32], lines: Lines) {
        match (self.words.kind, self.right.turned) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Halves, _) => halves::pack(&self.right, columns, span, strips, lines),
            #[cfg(target_arch = "x86_64")]
            (Kind::Shorts, false) => self.pack_shorts(columns, span, strips),
            (_, true) => self.pack_turned(columns, span, strips, lines),
            (_, false) => self.pack_straight(columns, span, strips, lines),
        }
    }

    /// The strips' columns are rows of the matrix, and the inner axis runs along them.
    fn pack_turned(&self, (first, columns): (usize, usize), (start, count): (usize, usize), strips: &mut [u32], (lanes, values): Lines) {
        let length = self.words.of(count);
        lanes.resize(LANES * length, 0);
        values.resize(2 * DEPTH, 0.0);
        for (group, strip) in (0..columns.next_multiple_of(WIDTH)).step_by(LANES).map(|group| (group, group / WIDTH)) {
            let place = &mut strips[strip * length * WIDTH + group % WIDTH..];
            if let Some(rows) =
                self.right.plain_values(first + group, start).filter(|_| self.words.kind == Kind::Value && group + LANES <= columns)
            {
                self.words.turn(as_words(rows), self.right.columns, (LANES, length), WIDTH, place);
                continue;
            }
            for (lane, words) in lanes.chunks_exact_mut(length).enumerate() {
                if group + lane >= columns {
                    words.fill(0);
                } else if let Some(row) = self.right.plain_values(first + group + lane, start).filter(|_| self.words.kind == Kind::Shorts) {
                    self.words.along(&row[..count], words);
                } else {
                    self.read_along(self.right.row(first + group + lane), start, &mut values[..count], words);
                }
            }
            self.words.turn(lanes, length, (LANES, length), WIDTH, place);
        }
    }

    /// Makes words of the values from `start` on of a row that lies along the inner axis.
    pub fn read_along(&self, row: &[u8], start: usize, values: &mut [f32], out: &mut [u32]) {
        match self.right.format {
            Format::Bf16 if self.words.bf16() && values.len().is_multiple_of(2) && start.is_multiple_of(2) => {
                words::<u32>(row, start / 2, out.len(), |pairs| out.copy_from_slice(pairs));
            }
            #[cfg(target_arch = "x86_64")]
            Format::F16 if self.words.bf16() && values.len().is_multiple_of(2) => {
                // SAFETY: such words are made where the processor has the features.
                words::<u16>(row, start, values.len(), |bits| unsafe { bf16_of_f16(bits, as_halves(out)) });
            }
            #[cfg(target_endian = "little")]
            Format::Bf12 if self.words.bf16() && values.len().is_multiple_of(2) => {
                bf12::read(row, start, as_halves(out));
            }
            format if self.words.kind == Kind::Value => format.read(row, start, as_values(out)),
            format => {
                format.read(row, start, values);
                self.words.along(values, out);
            }
        }
    }

    /// The strips' rows are parts of the matrix's rows, and the inner axis runs from row to row.
    fn pack_straight(&self, (first, columns): (usize, usize), (start, count): (usize, usize), strips: &mut [u32], (lanes, values): Lines) {
        let pairs = self.words.kind == Kind::Pair;
        let (length, step) = (self.words.of(count), if pairs { 2 } else { 1 });
        let width = columns.next_multiple_of(WIDTH);
        lanes.resize(width, 0);
        values.resize(2 * width, 0.0);
        // what the last strip has too many stays zero
        lanes.fill(0);
        values.fill(0.0);
        #[cfg(target_arch = "x86_64")]
        let mut rows = [[0; GROUP * WIDTH]; 2];
        for (word, p) in (start..start + count).step_by(step).enumerate() {
            let second = (p + 1 < start + count).then_some(p + 1);
            if let (Format::Bf16, true, Some(second)) = (self.right.format, pairs, second) {
                let rows = [p, second].map(|p| self.right.row(p));
                let strips = &mut strips[word * WIDTH..];
                words::<u16>(rows[0], first, columns, |one| {
                    words::<u16>(rows[1], first, columns, |two| interleave_bits(one, two, strips, length * WIDTH));
                });
                continue;
            }
            #[cfg(target_arch = "x86_64")]
            if let (Format::F16, true, Some(second)) = (self.right.format, pairs, second) {
                for (p, bits) in [p, second].into_iter().zip(&mut rows) {
                    // SAFETY: pairs are made where the processor has the features.
                    words::<u16>(self.right.row(p), first, columns, |row| unsafe { bf16_of_f16(row, bits) });
                }
                interleave_bits(&rows[0][..columns], &rows[1][..columns], &mut strips[word * WIDTH..], length * WIDTH);
                continue;
            }
            if let (Format::F32, false) = (self.right.format, pairs) {
                let strips = &mut strips[word * WIDTH..];
                words::<u32>(self.right.row(p), first, columns, |row| spread(row, strips, length * WIDTH));
                continue;
            }
            if let (Format::Bf16, false) = (self.right.format, pairs) {
                // the bits of an f32 are a pair of nothing and a bf16
                const NOTHING: [u16; GROUP * WIDTH] = [0; GROUP * WIDTH];
                let strips = &mut strips[word * WIDTH..];
                words::<u16>(self.right.row(p), first, columns, |row| interleave_bits(&NOTHING[..columns], row, strips, length * WIDTH));
                continue;
            }
            self.read_across((first, columns), (p, second), values, lanes);
            for (strip, lanes) in lanes.chunks_exact(WIDTH).enumerate() {
                strips[(strip * length + word) * WIDTH..][..WIDTH].copy_from_slice(lanes);
            }
        }
    }

    /// As [`Self::pack_straight`], for integers of 16 bits.
    #[cfg(target_arch = "x86_64")]
    fn pack_shorts(&self, (first, columns): (usize, usize), (start, count): (usize, usize), strips: &mut [u32]) {
        let rows = self.right.plain_values(start, first).expect("only such a factor is packed so");
        for (strip, words) in strips.chunks_exact_mut(self.words.of(count) * WIDTH).enumerate() {
            let (values, lanes) = (&rows[strip * WIDTH..], WIDTH.min(columns - strip * WIDTH));
            shorts::across(Lanes { values, stride: self.right.columns, lanes, count }, WIDTH, words);
        }
    }

    /// Writes a word of each of the columns: row `p`, and in a pair its neighbour, if there is one.
    fn read_across(&self, (first, columns): (usize, usize), (p, second): (usize, Option<usize>), values: &mut [f32], out: &mut [u32]) {
        let (width, second) = (out.len(), second.filter(|_| self.words.kind == Kind::Pair));
        for (row, values) in [Some(p), second].into_iter().flatten().zip(values.chunks_exact_mut(width)) {
            self.right.format.read(self.right.row(row), first, &mut values[..columns]);
        }
        self.words.rows_of(values, width, (width, 1 + usize::from(second.is_some())), width, out);
    }
}
