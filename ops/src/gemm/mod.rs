//! Matrix products with the right factor read where it lies: a mapped file's bf16 or quantised rows are packed strip by strip as they are
//! multiplied, or, for few rows beside a long inner axis, multiplied as they stand; no second copy of a weight exists, in either direction.
//!
//! The scheme is that of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): strips of the right factor
//! stay in the second-level cache, a tile of the left one in the first-level cache while they stream past it. Sums are taken in one order whatever
//! the number of threads.

#[cfg(target_arch = "x86_64")]
mod halves;
mod pack;
#[cfg(target_arch = "x86_64")]
mod shorts;
mod small;
#[cfg(target_arch = "x86_64")]
mod standing;
mod strips;
mod tile;
mod whole;

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use crate::cpu::{cleared, rewritten, written};
use crate::matrix::{Format, Line};
#[cfg(target_arch = "x86_64")]
pub use pack::turn_16;
use pack::{Kind, Words, aligned, as_values, pack_tile};
#[cfg(target_arch = "x86_64")]
use pack::{LANES, pack_panel};
pub use small::{SmallRight, multiplies_pairs, small_product};
use strips::Factor;
#[cfg(target_arch = "x86_64")]
pub use tile::mask;
pub use tile::{Level, Place};
use tile::{Strip, WIDTH, multiply};
pub use whole::{PackedRight, PackedRows, packed_products};

/// Words of a block on the inner axis for each row and column: with f32 512 values, with pairs 1024. The output is read and written for each block.
const DEPTH: usize = 512;

/// Strips that are packed together: a block of the left factor is read once for all of them, and where the inner axis runs from row to row, 512 bytes
/// of each row of bf16, since a strip's own 64 would cost a page's look-up each. Together they stay in the second-level cache.
const GROUP: usize = 8;

/// Pieces of work for each core, at least, so that none waits long for the other.
const PIECES: usize = 2;

/// Rows of one piece of work, at most: their sums are kept between two blocks of the inner axis.
const PART_ROWS: usize = 4096;

/// Words of a packed left factor that a thread keeps for its next one: fresh ones would be cleared first.
const LEFT_KEPT: usize = 1 << 19;

/// Products below this are not worth a second core.
const PARALLEL_FROM: usize = 1 << 18;

/// Times as long as there are rows of the left factor, its rows are worth leaving a turned right factor as it stands: what is saved grows with them,
/// and sums are turned for it.
const STANDING_FROM: usize = 2;

/// How exact a product is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Products and sums in f32.
    F32,
    /// f32 in integers of 16 bits, a scale for each row and column of up to 1024 values, with exact sums of 128: a product lies some 1e-4 of its
    /// size from f32's, and takes half its time. What is not f32, and all on a processor without AVX-512-VNNI, as [`Precision::F32`].
    Int16,
    /// Factors of 16 bits, whichever the processor multiplies fastest: rounded to bf16 with sums in f32, or of a frozen matrix to f16 with sums of
    /// 64 in f16 and f32 beyond, which is more exact; on a processor without such products, f32.
    Bf16,
    /// Quantised rows times activations of 8 bits, as a few rows are always multiplied, with sums in integers within a block: for what is read
    /// without a gradient. All else as [`Precision::Bf16`].
    Int8,
}

/// The left factor: value (i, p) at `i * row + p * column`; one of the two is 1.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
}

/// The right factor: rows of `columns` values in `format`. Turned, the rows are its columns: x W^T for a weight W.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub bytes: &'a [u8],
    pub format: Format,
    pub columns: usize,
    pub turned: bool,
    /// Where each row lies; by default one after the other. Of bf16 in 12 bits the first line of each row, and the end of the last.
    pub order: Option<&'a [u32]>,
    /// Whether all of it is small enough for products in f16, once somebody has looked; `None` for what is not looked at and not multiplied so.
    pub small: Option<&'a OnceLock<bool>>,
}

impl<'a> Right<'a> {
    /// f32 rows.
    pub fn values(values: &'a [f32], columns: usize, turned: bool) -> Self {
        // SAFETY: every f32 is four bytes of any alignment.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Right { bytes, format: Format::F32, columns, turned, order: None, small: None }
    }

    /// Row `index` of the matrix.
    pub fn row(&self, index: usize) -> &'a [u8] {
        if let (Format::Bf12, Some(lines)) = (self.format, self.order) {
            return &self.bytes[lines[index] as usize * Line::BYTES..lines[index + 1] as usize * Line::BYTES];
        }
        let index = self.order.map_or(index, |order| order[index] as usize);
        let bytes = self.columns / self.format.block() * self.format.block_bytes();
        &self.bytes[index * bytes..][..bytes]
    }

    /// Values from `start` of row `index` on, where it is f32 in order and on whole words.
    fn plain_values(&self, index: usize, start: usize) -> Option<&'a [f32]> {
        if self.format != Format::F32 || self.order.is_some() {
            return None;
        }
        // SAFETY: any bits are a value.
        let (before, values, _) = unsafe { self.bytes.align_to::<f32>() };
        before.is_empty().then(|| values.get(index * self.columns + start..)).flatten()
    }

    /// Whether it is f32 in order and on whole words.
    fn is_plain(&self) -> bool {
        self.plain_values(0, 0).is_some()
    }

    /// Whether it can be multiplied in f16. The first time all of it is read; of bf16 in 12 bits it was asked before.
    pub fn is_small(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.small.is_some_and(|small| match self.format {
            Format::Bf12 => small.get() == Some(&true),
            format => *small.get_or_init(|| halves::all_small(self.bytes, format, self.columns)),
        });
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Asks for the memory of some values (first, count) of some rows (first, count), which are read soon: for shares `share` of `of` of the rows.
    /// Asked for while others are multiplied, they are there when they are packed; a processor's own foresight ends with a page.
    pub fn expect(&self, (first, count): (usize, usize), (start, values): (usize, usize), share: Range<usize>, of: usize) {
        let bytes = |values: usize| values / self.format.block() * self.format.block_bytes();
        for row in count * share.start / of..count * share.end / of {
            expect_bytes(&self.row(first + row)[bytes(start)..][..bytes(values)]);
        }
    }
}

/// Asks for memory in the second-level cache, where there is a way to.
fn expect_bytes(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// left (m, k) * right (k, n) -> (m, n).
pub fn product((m, k, n): (usize, usize, usize), left: Left, right: Right, precision: Precision) -> Vec<f32> {
    products((m, k), left, &[(right, n)], precision).remove(0)
}

/// left (m, k) * each of `rights` (k, n) -> (m, n), in one round of work.
pub fn products(size: (usize, usize), left: Left, rights: &[(Right, usize)], precision: Precision) -> Vec<Vec<f32>> {
    products_at(Level::best(), size, left, rights, precision)
}

/// left (m, k) * right (k, n), added to what is in `out`.
pub fn add_product((m, k, n): (usize, usize, usize), left: Left, right: Right, precision: Precision, out: &mut [f32]) {
    assert!(out.len() == m * n);
    if k > 0 {
        let out = Out(out.as_mut_ptr());
        // SAFETY: the output has the product's size.
        unsafe { run(Level::best(), (m, k), left, &[(right, n, out)], (precision, Before::Kept)) };
    }
}

fn products_at(level: Level, (m, k): (usize, usize), left: Left, rights: &[(Right, usize)], precision: Precision) -> Vec<Vec<f32>> {
    if k == 0 {
        return rights.iter().map(|(_, n)| vec![0.0; m * n]).collect();
    }
    let mut outs: Vec<Vec<f32>> = rights.iter().map(|(_, n)| Vec::with_capacity(m * n)).collect();
    let places: Vec<_> = rights.iter().zip(&mut outs).map(|((right, n), out)| (*right, *n, Out(out.as_mut_ptr()))).collect();
    // SAFETY: the outputs have room for the products; the first block of the inner axis writes all of them and reads nothing.
    unsafe {
        run(level, (m, k), left, &places, (precision, Before::Replaced));
        outs.iter_mut().zip(rights).for_each(|(out, (_, n))| out.set_len(m * n));
    }
    outs
}

/// What becomes of the values in the output.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Replaced,
    Kept,
}

/// What words the factors become: `along` says whether the left factor's rows lie along the inner axis.
fn kind<'a>(level: Level, precision: Precision, along: bool, mut rights: impl Iterator<Item = &'a Right<'a>>) -> Kind {
    match (level, precision) {
        #[cfg(target_arch = "x86_64")]
        (level, Precision::Int16) if level != Level::Plain && shorts::available() && rights.all(Right::is_plain) => Kind::Shorts,
        (_, Precision::F32 | Precision::Int16) => Kind::Value,
        (Level::Avx512Bf16, _) => Kind::Pair,
        (Level::Avx512Half, _) if along && rights.all(Right::is_small) => Kind::Halves,
        _ => Kind::Value,
    }
}

/// # Safety
/// Each output has m n values, which may be unwritten where they are replaced.
unsafe fn run(level: Level, (m, k): (usize, usize), left: Left, rights: &[(Right, usize, Out)], (precision, before): (Precision, Before)) {
    let along = left.column == 1;
    let kind = match kind(level, precision, along, rights.iter().map(|(right, ..)| right)) {
        Kind::Pair if along && k >= STANDING_FROM * m && rights.iter().all(|(right, ..)| right.turned) => Kind::Standing,
        kind => kind,
    };
    let words = Words { kind, level };
    let packed = PackedLeft::new(left, (m, k), words);
    let threads = rayon::current_num_threads();
    let group = GROUP * WIDTH / words.columns().min(WIDTH);
    let all: usize = rights.iter().map(|(_, n, _)| n.div_ceil(words.columns())).sum();
    // as many groups as there are, and a few for each core: all of nearly one size
    let in_all = all.div_ceil(group).max(PIECES * threads).min(all);
    // task, first and last strip of each piece of work
    let mut pieces = Vec::new();
    for (right, n, out) in rights {
        let strips = n.div_ceil(words.columns());
        let count = strips.div_ceil(group).max((PIECES * threads * strips).div_ceil(all.max(1))).min(strips);
        for rows in row_parts(m, in_all, threads, packed.tile) {
            let task = Task { size: (m, k, *n), rows, factor: Factor { right: *right, words }, packed: &packed, before, out: *out };
            pieces.extend((0..count).map(|piece| (task, piece * strips / count, (piece + 1) * strips / count)));
        }
    }
    let work = |(task, first, last): &(Task, usize, usize)| {
        // taken, so that nothing else that runs on this thread meanwhile has it too
        let mut scratch = SCRATCH.take();
        match kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Standing => task.standing(*first, last - first, &mut scratch),
            _ => task.group(*first, last - first, &mut scratch),
        }
        SCRATCH.set(scratch);
    };
    if m * k * rights.iter().map(|(_, n, _)| n).sum::<usize>() < PARALLEL_FROM {
        pieces.iter().for_each(work);
    } else {
        pieces.par_iter().for_each(work);
    }
}

/// First and last row of each part of `m` rows: one part where there are pieces of work enough for the threads (and not too many rows), else as many
/// as make them so.
fn row_parts(m: usize, pieces: usize, threads: usize, tile: usize) -> impl Iterator<Item = (usize, usize)> {
    // a part packs its strips for itself: it has rows enough to be worth it
    let parts = if pieces < 2 * threads { (4 * threads / pieces.max(1)).min(m / (4 * tile)).max(1) } else { 1 };
    let parts = parts.max(m.div_ceil(PART_ROWS));
    let rows = m.div_ceil(parts).next_multiple_of(tile);
    (0..m).step_by(rows.max(1)).map(move |first| (first, m.min(first + rows)))
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Added<'a> {
    Nothing,
    /// What is in its place.
    Own,
    /// Rows so far apart.
    To(&'a [f32], usize),
}

impl Added<'_> {
    /// The first value of (m, n), and how far its rows lie apart, for an output whose rows lie `stride` apart.
    fn before(self, out: *const f32, (m, n): (usize, usize), stride: usize) -> Option<(*const f32, usize)> {
        match self {
            Added::Nothing => None,
            Added::Own => Some((out, stride)),
            Added::To(values, stride) => {
                assert!(values.len() >= (m - 1) * stride + n, "what the product is added to has its size");
                Some((values.as_ptr(), stride))
            }
        }
    }
}

/// An output, of which each task writes rows and columns of its own.
#[derive(Clone, Copy)]
pub struct Out(pub *mut f32);
// SAFETY: tasks write to places of their own and read nothing else.
unsafe impl Sync for Out {}

/// Blocks of the inner axis: first value and number of values.
fn blocks(k: usize, words: Words) -> impl Iterator<Item = (usize, usize)> {
    let depth = if words.pairs() { 2 * DEPTH } else { DEPTH };
    (0..k).step_by(depth).map(move |start| (start, depth.min(k - start)))
}

/// The whole left factor in tiles, in the first of its words: for each block of the inner axis, each tile's words one after the other.
struct PackedLeft {
    words: Vec<u32>,
    /// Words before a block, for each block.
    starts: Vec<usize>,
    tile: usize,
    rows: usize,
}

impl PackedLeft {
    fn new(left: Left, (m, k): (usize, usize), words: Words) -> Self {
        let (tile, m, pack_tile): (_, _, fn(_, _, _, _, &mut _)) = match words.kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Standing => (standing::PANEL, m.next_multiple_of(LANES), pack_panel),
            _ => (words.level.rows(), m, pack_tile),
        };
        let mut starts = vec![0];
        for (_, count) in blocks(k, words) {
            starts.push(starts[starts.len() - 1] + words.of_left(count) * m);
        }
        let pack = |mut rest: &mut [MaybeUninit<u32>], ready: fn(&mut [MaybeUninit<u32>]) -> &mut [u32]| {
            for (start, count) in blocks(k, words) {
                let (block, after) = rest.split_at_mut(words.of_left(count) * m);
                rest = after;
                let work = |(index, out): (usize, &mut [_])| pack_tile(left, index * tile, (start, count), words, ready(out));
                if m * count < PARALLEL_FROM / 8 {
                    block.chunks_mut(tile * words.of_left(count)).enumerate().for_each(work);
                } else {
                    block.par_chunks_mut(tile * words.of_left(count)).enumerate().for_each(work);
                }
            }
        };
        let count = starts[starts.len() - 1];
        let packed = if count > LEFT_KEPT {
            // SAFETY: the tiles of all blocks are all there is.
            unsafe { written(count, |words| pack(words, cleared)) }
        } else {
            let mut packed = LEFT.take();
            if packed.len() < count {
                packed = vec![0; count];
            }
            // SAFETY: only words are written to it.
            let words = unsafe { rewritten(&mut packed[..count]) };
            // SAFETY: they were words.
            pack(words, |words| unsafe { words.assume_init_mut() });
            packed
        };
        PackedLeft { words: packed, starts, tile, rows: m }
    }

    fn tile(&self, block: usize, first: usize) -> &[u32] {
        let words = (self.starts[block + 1] - self.starts[block]) / self.rows.max(1);
        let rows = self.tile.min(self.rows - first);
        &self.words[self.starts[block] + first * words..][..rows * words]
    }
}

impl Drop for PackedLeft {
    fn drop(&mut self) {
        if self.starts.last().is_some_and(|&count| count <= LEFT_KEPT) {
            LEFT.set(std::mem::take(&mut self.words));
        }
    }
}

/// Room for the words and the values of some rows while they are packed.
type Lines<'a> = (&'a mut Vec<u32>, &'a mut Vec<f32>);

thread_local! {
    /// What the thread's last left factor was packed in.
    static LEFT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// A thread's own: fresh memory would be cleared for each product. Strips take half a megabyte, sums eight at most.
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch { strips: Vec::new(), lanes: Vec::new(), values: Vec::new(), sums: Vec::new() }) };
}

#[derive(Default)]
struct Scratch {
    strips: Vec<u32>,
    lanes: Vec<u32>,
    values: Vec<f32>,
    /// The tiles' sums between two blocks of the inner axis.
    sums: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Task<'a> {
    size: (usize, usize, usize),
    /// First and last of the rows that it multiplies.
    rows: (usize, usize),
    factor: Factor<'a>,
    packed: &'a PackedLeft,
    before: Before,
    out: Out,
}

impl Task<'_> {
    /// What is read next, after these columns of a block so deep: columns and part of the inner axis. `span`: the next block.
    fn next(&self, (first, columns): (usize, usize), depth: usize, span: Option<(usize, usize)>) -> ((usize, usize), (usize, usize)) {
        match span {
            Some(span) => ((first, columns), span),
            None => ((first + columns, columns.min(self.size.2 - first - columns)), (0, depth)),
        }
    }

    /// Multiplies `count` strips of [`WIDTH`] columns from strip `first` on, or as many as there are.
    fn group(&self, first: usize, count: usize, scratch: &mut Scratch) {
        let Factor { right, words } = self.factor;
        let width = words.columns();
        let ((_, k, n), (top, bottom), first) = (self.size, self.rows, first * width);
        let columns = (count * width).min(n - first);
        let (tile, count) = (self.packed.tile, columns.div_ceil(width));
        // one tile's after the other: in the output a tile's rows lie pages apart, mostly in the same places of a cache
        let kept = if blocks(k, words).count() > 1 { (bottom - top).div_ceil(tile) * count * tile * width } else { 0 };
        let sums = as_values(aligned(&mut scratch.sums, kept));
        let mut spans = blocks(k, words).enumerate().peekable();
        while let Some((block, span)) = spans.next() {
            let next = self.next((first, columns), span.1, spans.peek().map(|&(_, span)| span));
            let (rows, along) = if right.turned { next } else { (next.1, next.0) };
            let last = spans.peek().is_none();
            let tiles = (bottom - top).div_ceil(tile) * count;
            let mut shares = 0..tiles;
            let length = words.of(span.1);
            let strips = aligned(&mut scratch.strips, count * length * WIDTH);
            let lines = (&mut scratch.lanes, &mut scratch.values);
            self.factor.pack((first, columns), span, strips, lines);
            for row in (top..bottom).step_by(tile) {
                let height = tile.min(bottom - row);
                for (index, strip) in strips.chunks_exact(length * WIDTH).enumerate() {
                    let (first, columns) = (first + index * width, width.min(columns - index * width));
                    let strip = Strip { words: strip, stride: WIDTH };
                    shares.next().into_iter().for_each(|share| right.expect(rows, along, share..share + 1, tiles));
                    // SAFETY: row and column lie inside (m, n); these rows of these columns are this task's. Of several blocks of the inner
                    // axis the sums have room for every tile.
                    unsafe {
                        let out = (self.out.0.add(row * n + first), n);
                        let between = (sums.as_mut_ptr().wrapping_add(((row - top) / tile * count + index) * tile * width), width);
                        let kept = (self.before == Before::Kept).then_some(out);
                        let before = if block > 0 { Some(between) } else { kept }.map(|(start, stride)| (start.cast_const(), stride));
                        let (start, stride) = if last { out } else { between };
                        let place = Place { start, stride, rows: height, columns, before };
                        multiply(words, self.packed.tile(block, row), strip, length, place);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
