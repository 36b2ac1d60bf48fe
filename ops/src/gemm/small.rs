//! Products on one core of factors that fit the second-level cache, for use inside a piece of work.

use std::borrow::Cow;
use std::cell::Cell;

use super::pack::{Kind, Words, aligned, as_words, pack_tile, turn, words_of};
use super::tile::{Level, Place, Strip, WIDTH, multiply};
use super::{Added, Left};

/// Whether the processor's fastest products are of pairs of bf16.
pub fn multiplies_pairs() -> bool {
    Level::best() == Level::Avx512Bf16
}

fn of_pairs() -> Words {
    assert!(multiplies_pairs(), "pairs need a processor that multiplies them");
    Words { kind: Kind::Pair, level: Level::best() }
}

/// The right factor (k, n).
pub enum SmallRight<'a> {
    /// f32.
    Values(Cow<'a, [f32]>),
    /// Two neighbours on the inner axis in a word, rounded to bf16.
    Pairs(Vec<u32>),
}

impl SmallRight<'_> {
    /// The rows (n, k), `stride` apart, as (k, n), where n takes `width`; in pairs only where [`multiplies_pairs`].
    pub fn turned((values, stride): (&[f32], usize), (n, k): (usize, usize), width: usize, pairs: bool) -> Self {
        if !pairs {
            let mut turned = vec![0.0; k * width];
            turn(Words { kind: Kind::Value, level: Level::best() }, (values, stride), (n, k), width, words_of(&mut turned));
            return SmallRight::Values(turned.into());
        }
        let mut words = vec![0; k.div_ceil(2) * width];
        turn(of_pairs(), (values, stride), (n, k), width, &mut words);
        SmallRight::Pairs(words)
    }

    /// The rows (k, n), `stride` apart, in pairs, where n takes `width`: only where [`multiplies_pairs`].
    pub fn paired((values, stride): (&[f32], usize), (k, n): (usize, usize), width: usize) -> Self {
        let mut words = vec![0; k.div_ceil(2) * width];
        of_pairs().rows_of(values, stride, (n, k), width, &mut words);
        SmallRight::Pairs(words)
    }

    fn words(&self) -> (&[u32], Kind) {
        match self {
            SmallRight::Values(values) => (as_words(values), Kind::Value),
            SmallRight::Pairs(words) => (words, Kind::Pair),
        }
    }

    /// Its f32, unless it is in pairs.
    pub fn values(&self) -> Option<&[f32]> {
        match self {
            SmallRight::Values(values) => Some(values),
            SmallRight::Pairs(_) => None,
        }
    }
}

thread_local! {
    /// The thread's own, for a tile of the left factor.
    static PANEL: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// left (m, k) * right (k, n), added to what `added` says and written to `out` (m, n), with the right factor read where it lies: rows of it (of
/// words) and of the output lie `stride` apart. False where the processor has no such tiles.
pub fn small_product(
    (m, k, n): (usize, usize, usize),
    left: Left,
    right: &SmallRight,
    stride: usize,
    out: &mut [f32],
    added: Added,
) -> bool {
    let level = Level::best();
    if level == Level::Plain {
        return false;
    }
    let end = (m - 1) * stride + n;
    assert!(n <= stride && out.len() >= end, "the product lies in the output");
    let before = added.before(out.as_ptr(), (m, n), stride);
    let (right, kind) = right.words();
    let words = Words { kind, level };
    let length = words.of(k);
    let mut room = PANEL.take();
    for row in (0..m).step_by(level.rows()) {
        let rows = level.rows().min(m - row);
        let panel = aligned(&mut room, rows * length);
        pack_tile(left, row, (0, k), words, panel);
        for first in (0..n).step_by(WIDTH) {
            let strip = Strip { words: &right[first..], stride };
            // SAFETY: row and column lie inside (m, n), which lies in the output and in what it is added to; there are pairs only where the
            // processor multiplies them.
            unsafe {
                let start = out.as_mut_ptr().add(row * stride + first);
                let before = before.map(|(values, stride)| (values.add(row * stride + first), stride));
                multiply(words, panel, strip, length, Place { start, stride, rows, columns: WIDTH.min(n - first), before });
            }
        }
    }
    PANEL.set(room);
    true
}
