//! BLEU-1 to 4 (Papineni et al., 2002) by pycocoevalcap's formulas (peers.md c.3).

use std::collections::HashMap;

/// Corpus and per-item values of orders 1 to 4.
#[derive(Debug, Clone, PartialEq)]
pub struct Bleu {
    /// From the corpus's summed counts.
    pub corpus: [f64; 4],
    /// From each pair's own counts.
    pub per_item: Vec<[f64; 4]>,
}

const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

#[derive(Default, Clone, Copy)]
struct Totals {
    hypothesis: f64,
    reference: f64,
    guess: [f64; 4],
    correct: [f64; 4],
}

impl Totals {
    fn of(hypothesis: &[String], reference: &[String]) -> Self {
        let mut totals = Totals { hypothesis: hypothesis.len() as f64, reference: reference.len() as f64, ..Totals::default() };
        for n in 1..=4 {
            let (own, other) = (counts(hypothesis, n), counts(reference, n));
            totals.guess[n - 1] = (hypothesis.len() + 1).saturating_sub(n) as f64;
            totals.correct[n - 1] = own.iter().map(|(gram, count)| (*count).min(other.get(gram).copied().unwrap_or(0)) as f64).sum();
        }
        totals
    }

    fn add(&mut self, other: &Totals) {
        self.hypothesis += other.hypothesis;
        self.reference += other.reference;
        for n in 0..4 {
            self.guess[n] += other.guess[n];
            self.correct[n] += other.correct[n];
        }
    }

    fn scores(&self) -> [f64; 4] {
        let ratio = (self.hypothesis + TINY) / (self.reference + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        [0, 1, 2, 3].map(|n| {
            product *= (self.correct[n] + TINY) / (self.guess[n] + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }
}

fn counts(tokens: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    tokens.windows(n).for_each(|gram| *counts.entry(gram).or_insert(0) += 1);
    counts
}

/// BLEU of pairs (hypothesis, reference).
pub fn bleu(pairs: &[(Vec<String>, Vec<String>)]) -> Bleu {
    let items: Vec<Totals> = pairs.iter().map(|(hypothesis, reference)| Totals::of(hypothesis, reference)).collect();
    let mut total = Totals::default();
    items.iter().for_each(|item| total.add(item));
    Bleu { corpus: total.scores(), per_item: items.iter().map(Totals::scores).collect() }
}
