//! What a checkpointed block keeps of its first run: the results of its costly operations, frozen products and attention, in bf16 where the
//! matrix multiplies so. Run again, the block takes them from here and computes only what is cheap: norms, rotations, activations.
//!
//! What would be kept in bf16 is rounded to it in every run, as PyTorch's bf16 layers round: that a result was kept or computed again changes no bit.
//! Where a run stands is the thread's own state: a product is reached through modules that know nothing of it.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::IntoIter;

use candle_core::Result;
use rayon::prelude::*;

use crate::cpu::{PIECE, cleared, for_pieces, made_in_pieces, written, written_in};
use crate::gemm::Precision;
use crate::matrix::widen;
use crate::simd::{MAGIC, largest_magnitude, vectorised};

/// One operation's result: f32, or bits of bf16.
pub enum Values {
    Whole(Vec<f32>),
    Narrow(Vec<u16>),
}

/// The results of a block's costly operations in their order.
#[derive(Default)]
pub struct Kept(Mutex<Vec<Values>>);

/// What the thread's running block does with costly results.
enum Run {
    /// First run: copies are kept.
    Keeping(Vec<Values>),
    /// First run: nothing is.
    Passing,
    /// Second run: kept ones are taken while there are any, then they are computed.
    Taking(IntoIter<Values>),
}

/// The running block, and the precision of its last product: attention's own values come from no matrix.
struct State {
    run: Run,
    precision: Precision,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// Puts the state of the block around this one back, after a panic too.
struct Restore(Option<State>);

impl Drop for Restore {
    fn drop(&mut self) {
        STATE.set(self.0.take());
    }
}

/// Runs `work` in the state `run`; what is left of the state.
fn within<T>(run: Run, work: impl FnOnce() -> T) -> (T, Option<Run>) {
    let _restore = Restore(STATE.replace(Some(State { run, precision: Precision::F32 })));
    let result = work();
    (result, STATE.take().map(|state| state.run))
}

impl Kept {
    /// Runs `work` for the first time, keeping its costly results.
    pub fn fill<T>(work: impl FnOnce() -> T) -> (T, Self) {
        match within(Run::Keeping(Vec::new()), work) {
            (result, Some(Run::Keeping(values))) => (result, Kept(Mutex::new(values))),
            (result, _) => (result, Kept::default()),
        }
    }

    /// Runs `work` for the first time, keeping nothing.
    pub fn nothing<T>(work: impl FnOnce() -> T) -> (T, Self) {
        (within(Run::Passing, work).0, Kept::default())
    }

    /// Runs `work` with what is kept, which is given up one by one; what is not there is computed.
    pub fn replay<T>(&self, work: impl FnOnce() -> T) -> T {
        let values = std::mem::take(&mut *self.0.lock().expect("no holder of the lock panics"));
        within(Run::Taking(values.into_iter()), work).0
    }
}

/// The values that `compute` makes in a matrix's `precision`, or those kept of it.
pub fn product(precision: Precision, compute: impl FnOnce() -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    STATE.with_borrow_mut(|state| state.iter_mut().for_each(|state| state.precision = precision));
    values(compute)
}

/// The values that `compute` makes in the precision of the product before it, or those kept of it.
pub fn values(compute: impl FnOnce() -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let taken = STATE.with_borrow_mut(|state| match state.as_mut().map(|state| &mut state.run) {
        Some(Run::Taking(values)) => values.next(),
        _ => None,
    });
    if let Some(taken) = taken {
        return Ok(taken.widened());
    }
    let mut values = compute()?;
    STATE.with_borrow_mut(|state| {
        let Some(State { run, precision }) = state else { return };
        let copy = match (&run, *precision) {
            (Run::Taking(_) | Run::Passing, Precision::F32 | Precision::Int16 | Precision::Int8) => return,
            (_, precision) => round_to(precision, &mut values),
        };
        if let Run::Keeping(kept) = run {
            kept.push(copy);
        }
    });
    Ok(values)
}

/// Whether the thread runs a block for the second time, for its gradient alone.
pub fn runs_again() -> bool {
    STATE.with_borrow(|state| matches!(state, Some(State { run: Run::Taking(_), .. })))
}

/// Rounds `values` to what is kept of them in `precision`, and gives it.
pub fn round_to(precision: Precision, values: &mut [f32]) -> Values {
    match precision {
        Precision::F32 | Precision::Int16 | Precision::Int8 => Values::Whole(values.to_vec()),
        Precision::Bf16 => Values::Narrow(narrowed(values)),
    }
}

/// Rounds `values` to what is kept of them in `precision`; gives it where they are to be kept.
pub fn rounded(precision: Precision, values: &mut [f32], keep: bool) -> Option<Values> {
    (keep || precision == Precision::Bf16).then(|| round_to(precision, values)).filter(|_| keep)
}

impl Values {
    /// The values as they were rounded.
    pub fn widened(self) -> Vec<f32> {
        match self {
            Values::Whole(values) => values,
            Values::Narrow(narrow) => made_in_pieces(narrow.len(), PIECE, |i, values| widen(&narrow[i * PIECE..][..values.len()], values)),
        }
    }
}

/// f32 of a grid, in half of its bytes: integers of 16 bits, a power of two for each [`Fine::BLOCK`] values.
#[derive(Default)]
pub struct Fine {
    words: Vec<i16>,
    /// Each block's power of two, as f32's bits have it.
    exponents: Vec<u8>,
}

impl Fine {
    const BLOCK: usize = 32;

    /// The nearest values of the grid: a value moves by at most 2^-15 of its block's largest. Blocks with values that are not finite stay as they are.
    pub fn round(values: &mut [f32]) {
        for_pieces(values, PIECE, |_, values| to_grid(values));
    }

    /// Room for `count` values.
    pub fn room(count: usize) -> Self {
        Fine { words: Vec::with_capacity(count), exponents: Vec::with_capacity(count.div_ceil(Self::BLOCK)) }
    }

    /// Values that all lie on the grid, in this place; `None` where one does not.
    pub fn hold(self, values: &[f32]) -> Option<Self> {
        let first = &values[..values.len().min(Self::BLOCK)];
        if !pack(first, &mut [0; Self::BLOCK][..first.len()], &mut [0]) {
            return None;
        }
        let Fine { words, mut exponents } = self;
        let exact = AtomicBool::new(true);
        let work = |i: usize, words: &mut [MaybeUninit<i16>], exponents: &mut [MaybeUninit<u8>]| {
            if !pack(&values[i * PIECE..][..words.len()], cleared(words), cleared(exponents)) {
                exact.store(false, Ordering::Relaxed);
            }
        };
        // SAFETY: the pieces, which are whole blocks but for the last one's, are all there is of both.
        let words = unsafe {
            written_in(words, values.len(), |words| {
                exponents = written_in(std::mem::take(&mut exponents), values.len().div_ceil(Self::BLOCK), |exponents| {
                    let pieces = words.par_chunks_mut(PIECE).zip(exponents.par_chunks_mut(PIECE / Self::BLOCK));
                    pieces.enumerate().for_each(|(i, (words, exponents))| work(i, words, exponents));
                });
            })
        };
        exact.into_inner().then_some(Fine { words, exponents })
    }

    /// The values.
    pub fn widened(&self) -> Vec<f32> {
        made_in_pieces(self.words.len(), PIECE, |i, values| {
            unpack(&self.words[i * PIECE..][..values.len()], &self.exponents[i * PIECE / Self::BLOCK..], values);
        })
    }
}

/// The power of two of a block whose largest magnitude this is: 2^-14 of the largest's own.
#[inline(always)]
fn exponent_of(largest: f32) -> u32 {
    (largest.to_bits() >> 23).max(15) - 14
}

/// The integer of a value in a block of this power of two.
#[inline(always)]
fn integer(value: f32, exponent: u32) -> f32 {
    let inverse = f32::from_bits((254 - exponent) << 23);
    ((value * inverse + MAGIC) - MAGIC).clamp(-32_767.0, 32_767.0)
}

vectorised! {
    fn to_grid(values: &mut [f32]) {
        for values in values.chunks_mut(Fine::BLOCK) {
            let largest = largest_magnitude(values);
            let (exponent, finite) = (exponent_of(largest), largest.is_finite());
            let scale = f32::from_bits(exponent << 23);
            for value in values {
                let rounded = integer(*value, exponent) * scale;
                *value = if finite { rounded } else { *value };
            }
        }
    }

    /// Whether all values lie on the grid, whose integers and powers of two are written.
    fn pack(values: &[f32], words: &mut [i16], exponents: &mut [u8]) -> bool {
        let mut differences = 0;
        for ((values, words), out) in values.chunks(Fine::BLOCK).zip(words.chunks_mut(Fine::BLOCK)).zip(exponents) {
            let exponent = exponent_of(largest_magnitude(values));
            let scale = f32::from_bits(exponent << 23);
            *out = exponent as u8;
            for (word, &value) in words.iter_mut().zip(values) {
                let integer = integer(value, exponent);
                *word = (integer + MAGIC).to_bits() as i16;
                differences |= (integer * scale).to_bits() ^ value.to_bits();
            }
        }
        differences == 0
    }

    fn unpack(words: &[i16], exponents: &[u8], values: &mut [f32]) {
        for ((words, values), &exponent) in words.chunks(Fine::BLOCK).zip(values.chunks_mut(Fine::BLOCK)).zip(exponents) {
            let scale = f32::from_bits(u32::from(exponent) << 23);
            for (value, &word) in values.iter_mut().zip(words) {
                *value = scale * f32::from(word);
            }
        }
    }
}

/// Rounds `values` to bf16, whose bits it returns.
fn narrowed(values: &mut [f32]) -> Vec<u16> {
    // SAFETY: every piece is cleared.
    unsafe {
        written(values.len(), |narrow| {
            narrow.par_chunks_mut(PIECE).zip(values.par_chunks_mut(PIECE)).for_each(|(narrow, values)| round(values, cleared(narrow)));
        })
    }
}

/// The nearest bf16, even where two are as near, in f32's bits; NaN stays NaN.
#[inline(always)]
pub fn nearest_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if value.is_nan() { bits | 0x40_0000 } else { nearest }) & 0xffff_0000
}

vectorised! {
    fn round(values: &mut [f32], out: &mut [u16]) {
        for (out, value) in out.iter_mut().zip(values) {
            let bits = nearest_bf16(*value);
            *out = (bits >> 16) as u16;
            *value = f32::from_bits(bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn values_are_rounded_to_the_nearest_bf16() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-40, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        let values: Vec<f32> = special.into_iter().chain((0..2000).map(|i| (i as f32 - 1000.0) * 0.012_345)).collect();
        let mut rounded = values.clone();
        let widened = Values::Narrow(narrowed(&mut rounded)).widened();
        for ((value, found), widened) in values.iter().zip(rounded).zip(widened) {
            let expected = bf16::from_f32(*value).to_f32();
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && value.is_nan(), "{value}: {found} for {expected}");
            assert_eq!(found.to_bits(), widened.to_bits());
        }
    }

    #[test]
    fn rounded_values_lie_on_the_grid_near_where_they_were_and_are_kept_to_the_bit() {
        let noise = |i: usize| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0;
        for count in [0, 1, 31, 32, 33, PIECE - 1, 3 * PIECE + 40] {
            // blocks of very different sizes, one of zeros, one that f32 hardly holds
            let size = |i: usize| match i / Fine::BLOCK % 11 {
                1 => 0.0,
                2 => 1e-38,
                other => 10f32.powi(other as i32 - 4),
            };
            let values: Vec<f32> = (0..count).map(|i| size(i) * noise(i)).collect();
            let mut rounded = values.clone();
            Fine::round(&mut rounded);
            let kept = Fine::default().hold(&rounded).expect("they are on the grid").widened();
            assert_eq!(bits(&kept), bits(&rounded));
            for (block, found) in values.chunks(Fine::BLOCK).zip(rounded.chunks(Fine::BLOCK)) {
                let largest = block.iter().fold(0f32, |a, b| a.max(b.abs()));
                for (value, found) in block.iter().zip(found) {
                    assert!((value - found).abs() <= largest / 32_768.0 || largest < 1e-33, "{value}: {found} beside {largest}");
                }
            }
            assert!(count < 31 || Fine::default().hold(&values).is_none(), "values beside the grid are not kept");
        }
        // just below a power of two: the integer would be 2^15
        let mut largest = [2.0 - f32::EPSILON, 0.1];
        Fine::round(&mut largest);
        assert_eq!(largest[0], 32_767.0 / 16_384.0);
        assert_eq!(bits(&Fine::default().hold(&largest).unwrap().widened()), bits(&largest));
        for broken in [f32::NAN, f32::INFINITY] {
            let mut values = [1.000_001, broken, 2.0];
            Fine::round(&mut values);
            assert!(values[0] == 1.000_001 && !values[1].is_finite() && Fine::default().hold(&values).is_none());
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn what_is_kept_is_taken_in_order_and_what_is_not_is_rounded_alike() {
        let inexact = 1.0 + f32::EPSILON;
        let block = |start: f32| {
            let exact = product(Precision::F32, || Ok(vec![start + f32::EPSILON])).unwrap();
            let narrow = product(Precision::Bf16, || Ok(vec![start + 2.0 * f32::EPSILON])).unwrap();
            [exact[0], narrow[0], values(|| Ok(vec![start + 4.0 * f32::EPSILON])).unwrap()[0]]
        };
        let (first, kept) = Kept::fill(|| block(1.0));
        assert_eq!(first, [inexact, 1.0, 1.0]);
        assert_eq!(kept.replay(|| block(7.0)), first);
        assert_eq!(kept.replay(|| block(7.0))[1..], [7.0, 7.0], "everything has been given up");
        assert_eq!(Kept::nothing(|| block(1.0)).0, first);
        assert_eq!(block(1.0)[1], 1.0 + 2.0 * f32::EPSILON, "outside of a block nothing is rounded");
    }
}
