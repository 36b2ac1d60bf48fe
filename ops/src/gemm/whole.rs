//! Factors that are packed whole before any product: for pieces of work that multiply their own rows by several matrices on one core.

use std::cell::Cell;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::pack::{Kind, Words, aligned, pack_tile};
use super::strips::Factor;
use super::tile::{Level, Place, Strip, WIDTH, multiply};
#[cfg(target_arch = "x86_64")]
use super::tile::{THIN, multiply_thin};
use super::{Added, DEPTH, GROUP, Left, Out, PARALLEL_FROM, Precision, Right, SCRATCH, kind};

/// The right factor of x W^T for a weight W, in strips for each block of [`DEPTH`] values of the inner axis.
pub struct PackedRight {
    words: Words,
    /// (k, n)
    size: (usize, usize),
    packed: Vec<u32>,
}

/// First value and number of values of each block of the inner axis.
fn spans(k: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    (0..k).step_by(DEPTH).map(move |start| (start, DEPTH.min(k - start)))
}

impl PackedRight {
    /// Packs an f32 weight (n, k), on all cores.
    pub fn new(weight: &[f32], k: usize, precision: Precision) -> Self {
        PackedRight::of(Right::values(weight, k, true), weight.len() / k, precision)
    }

    /// Packs a turned factor of `n` rows, on all cores.
    pub fn of(right: Right, n: usize, precision: Precision) -> Self {
        let (level, k) = (Level::best(), right.columns);
        let words = Words { kind: kind(level, precision, true, [right].iter()), level };
        let strips = n.div_ceil(words.columns());
        let count = spans(k).map(|(_, count)| words.of(count) * WIDTH * strips).sum();
        let mut packed = Vec::new();
        let mut rest = aligned(&mut packed, count);
        let mut pieces = Vec::new();
        for span in spans(k) {
            let (block, after) = rest.split_at_mut(words.of(span.1) * WIDTH * strips);
            rest = after;
            pieces.extend(block.chunks_mut(words.of(span.1) * WIDTH * GROUP).enumerate().map(|(group, strips)| (span, group, strips)));
        }
        let factor = Factor { right, words };
        pieces.into_par_iter().for_each(|(span, group, strips)| {
            let first = group * GROUP * words.columns();
            let mut scratch = SCRATCH.take();
            factor.pack((first, (GROUP * words.columns()).min(n - first)), span, strips, (&mut scratch.lanes, &mut scratch.values));
            SCRATCH.set(scratch);
        });
        PackedRight { words, size: (k, n), packed }
    }

    /// Columns of the product.
    pub fn columns(&self) -> usize {
        self.size.1
    }

    /// First value and number of values of each block of the inner axis.
    pub fn spans(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        spans(self.size.0)
    }

    /// Strips of block `index`, and the words that each has along the inner axis.
    fn block(&self, index: usize) -> (&[u32], usize) {
        let strips = self.size.1.div_ceil(self.words.columns());
        let length = |index: usize| self.words.of(DEPTH.min(self.size.0 - index * DEPTH));
        let skip = self.packed.as_ptr().align_offset(64);
        let start = (0..index).map(|index| length(index) * WIDTH * strips).sum::<usize>();
        (&self.packed[skip + start..][..length(index) * WIDTH * strips], length(index))
    }
}

thread_local! {
    /// What the thread's last rows were packed in.
    static ROWS: Cell<PackedRows> = const { Cell::new(PackedRows { packed: Vec::new(), starts: Vec::new(), rows: 0 }) };
}

/// x (m, k) times each of `rights`, which are packed alike, in one round of work: written to its output (m, n), or added to what is there.
///
/// # Safety
/// Each output has m n values, which may be unwritten where they are not added to.
pub unsafe fn packed_products(x: &[f32], rights: &[(&PackedRight, Out)], added: bool) {
    let Some((of_first, _)) = rights.first() else { return };
    let of_all: usize = rights.iter().map(|(right, _)| right.size.1).sum();
    let (width, products) = (of_first.words.columns(), x.len() * of_all);
    let mut rows = ROWS.take();
    rows.pack(x, of_first);
    // as much for each as is worth taking
    let columns = (of_all * PARALLEL_FROM / products.max(1)).next_multiple_of(width).max(width);
    let mut pieces = Vec::new();
    for &(right, out) in rights {
        pieces.extend((0..right.size.1).step_by(columns).map(|first| (right, out, first, columns.min(right.size.1 - first))));
    }
    let work = |&(right, out, first, columns): &(&PackedRight, Out, usize, usize)| {
        let (out, stride) = (out.0.wrapping_add(first), right.size.1);
        // SAFETY: these columns of the output are this piece's own: the caller's promise.
        unsafe { rows.write(right, 0, (first, columns), (out, stride), added.then_some((out.cast_const(), stride))) };
    };
    match products < PARALLEL_FROM {
        true => pieces.iter().for_each(work),
        false => pieces.par_iter().for_each(work),
    }
    ROWS.set(rows);
}

/// Rows of the left factor, packed for products with a [`PackedRight`].
#[derive(Default)]
pub struct PackedRows {
    packed: Vec<u32>,
    /// Words before each block.
    starts: Vec<usize>,
    rows: usize,
}

impl PackedRows {
    /// Packs rows of the right factor's inner length; one for all factors of this length and precision.
    pub fn pack(&mut self, values: &[f32], right: &PackedRight) {
        let k = right.size.0;
        self.clear(values.len() / k);
        for span in spans(k) {
            self.push(&values[span.0..], k, span.1, right);
        }
    }

    /// Forgets its blocks.
    pub fn clear(&mut self, rows: usize) {
        self.starts.clear();
        self.starts.push(0);
        self.rows = rows;
    }

    /// Packs one more block of `count` values of each row; rows lie `stride` apart.
    pub fn push(&mut self, values: &[f32], stride: usize, count: usize, right: &PackedRight) {
        let (words, start) = (right.words, self.starts[self.starts.len() - 1]);
        let length = words.of_left(count);
        let end = start + length * self.rows;
        if self.packed.len() < end {
            self.packed.resize(end, 0);
        }
        let left = Left { values, row: stride, column: 1 };
        for (index, tile) in self.packed[start..end].chunks_mut(words.level.rows() * length).enumerate() {
            pack_tile(left, index * words.level.rows(), (0, count), words, tile);
        }
        self.starts.push(end);
    }

    /// Writes the product's `columns` (first and number, the first at a strip's begin) to the first columns of `out`, whose rows lie `stride` apart:
    /// of the right factor's blocks from `block` on as many as these rows have.
    pub fn multiply(
        &self,
        right: &PackedRight,
        block: usize,
        (first, columns): (usize, usize),
        (out, stride): (&mut [f32], usize),
        added: Added,
    ) {
        assert!(columns <= stride && self.rows > 0 && out.len() >= (self.rows - 1) * stride + columns);
        let before = added.before(out.as_ptr(), (self.rows, columns), stride);
        // SAFETY: the output and what is added have the product's size.
        unsafe { self.write(right, block, (first, columns), (out.as_mut_ptr(), stride), before) };
    }

    /// Writes all columns of the whole product, added to `rows` that lie `stride` apart, to memory of its size.
    pub fn fill<'a>(&self, right: &PackedRight, (rows, stride): (&[f32], usize), out: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
        let (k, columns) = right.size;
        assert!(out.len() == self.rows * columns && self.starts.len() == spans(k).count() + 1 && self.rows > 0);
        let before = Added::To(rows, stride).before(out.as_ptr().cast(), (self.rows, columns), stride);
        // SAFETY: the output and what is added have the product's size, and the product's first block writes all of it and reads nothing there.
        unsafe {
            self.write(right, 0, (0, columns), (out.as_mut_ptr().cast(), columns), before);
            out.assume_init_mut()
        }
    }

    /// # Safety
    /// The output has these rows and columns, and so has what is before them, if there is any.
    unsafe fn write(
        &self,
        right: &PackedRight,
        block: usize,
        (first, columns): (usize, usize),
        (out, stride): (*mut f32, usize),
        first_before: Option<(*const f32, usize)>,
    ) {
        let (words, width, tile) = (right.words, right.words.columns(), right.words.level.rows());
        assert!(first % width == 0 && first + columns <= right.size.1);
        for index in 0..self.starts.len() - 1 {
            let (strips, length) = right.block(block + index);
            let packed = &self.packed[self.starts[index]..self.starts[index + 1]];
            let of_row = packed.len() / self.rows;
            let strips = &strips[first / width * length * WIDTH..][..columns.div_ceil(width) * length * WIDTH];
            let before = if index > 0 { Some((out.cast_const(), stride)) } else { first_before };
            #[cfg(target_arch = "x86_64")]
            if self.rows <= THIN && columns.is_multiple_of(width) && words.kind == Kind::Value && words.level != Level::Plain {
                // SAFETY: the caller's promise for all rows and columns; the level has the registers.
                unsafe { multiply_thin(packed, strips, length, Place { start: out, stride, rows: self.rows, columns, before }) };
                continue;
            }
            for (group, strips) in strips.chunks(GROUP * length * WIDTH).enumerate() {
                for row in (0..self.rows).step_by(tile) {
                    let rows = tile.min(self.rows - row);
                    for (index, strip) in strips.chunks_exact(length * WIDTH).enumerate() {
                        let column = (group * GROUP + index) * width;
                        let place = Place {
                            start: out.wrapping_add(row * stride + column),
                            stride,
                            rows,
                            columns: width.min(columns - column),
                            before: before.map(|(values, stride)| (values.wrapping_add(row * stride + column), stride)),
                        };
                        let strip = Strip { words: strip, stride: WIDTH };
                        // SAFETY: the caller's promise for all rows and columns.
                        unsafe { multiply(words, &packed[row * of_row..], strip, length, place) };
                    }
                }
            }
        }
    }
}
