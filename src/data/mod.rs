//! Datasets: CT-RATE's layout, splits by patient, and the cache of prepared volumes.

mod cache;
mod ct_rate;
pub mod phantom;

use serde::{Deserialize, Serialize};

use crate::text::Sections;

pub use cache::{Cache, CachedStudy, PreparationReport, prepare};
pub use ct_rate::{Dataset, Study, read_ct_rate};

/// Which studies of a dataset, and what of their reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Which sections make the report.
    pub sections: Sections,
    /// Shorter reports (in characters) are left out, and counted.
    pub min_report_chars: usize,
    /// Which reconstructions of a scan.
    pub reconstructions: Reconstructions,
    /// Share of the training patients kept for validation; the official validation studies are the test set.
    pub validation_share: f64,
}

/// Which reconstructions of a scan are used: all share one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconstructions {
    /// The first (`_1`).
    First,
    /// All.
    All,
}

/// What a study is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Learned from.
    Train,
    /// Other patients of the training set: watched while training.
    Validation,
    /// The official validation set: evaluated, never selected on.
    Test,
}
