//! What a comparison holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evaluate::{LabelScores, Writing};

/// How runs are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparing {
    /// Seed of bootstrap and permutations.
    pub seed: u64,
    /// Bootstrap samples.
    pub draws: usize,
    /// Permutations of the test.
    pub permutations: usize,
    /// Scores to test besides the usual ones, by name.
    pub tested: Vec<String>,
    /// Runs of different splits are compared on the studies that all have, instead of refused.
    pub allow_different_splits: bool,
}

impl Comparing {
    /// 2,000 samples, 10,000 permutations, one split.
    pub fn seeded(seed: u64) -> Self {
        Comparing { seed, draws: 2000, permutations: 10_000, tested: Vec::new(), allow_different_splits: false }
    }
}

/// Runs beside each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The runs' names; the first is what the others are compared with.
    pub runs: Vec<String>,
    /// What is known of the runs.
    pub facts: Vec<RunFacts>,
    /// Studies compared.
    pub studies: usize,
    /// How it was done.
    pub comparing: Comparing,
    /// Scores by name.
    pub metrics: Vec<MetricRow>,
    /// Differences to the first run, of the tested scores.
    pub differences: Vec<Difference>,
    /// Scores a finding, of those that some reference has.
    pub findings: Vec<FindingRow>,
}

/// What is known of a run beside its scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// Studies that it was evaluated on.
    pub studies: usize,
    /// SHA-256 of their names.
    pub split_sha256: String,
    /// SHA-256 of names and references.
    pub references_sha256: String,
    /// Who labelled.
    pub labeller: String,
    /// Dictionary, jar, encoder.
    pub instruments: BTreeMap<String, String>,
    /// SHA-256 of weights by file.
    pub weights: BTreeMap<String, String>,
    /// Tokens a second and memory.
    pub writing: Option<Writing>,
}

/// A score in each run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Its name and convention.
    pub name: String,
    /// Its value in each run; absent where a run lacks it.
    pub values: Vec<Option<f64>>,
    /// 95% intervals, for scores that follow from sums over studies.
    pub intervals: Option<Vec<[f64; 2]>>,
}

/// A finding in each run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FindingRow {
    /// The finding.
    pub name: String,
    /// Studies whose reference has it.
    pub support: usize,
    /// Precision, recall and F1 in each run.
    pub scores: Vec<LabelScores>,
    /// 95% intervals of F1.
    pub intervals: Vec<[f64; 2]>,
}

/// A difference of a run to the first, over the same studies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The run.
    pub run: String,
    /// The metric.
    pub metric: String,
    /// Run minus first.
    pub difference: f64,
    /// 95% interval, paired bootstrap over studies.
    pub interval: [f64; 2],
    /// Two-sided p of the paired permutation test.
    pub p: f64,
    /// p after Holm's correction over all rows of this table.
    pub p_holm: f64,
    /// Studies in which the run is better, equal, worse: by the score itself, for BLEU by the study's own, for labels by the study's F1.
    pub wins_ties_losses: [usize; 3],
}
