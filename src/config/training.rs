//! The keys of a training stage.

use serde::{Deserialize, Serialize};

use super::watching::{BestConfig, EarlyStopConfig, WatchConfig, selection_faults};

/// AdamW's constants (Loshchilov and Hutter, 2019); the learning rate is the schedule's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// Tensors whose name contains one of these are not decayed.
    pub no_decay: Vec<String>,
}

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

/// How a stage is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Studies a step.
    pub batch: usize,
    /// Studies at once on one thread; the batch's gradients are summed over its micro-batches.
    pub micro_batch: usize,
    /// Whether each layer is run again in the backward pass instead of keeping what it computed, and in stage one each micro-batch too: the
    /// same gradients for less memory and more time (docs/training.md).
    pub recompute: bool,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// Largest norm of all gradients together; null: unlimited.
    pub clip_norm: Option<f64>,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept.
    pub keep_checkpoints: usize,
    /// A loss above this multiple of the median of the last 50 steps' stops the run; null: only one that is not finite.
    pub explode_factor: Option<f64>,
    /// What is written for validation studies at every checkpoint.
    pub watch: WatchConfig,
    /// The best checkpoints, kept beside the newest ones; null: none, and the finished model is the last step's.
    pub best: Option<BestConfig>,
    /// When the stage ends before its last step; null: never.
    pub early_stop: Option<EarlyStopConfig>,
}

impl TrainingConfig {
    /// Faults of these numbers, named by `key`; `measures`: what the stage measures on validation studies.
    pub fn faults(&self, key: &str, measures: &[&str]) -> Vec<String> {
        let mut faults = self.schedule.faults(&format!("{key}.schedule"));
        let counts = [
            ("steps", self.steps as usize),
            ("batch", self.batch),
            ("micro_batch", self.micro_batch),
            ("log_every", self.log_every as usize),
            ("checkpoint_every", self.checkpoint_every as usize),
            ("keep_checkpoints", self.keep_checkpoints),
        ];
        faults.extend(counts.iter().filter(|(_, count)| *count == 0).map(|(name, _)| format!("{key}.{name}: must be at least 1")));
        if self.micro_batch > self.batch {
            faults.push(format!("{key}.micro_batch: {} exceeds the batch of {}", self.micro_batch, self.batch));
        }
        if self.clip_norm.is_some_and(|limit| limit.is_nan() || limit <= 0.0) {
            faults.push(format!("{key}.clip_norm: must be positive or null"));
        }
        if self.explode_factor.is_some_and(|factor| factor.is_nan() || factor <= 1.0) {
            faults.push(format!("{key}.explode_factor: must exceed 1 or be null"));
        }
        faults.extend(selection_faults(key, self.best.as_ref(), self.early_stop.as_ref(), measures));
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
