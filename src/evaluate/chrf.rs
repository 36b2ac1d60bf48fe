//! chrF2 (Popović, 2015) as sacrebleu computes it: grams of one to six characters without blanks, beta 2, orders that a text lacks left out.

use rustc_hash::FxHashMap;

const ORDERS: usize = 6;
const BETA: f64 = 2.0;

/// Grams of the hypothesis, of the reference, and those that match, by order; the counts of a corpus are the sums of its pairs'.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ChrfCounts([[f64; 3]; ORDERS]);

impl ChrfCounts {
    /// Counts of one pair.
    pub fn of(hypothesis: &str, reference: &str) -> Self {
        let [hypothesis, reference] =
            [hypothesis, reference].map(|text| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>());
        let mut counts = ChrfCounts::default();
        for (n, order) in (1..).zip(&mut counts.0) {
            let sizes = [&hypothesis, &reference].map(|text| (text.len() + 1).saturating_sub(n) as f64);
            let mut free: FxHashMap<u128, u32> = FxHashMap::default();
            reference.windows(n).for_each(|gram| *free.entry(packed(gram)).or_insert(0) += 1);
            let mut taken = |gram| free.get_mut(&packed(gram)).filter(|free| **free > 0).map(|free| *free -= 1).is_some();
            let matched = hypothesis.windows(n).filter(|gram| taken(gram)).count() as f64;
            // hits do not count where the reference has no gram of this order
            *order = [if sizes[1] > 0.0 { sizes[0] } else { 0.0 }, sizes[1], matched];
        }
        counts
    }

    /// The sum of counts.
    pub fn add(&mut self, other: &ChrfCounts) {
        self.0.iter_mut().flatten().zip(other.0.iter().flatten()).for_each(|(own, other)| *own += other);
    }

    /// The F-measure of mean precision and mean recall, from 0 to 1 (sacrebleu prints a hundred times it).
    pub fn score(&self) -> f64 {
        let present: Vec<&[f64; 3]> = self.0.iter().filter(|[own, other, _]| *own > 0.0 && *other > 0.0).collect();
        let mean = |side: usize| present.iter().map(|order| order[2] / order[side]).sum::<f64>() / present.len().max(1) as f64;
        let (precision, recall, factor) = (mean(0), mean(1), BETA * BETA);
        if precision + recall == 0.0 { 0.0 } else { (1.0 + factor) * precision * recall / (factor * precision + recall) }
    }
}

/// Six characters of 21 bits each.
fn packed(gram: &[char]) -> u128 {
    gram.iter().fold(0, |packed, c| packed << 21 | u128::from(u32::from(*c)))
}
