//! Dropout from a generator that can be seeded, with the same values kept wherever it is computed.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::cpu::{PIECE, Values, fused, made_in_pieces, values};
use crate::transfers;

/// Zeroes each value with probability `p` and scales the rest by 1 / (1 - p). Any shape; `p` in [0, 1).
pub fn dropout(x: &Tensor, p: f64, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    if p <= 0.0 {
        return Ok(x.clone());
    }
    let draw = Draw::take(x.elem_count(), p, rng);
    if fused(&[x]) {
        return x.contiguous()?.apply_op1(Dropout(draw.mask()));
    }
    or_cuda!(crate::cuda::dropout(x, &draw));
    let mask = draw.mask();
    let keep: Vec<u8> = (0..x.elem_count()).map(|i| u8::from(mask.keeps(i))).collect();
    x * (transfers::upload(keep, x.shape(), x.device())?.to_dtype(x.dtype())? * f64::from(mask.scale))?
}

/// Words of a block of ChaCha.
pub(crate) const BLOCK: usize = 16;

/// What decides about `count` values: a word each of a generator that is counted, so that any part of them can be drawn by itself.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    pub seed: [u8; 32],
    pub stream: u64,
    /// Where its words begin.
    pub block: u64,
    /// A value is dropped whose word is below this.
    pub threshold: u32,
    pub scale: f32,
    count: usize,
}

impl Draw {
    /// The generator's next words, from a whole block on.
    fn take(count: usize, p: f64, rng: &mut ChaCha8Rng) -> Self {
        let block = rng.get_word_pos().div_ceil(BLOCK as u128);
        rng.set_word_pos((block + count.div_ceil(BLOCK) as u128) * BLOCK as u128);
        let threshold = (p * 2f64.powi(32)).round() as u32;
        Draw { seed: rng.get_seed(), stream: rng.get_stream(), block: block as u64, threshold, scale: (1.0 / (1.0 - p)) as f32, count }
    }

    fn mask(&self) -> DropoutMask {
        /// Values of one piece of work.
        const TOGETHER: usize = 1 << 16;
        let mut keep = vec![0; self.count.div_ceil(64)];
        keep.par_chunks_mut(TOGETHER / 64).enumerate().for_each(|(piece, keep)| {
            let mut rng = ChaCha8Rng::from_seed(self.seed);
            rng.set_stream(self.stream);
            rng.set_word_pos(u128::from(self.block) * BLOCK as u128 + (piece * TOGETHER) as u128);
            let mut words = [0u32; 64];
            for keep in keep {
                rng.fill(&mut words);
                *keep = words.iter().enumerate().fold(0, |bits, (i, word)| bits | u64::from(*word >= self.threshold) << i);
            }
        });
        DropoutMask { keep, scale: self.scale }
    }
}

/// Which values a dropout keeps, and what it multiplies them by.
#[derive(Debug, Clone)]
pub struct DropoutMask {
    /// A bit a value.
    keep: Vec<u64>,
    scale: f32,
}

impl DropoutMask {
    /// Of `count` values, each dropped with probability `p` in [0, 1), those that [`dropout`] would drop of as many.
    pub fn draw(count: usize, p: f64, rng: &mut ChaCha8Rng) -> Self {
        Draw::take(count, p, rng).mask()
    }

    fn keeps(&self, i: usize) -> bool {
        self.keep[i / 64] >> (i % 64) & 1 == 1
    }

    /// The values that are kept, scaled, and zeros. x: as many values as were drawn, or fewer.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        made_in_pieces(x.len(), PIECE, |i, y| {
            for ((y, x), keep) in y.chunks_mut(64).zip(x[i * PIECE..].chunks(64)).zip(&self.keep[i * PIECE / 64..]) {
                for (bit, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                    *y = if keep >> bit & 1 == 1 { x * self.scale } else { 0.0 };
                }
            }
        })
    }
}

struct Dropout(DropoutMask);

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.0.apply(values(x, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        Ok(Some(Tensor::from_vec(self.0.apply(&Values::of(&grad)?), x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One word a value, from the next whole block of the generator on, whatever was drawn of it before and however many cores draw.
    #[test]
    fn a_mask_is_the_generators_words_in_their_order() {
        for (before, count) in [(0, 5), (3, 64), (16, 1000), (17, 140_000)] {
            let fresh = || {
                let mut rng = ChaCha8Rng::seed_from_u64(11);
                rng.set_stream(7);
                (0..before).for_each(|_| _ = rng.random::<u32>());
                rng
            };
            let (mut rng, mut words) = (fresh(), fresh());
            let mask = DropoutMask::draw(count, 0.3, &mut rng);
            words.set_word_pos(words.get_word_pos().div_ceil(16) * 16);
            let expected: Vec<bool> = (0..count).map(|_| f64::from(words.random::<u32>()) >= 0.3 * 2f64.powi(32)).collect();
            assert_eq!((0..count).map(|i| mask.keeps(i)).collect::<Vec<_>>(), expected);
            assert_eq!(rng.get_word_pos(), words.get_word_pos().div_ceil(16) * 16);
        }
    }
}
