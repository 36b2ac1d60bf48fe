//! CIDEr (Vedantam et al., 2015) as pycocoevalcap's `Cider` computes it (the D-like variant; peers.md c.3).

use std::collections::{HashMap, HashSet};

const SIGMA: f64 = 6.0;

type Vector<'a> = HashMap<&'a [String], f64>;

/// One value a pair (hypothesis, reference); document frequencies are the references'.
pub fn cider(pairs: &[(Vec<String>, Vec<String>)]) -> Vec<f64> {
    let mut frequency: HashMap<&[String], f64> = HashMap::new();
    for (_, reference) in pairs {
        let grams: HashSet<&[String]> = (1..=4).flat_map(|n| reference.windows(n)).collect();
        grams.into_iter().for_each(|gram| *frequency.entry(gram).or_insert(0.0) += 1.0);
    }
    let documents = (pairs.len() as f64).ln();
    let score = |(hypothesis, reference): &(Vec<String>, Vec<String>)| {
        let (own, other) = (weigh(hypothesis, &frequency, documents), weigh(reference, &frequency, documents));
        let bigrams = |tokens: &Vec<String>| tokens.len().saturating_sub(1) as f64;
        let delta = bigrams(hypothesis) - bigrams(reference);
        let penalty = (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp();
        let similar: f64 = own.iter().zip(&other).map(|(a, b)| similarity(a, b) * penalty).sum();
        10.0 * similar / 4.0
    };
    pairs.iter().map(score).collect()
}

/// Counts of orders 1 to 4, weighted by how rare a gram is among the references.
fn weigh<'a>(tokens: &'a [String], frequency: &HashMap<&[String], f64>, documents: f64) -> [Vector<'a>; 4] {
    [1, 2, 3, 4].map(|n| {
        let mut vector = count(tokens, n);
        vector.iter_mut().for_each(|(gram, count)| *count *= documents - frequency.get(gram).copied().unwrap_or(0.0).max(1.0).ln());
        vector
    })
}

fn count(tokens: &[String], n: usize) -> Vector<'_> {
    let mut counts = HashMap::new();
    tokens.windows(n).for_each(|gram| *counts.entry(gram).or_insert(0.0) += 1.0);
    counts
}

fn similarity(hypothesis: &Vector, reference: &Vector) -> f64 {
    let dot: f64 = hypothesis.iter().map(|(gram, own)| reference.get(gram).map_or(0.0, |other| own.min(*other) * other)).sum();
    let norm = |vector: &Vector| vector.values().map(|value| value * value).sum::<f64>().sqrt();
    let norms = norm(hypothesis) * norm(reference);
    if norms == 0.0 { dot } else { dot / norms }
}
