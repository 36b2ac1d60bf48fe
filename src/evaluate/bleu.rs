//! BLEU-1 to 4 (Papineni et al., 2002): of a corpus by pycocoevalcap's formulas (peers.md c.3), of a sentence by NLTK's smoothings.

use std::hash::Hash;

use rayon::prelude::*;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// A pair's words: (hypothesis, reference).
pub type Words<T> = (Vec<T>, Vec<T>);

/// What BLEU is computed from; the counts of a corpus are the sums of its pairs'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BleuCounts {
    /// Words of the hypothesis.
    pub hypothesis: f64,
    /// Words of the reference.
    pub reference: f64,
    /// The hypothesis's grams of orders 1 to 4.
    pub guess: [f64; 4],
    /// Those of them that the reference has, no more often than it has them.
    pub correct: [f64; 4],
}

/// Corpus and per-item values of orders 1 to 4.
#[derive(Debug, Clone, PartialEq)]
pub struct Bleu {
    /// From the corpus's summed counts.
    pub corpus: [f64; 4],
    /// From each pair's own counts.
    pub per_item: Vec<[f64; 4]>,
}

/// How NLTK smooths a sentence's precisions (Chen and Cherry, 2014).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Smoothing {
    /// `method1`: no match counts as 0.1.
    Method1,
    /// `method2`: one more match and one more gram from order 2 on.
    Method2,
    /// `method4`: no match counts as less the longer the text and the more orders have none.
    Method4,
}

impl BleuCounts {
    /// Counts of one pair.
    pub fn of<T: Eq + Hash>(hypothesis: &[T], reference: &[T]) -> Self {
        let mut counts = BleuCounts { hypothesis: hypothesis.len() as f64, reference: reference.len() as f64, ..BleuCounts::default() };
        for n in 1..=4 {
            let mut free = grams(reference, n);
            let mut taken = |gram: &[T]| free.get_mut(gram).filter(|free| **free > 0).map(|free| *free -= 1).is_some();
            counts.correct[n - 1] = hypothesis.windows(n).filter(|gram| taken(gram)).count() as f64;
            counts.guess[n - 1] = (hypothesis.len() + 1).saturating_sub(n) as f64;
        }
        counts
    }

    /// The sum of counts.
    pub fn add(&mut self, other: &BleuCounts) {
        self.hypothesis += other.hypothesis;
        self.reference += other.reference;
        for n in 0..4 {
            self.guess[n] += other.guess[n];
            self.correct[n] += other.correct[n];
        }
    }

    /// BLEU-1 to 4 as pycocoevalcap computes them.
    pub fn scores(&self) -> [f64; 4] {
        let ratio = (self.hypothesis + TINY) / (self.reference + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        [0, 1, 2, 3].map(|n| {
            product *= (self.correct[n] + TINY) / (self.guess[n] + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }

    /// BLEU-1 to 4 as NLTK's `sentence_bleu` with weights 1/n; 0 where no word matches.
    pub fn smoothed(&self, smoothing: Smoothing) -> [f64; 4] {
        if self.correct[0] == 0.0 {
            return [0.0; 4];
        }
        let brevity = if self.hypothesis > self.reference { 1.0 } else { (1.0 - self.reference / self.hypothesis).exp() };
        let precisions = self.precisions(smoothing);
        [1, 2, 3, 4].map(|n| {
            let logarithms: f64 = precisions[..n].iter().filter(|precision| **precision > 0.0).map(|precision| precision.ln()).sum();
            brevity * (logarithms / n as f64).exp()
        })
    }

    fn precisions(&self, smoothing: Smoothing) -> [f64; 4] {
        let mut empty = 0;
        [0, 1, 2, 3].map(|n| {
            let (correct, guess) = (self.correct[n], self.guess[n].max(1.0));
            match smoothing {
                Smoothing::Method1 if correct == 0.0 => 0.1 / guess,
                Smoothing::Method2 if n > 0 => (correct + 1.0) / (guess + 1.0),
                Smoothing::Method4 if correct == 0.0 && self.hypothesis > 1.0 => {
                    empty += 1;
                    // NLTK's k is 5.
                    self.hypothesis.ln() / (2f64.powi(empty) * 5.0) / guess
                }
                _ => correct / guess,
            }
        })
    }
}

fn grams<T: Eq + Hash>(words: &[T], n: usize) -> FxHashMap<&[T], usize> {
    let mut counts = FxHashMap::default();
    words.windows(n).for_each(|gram| *counts.entry(gram).or_insert(0) += 1);
    counts
}

/// BLEU of pairs, by pycocoevalcap's formulas.
pub fn bleu<T: Eq + Hash + Sync>(pairs: &[Words<T>]) -> Bleu {
    let items: Vec<BleuCounts> = pairs.par_iter().map(|(hypothesis, reference)| BleuCounts::of(hypothesis, reference)).collect();
    let mut total = BleuCounts::default();
    items.iter().for_each(|item| total.add(item));
    Bleu { corpus: total.scores(), per_item: items.iter().map(BleuCounts::scores).collect() }
}
