//! Datasets: CT-RATE's layout, CTRG-Chest-548K's, plain lists; splits by patient; and the cache of prepared volumes.

mod cache;
mod ct_rate;
mod ctrg;
mod hub;
mod listing;
pub mod phantom;
mod preparing;
mod structure_text;
mod subsets;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::text::{Sections, report_text};
use crate::volume::{CsvRescale, GreyImages};
use crate::{Error, Result};

pub use cache::{Cache, CachedStudy};
pub use ct_rate::{Part, read_ct_rate};
pub use ctrg::read_ctrg;
pub use hub::{HubFetch, HubPlan};
pub use listing::read_listing;
pub use preparing::{LocalFiles, OnDisk, Preparation, PreparationReport, Supply, default_workers, prepare};
pub use structure_text::{StructureTexts, read_structure_texts};
pub use subsets::{NamedSplit, NamedSplits, SplitList, SplitRecord, Subset, split_sha256};

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
    /// What grey values and slice images mean (CTRG-Chest-548K); null: scans in Hounsfield or stored units.
    pub grey: Option<GreyImages>,
}

impl DataConfig {
    /// The report of these sections, or why there is none.
    fn report(&self, findings: &str, impression: &str) -> std::result::Result<String, String> {
        let report = report_text(findings, impression, self.sections).ok_or("its report is empty or \"Not given.\"")?;
        let count = report.chars().count();
        if count < self.min_report_chars {
            return Err(format!("its report has {count} characters, fewer than data.min_report_chars {}", self.min_report_chars));
        }
        Ok(report)
    }
}

/// Which reconstructions of a scan are used: all share one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconstructions {
    /// The first that has a report (`_1`).
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

/// One volume with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// The file's name without `.nii.gz`: `valid_53_a_1`.
    pub name: String,
    /// `valid_53`: all volumes of a patient are in one split.
    pub patient: String,
    /// What it is used for.
    pub split: Split,
    /// The volume's file, or its folder of slices.
    pub path: PathBuf,
    /// The report.
    pub report: String,
    /// The 18 findings, where the label file has the volume.
    pub labels: Option<[bool; 18]>,
    /// The metadata's slope and intercept.
    pub rescale: Option<CsvRescale>,
    /// The metadata's spacing (z, xy) in mm.
    pub spacing_mm: Option<[f64; 2]>,
    /// What its grey values mean, where it holds no Hounsfield or stored units.
    pub grey: Option<GreyImages>,
    /// Each structure's sentences, where they came ready-made.
    pub structure_texts: Option<BTreeMap<String, String>>,
    /// What deserves a word in `prepare.csv`.
    pub notices: Vec<String>,
}

impl Study {
    /// A study of which no more is known.
    fn new(name: &str, patient: &str, split: Split, path: &Path, report: String) -> Self {
        let (name, patient, path) = (name.to_string(), patient.to_string(), path.to_path_buf());
        Study {
            name,
            patient,
            split,
            path,
            report,
            labels: None,
            rescale: None,
            spacing_mm: None,
            grey: None,
            structure_texts: None,
            notices: Vec::new(),
        }
    }
}

/// The studies of a dataset, and what was left out and why.
#[derive(Debug, Default)]
pub struct Dataset {
    /// Studies, sorted by name.
    pub studies: Vec<Study>,
    /// Volume, and why it is not among the studies.
    pub left_out: Vec<(String, String)>,
    /// Row of a CSV that cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// Published splits and all their studies, at hand or not.
    pub named: NamedSplits,
}

impl Dataset {
    /// Adds another part.
    fn add(&mut self, part: Dataset) {
        self.studies.extend(part.studies);
        self.left_out.extend(part.left_out);
        self.unreadable.extend(part.unreadable);
        self.named.extend(part.named);
    }

    /// Sorted; an error where there is no study in `places` of `root`, or one name twice.
    fn finish(mut self, root: &Path, places: &str) -> Result<Self> {
        if self.studies.is_empty() {
            let why = self.left_out.first().map(|(name, why)| format!("; the first of {}: {name}: {why}", self.left_out.len()));
            return Err(Error::file(root, format!("no usable study in {places}{}", why.unwrap_or_default())));
        }
        self.studies.sort_by(|a, b| a.name.cmp(&b.name));
        match self.studies.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => {
                let [first, second] = [&pair[0], &pair[1]].map(|study| study.path.display().to_string());
                Err(Error::file(root, format!("two studies are called {}: {first} and {second}", pair[0].name)))
            }
            None => Ok(self),
        }
    }
}

/// A number in 0..1 of the patient's name and the seed alone: adding studies moves no other patient.
fn draw(patient: &str, seed: u64) -> f64 {
    let digest = Sha256::digest(format!("{seed} {patient}").as_bytes());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes")) as f64 / u64::MAX as f64
}

/// Training or validation.
fn train_split(patient: &str, share: f64, seed: u64) -> Split {
    if draw(patient, seed) < share { Split::Validation } else { Split::Train }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patient_keeps_its_split_and_shares_are_as_asked() {
        let drawn = (0..2000).filter(|n| train_split(&format!("train_{n}"), 0.1, 7) == Split::Validation).count();
        assert!((150..250).contains(&drawn), "{drawn}");
        assert_eq!(train_split("train_5", 0.1, 7), train_split("train_5", 0.1, 7));
    }
}
