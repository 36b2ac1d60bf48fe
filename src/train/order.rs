//! The order of studies: a permutation an epoch, a function of the seed and the position alone.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Which study comes at which position of a run; the same whether or not the run was interrupted.
#[derive(Debug, Clone)]
pub struct Order {
    count: usize,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// Of `count` studies.
    pub fn new(count: usize, seed: u64) -> Self {
        Order { count, seed, epoch: None }
    }

    /// The studies of step `step` of `batch` each.
    pub fn batch(&mut self, step: u64, batch: usize) -> Vec<usize> {
        (0..batch as u64).map(|index| self.at(step * batch as u64 + index)).collect()
    }

    /// Whole passes over the studies before step `step` of `batch` each.
    pub fn epoch(&self, step: u64, batch: usize) -> f64 {
        (step * batch as u64) as f64 / self.count.max(1) as f64
    }

    fn at(&mut self, position: u64) -> usize {
        let epoch = position / self.count as u64;
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            let mut order: Vec<usize> = (0..self.count).collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            self.epoch = Some((epoch, order));
        }
        let (_, order) = self.epoch.as_ref().expect("the epoch was just drawn");
        order[(position % self.count as u64) as usize]
    }
}

/// The generator of one study of one step: dropout, augmentation.
pub fn step_rng(seed: u64, step: u64, index: usize) -> ChaCha8Rng {
    let mixed = seed ^ step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (index as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
    ChaCha8Rng::seed_from_u64(mixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_study_once_and_a_later_start_sees_the_same() {
        let mut order = Order::new(7, 3);
        let whole: Vec<usize> = (0..5).flat_map(|step| order.batch(step, 3)).collect();
        let mut first = whole[..7].to_vec();
        first.sort_unstable();
        assert_eq!(first, (0..7).collect::<Vec<_>>());
        assert_ne!(whole[..7], whole[7..14]);
        assert_eq!(Order::new(7, 3).batch(3, 3), whole[9..12]);
    }
}
