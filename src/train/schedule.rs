//! Learning-rate schedules: linear warm-up, then cosine, linear or none.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine, to the floor.
    Cosine,
    /// A straight line, to the floor.
    Linear,
    /// None.
    Constant,
}

/// The learning rate over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The learning rate after warm-up.
    pub peak: f64,
    /// Steps of linear warm-up; the first step already learns.
    pub warmup_steps: u64,
    /// What follows.
    pub decay: Decay,
    /// The last step's rate as a share of the peak.
    pub floor: f64,
    /// Steps over which the decay runs, warm-up included; the reference's run ends before it does. Null: the run's own length.
    pub horizon_steps: Option<u64>,
}

impl Schedule {
    /// The learning rate of step `step` (from 0) of a run of `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let horizon = self.horizon_steps.unwrap_or(steps);
        let span = horizon.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
        let left = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Decay::Linear => 1.0 - done,
            Decay::Constant => 1.0,
        };
        self.peak * (self.floor + (1.0 - self.floor) * left)
    }

    /// Faults of these numbers, named by `key`.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if !(self.peak.is_finite() && self.peak > 0.0) {
            faults.push(format!("{key}.peak: {} is not a positive learning rate", self.peak));
        }
        if !(0.0..=1.0).contains(&self.floor) {
            faults.push(format!("{key}.floor: {} is not a share between 0 and 1", self.floor));
        }
        if self.horizon_steps.is_some_and(|horizon| horizon <= self.warmup_steps) {
            faults.push(format!("{key}.horizon_steps: must exceed warmup_steps {}", self.warmup_steps));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 2.0, warmup_steps: 4, decay, floor: 0.1, horizon_steps: None }
    }

    #[test]
    fn warm_up_is_linear_and_reaches_the_peak() {
        let rates: Vec<f64> = (0..5).map(|step| schedule(Decay::Cosine).at(step, 14)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0]);
    }

    #[test]
    fn cosine_and_linear_meet_half_way_and_end_at_the_floor() {
        for decay in [Decay::Cosine, Decay::Linear] {
            assert!((schedule(decay).at(9, 14) - 2.0 * 0.55).abs() < 1e-12);
            assert!((schedule(decay).at(14, 14) - 0.2).abs() < 1e-12);
        }
        assert_eq!(schedule(Decay::Constant).at(13, 14), 2.0);
    }

    #[test]
    fn a_horizon_beyond_the_run_leaves_the_rate_high() {
        let reference = Schedule { peak: 1e-4, warmup_steps: 10_000, decay: Decay::Linear, floor: 0.0, horizon_steps: Some(100_000) };
        assert!((reference.at(79_580, 79_580) - 1e-4 * (20_420.0 / 90_000.0)).abs() < 1e-12);
    }
}
