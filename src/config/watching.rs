//! The keys by which a stage is watched: samples, the best checkpoints, an early end.

use serde::{Deserialize, Serialize};

/// What is written for validation studies at every checkpoint (report stages; the others write no text).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchConfig {
    /// Reports kept in `samples/STEP.jsonl`, of the first validation studies.
    pub samples: usize,
    /// Validation studies whose generated reports are measured; 0: none.
    pub studies: usize,
}

/// Which values of a measure are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Small ones.
    Min,
    /// Large ones.
    Max,
}

/// Which checkpoints are kept beside the newest ones; the finished model is the best one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestConfig {
    /// A measure of the validation studies.
    pub metric: String,
    /// Which values of it are better.
    pub direction: Direction,
    /// So many are kept.
    pub keep: usize,
}

/// When a stage ends before its last step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopConfig {
    /// A measure of the validation studies.
    pub metric: String,
    /// Which values of it are better.
    pub direction: Direction,
    /// So many checkpoints in a row without improvement end the stage.
    pub patience: usize,
    /// Improvement is more than this.
    pub min_delta: f64,
}

impl Direction {
    /// Whether `value` is better than `other` by more than `margin`; what is not a number is worse than everything.
    pub fn better(self, value: f64, other: f64, margin: f64) -> bool {
        if value.is_nan() || other.is_nan() {
            return other.is_nan() && !value.is_nan();
        }
        match self {
            Direction::Min => value < other - margin,
            Direction::Max => value > other + margin,
        }
    }
}

/// What stage one measures on validation studies; R@K only where there are K of them.
pub const STRUCTURE_MEASURES: [&str; 9] = [
    "validation_loss",
    "retrieval_recall_at_1",
    "retrieval_recall_at_5",
    "retrieval_recall_at_10",
    "retrieval_recall_at_50",
    "retrieval_recall_at_100",
    "queue_similarity",
    "queue_age",
    "target_entropy",
];

/// What the language model measures.
pub const LANGUAGE_MEASURES: [&str; 1] = ["validation_loss"];

/// What report stages measure on the reports that they write (`watch.studies`), beside `validation_loss`.
pub const REPORT_MEASURES: [&str; 11] = [
    "collapse.unique_share",
    "collapse.self_bleu_4",
    "collapse.all_normal_share",
    "collapse.repeated_sentence_share",
    "length.words.generated",
    "labels.f1.macro_supported",
    "labels.f1.micro",
    "labels.crg",
    "labels.recall.rare",
    "bleu_4.corpus.ptb_like",
    "rouge_l.coco.ptb_like",
];

/// Faults of what a stage is selected and stopped by, named by `key`; `measures`: what it measures.
pub(super) fn selection_faults(key: &str, best: Option<&BestConfig>, early: Option<&EarlyStopConfig>, measures: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut known = |part: &str, metric: &str| {
        if !measures.contains(&metric) {
            faults.push(format!("{key}.{part}.metric: {metric} is not measured here; measured: {}", measures.join(", ")));
        }
    };
    best.iter().for_each(|best| known("best", &best.metric));
    early.iter().for_each(|early| known("early_stop", &early.metric));
    if best.is_some_and(|best| best.keep == 0) {
        faults.push(format!("{key}.best.keep: must be at least 1"));
    }
    if early.is_some_and(|early| early.patience == 0) {
        faults.push(format!("{key}.early_stop.patience: must be at least 1"));
    }
    if early.is_some_and(|early| !(early.min_delta.is_finite() && early.min_delta >= 0.0)) {
        faults.push(format!("{key}.early_stop.min_delta: must not be negative"));
    }
    faults
}
