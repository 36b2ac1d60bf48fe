//! CIDEr (Vedantam et al., 2015): the paper's, and CIDEr-D, which is what pycocoevalcap's `Cider` computes (peers.md c.3).

use std::hash::Hash;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::bleu::Words;

const SIGMA: f64 = 6.0;

type Vector<'a, T> = FxHashMap<&'a [T], f64>;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cider {
    /// Cosine of the weighted grams.
    Paper,
    /// Grams count no more often than the reference has them; a Gaussian punishes other lengths. pycocoevalcap reports it as "CIDEr".
    D,
}

impl Cider {
    /// One value a pair, 10 at most; document frequencies are the references'.
    pub fn score<T: Eq + Hash + Sync>(self, pairs: &[Words<T>]) -> Vec<f64> {
        let mut frequency: FxHashMap<&[T], f64> = FxHashMap::default();
        for (_, reference) in pairs {
            let grams: FxHashSet<&[T]> = (1..=4).flat_map(|n| reference.windows(n)).collect();
            grams.into_iter().for_each(|gram| *frequency.entry(gram).or_insert(0.0) += 1.0);
        }
        let documents = (pairs.len() as f64).ln();
        let score = |(hypothesis, reference): &Words<T>| {
            let (own, other) = (weigh(hypothesis, &frequency, documents), weigh(reference, &frequency, documents));
            let similar: f64 = own.iter().zip(&other).map(|(a, b)| self.similarity(a, b)).sum();
            10.0 * similar * self.penalty(hypothesis.len(), reference.len()) / 4.0
        };
        pairs.par_iter().map(score).collect()
    }

    fn similarity<T: Eq + Hash>(self, hypothesis: &Vector<T>, reference: &Vector<T>) -> f64 {
        let clipped = |own: f64, other: f64| if self == Cider::D { own.min(other) } else { own };
        let dot: f64 = hypothesis.iter().map(|(gram, own)| reference.get(gram).map_or(0.0, |other| clipped(*own, *other) * other)).sum();
        let norm = |vector: &Vector<T>| vector.values().map(|value| value * value).sum::<f64>().sqrt();
        let norms = norm(hypothesis) * norm(reference);
        if norms == 0.0 { dot } else { dot / norms }
    }

    /// pycocoevalcap's length is the number of bigrams.
    fn penalty(self, hypothesis: usize, reference: usize) -> f64 {
        let delta = hypothesis.saturating_sub(1) as f64 - reference.saturating_sub(1) as f64;
        if self == Cider::D { (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp() } else { 1.0 }
    }
}

/// Counts of orders 1 to 4, weighted by how rare a gram is among the references.
fn weigh<'a, T: Eq + Hash>(words: &'a [T], frequency: &FxHashMap<&[T], f64>, documents: f64) -> [Vector<'a, T>; 4] {
    [1, 2, 3, 4].map(|n| {
        let mut vector: Vector<T> = FxHashMap::default();
        words.windows(n).for_each(|gram| *vector.entry(gram).or_insert(0.0) += 1.0);
        vector.iter_mut().for_each(|(gram, count)| *count *= documents - frequency.get(gram).copied().unwrap_or(0.0).max(1.0).ln());
        vector
    })
}
