//! Intervals and tests: the paired bootstrap over studies, the paired permutation test, Holm's correction.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::ledger::{Columns, Ledger};

/// Every score of every run in every bootstrap sample; the runs of a sample share its studies.
pub(super) struct Bootstrap {
    /// samples x runs x scores.
    samples: Vec<Vec<Vec<f64>>>,
}

impl Bootstrap {
    /// Draws `draws` samples of the studies with replacement.
    pub(super) fn new(ledgers: &[Ledger], columns: &Columns, draws: usize, seed: u64) -> Self {
        let studies = ledgers.first().map_or(0, |ledger| ledger.rows.len());
        let sample = |draw: usize| {
            let mut rng = stream(seed, draw);
            let mut times = vec![0.0; studies];
            (0..studies).for_each(|_| times[rng.random_range(0..studies)] += 1.0);
            ledgers.iter().map(|ledger| columns.values(&ledger.sums(times.iter().copied()))).collect()
        };
        Bootstrap { samples: (0..draws).into_par_iter().map(sample).collect() }
    }

    /// The 95% percentile interval of one run's score.
    pub(super) fn interval(&self, run: usize, score: usize) -> [f64; 2] {
        percentiles(self.samples.iter().map(|runs| runs[run][score]).collect())
    }

    /// The same of a run's score minus the first run's.
    pub(super) fn difference(&self, run: usize, score: usize) -> [f64; 2] {
        percentiles(self.samples.iter().map(|runs| runs[run][score] - runs[0][score]).collect())
    }
}

/// A random stream of its own for each draw, so that threads may share the work.
fn stream(seed: u64, draw: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(draw as u64);
    rng
}

/// The 2.5th and the 97.5th, interpolated between neighbours.
fn percentiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|share| {
        let place = share * (values.len() - 1) as f64;
        let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
        low + (high - low) * place.fract()
    })
}

/// Two-sided p of each score's difference between two runs of the same studies: how often it is as large where each study's two answers are
/// swapped by chance. p = (1 + as large) / (1 + permutations).
pub(super) fn permutation_test(first: &Ledger, run: &Ledger, columns: &Columns, (permutations, seed): (usize, u64)) -> Vec<f64> {
    let all = |ledger: &Ledger| ledger.sums(std::iter::repeat(1.0));
    let (own, other) = (all(first), all(run));
    let difference = |own: &[f64], other: &[f64]| -> Vec<f64> {
        columns.values(other).iter().zip(columns.values(own)).map(|(a, b)| (a - b).abs()).collect()
    };
    let observed = difference(&own, &other);
    let apart = Ledger {
        studies: Vec::new(),
        rows: first.rows.iter().zip(&run.rows).map(|(a, b)| b.iter().zip(a).map(|(b, a)| b - a).collect()).collect(),
    };
    let swapped = |draw: usize| -> Vec<u32> {
        let mut rng = stream(seed ^ 0x5eed, draw);
        let moved = apart.sums((0..apart.rows.len()).map(|_| f64::from(u8::from(rng.random::<bool>()))));
        let own: Vec<f64> = own.iter().zip(&moved).map(|(sum, moved)| sum + moved).collect();
        let other: Vec<f64> = other.iter().zip(&moved).map(|(sum, moved)| sum - moved).collect();
        // sums in another order differ in their last digits
        difference(&own, &other).iter().zip(&observed).map(|(found, observed)| u32::from(*found >= observed - 1e-12)).collect()
    };
    let zero = || vec![0; observed.len()];
    let add = |a: Vec<u32>, b: Vec<u32>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let counts = (0..permutations).into_par_iter().map(swapped).reduce(zero, add);
    counts.into_iter().map(|count| f64::from(1 + count) / (1 + permutations) as f64).collect()
}

/// Holm's step-down correction (1979): adjusted p of a family, in its order.
pub(super) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut largest) = (vec![0.0; p.len()], 0f64);
    for (rank, at) in order.into_iter().enumerate() {
        largest = largest.max(((p.len() - rank) as f64 * p[at]).min(1.0));
        adjusted[at] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holms_correction_is_that_of_a_worked_example() {
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") -> 0.03 0.06 0.06 0.02
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        assert!(adjusted.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{adjusted:?}");
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }

    #[test]
    fn percentiles_are_interpolated_between_neighbours() {
        // numpy.percentile(range(101), [2.5, 97.5])
        assert_eq!(percentiles((0..=100).map(f64::from).collect()), [2.5, 97.5]);
    }
}
