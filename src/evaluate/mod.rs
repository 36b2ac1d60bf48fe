//! Scores of generated reports, each named with its convention.

mod bert_score;
mod bleu;
mod chrf;
mod cider;
mod honesty;
mod labels;
mod meteor;
mod meteor_jar;
mod porter;
mod predictions;
mod retrieval;
mod rouge;
mod scores;
mod tokens;
mod vocabulary;
mod wording;
mod wordnet;

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::data::SplitRecord;
use crate::text::{FINDINGS, Labeller};
use crate::{Error, Result};

pub use crate::data::split_sha256;

pub use bert_score::BertScore;
pub use bleu::{Bleu, BleuCounts, Smoothing, Words, bleu};
pub use chrf::ChrfCounts;
pub use cider::Cider;
pub use labels::{Counts, LabelScores, LabelSums, label_scores, rare_findings, rare_recall};
pub use meteor::Meteor;
pub use meteor_jar::{MeteorJar, meteor_jar};
pub use porter::porter_stem;
pub use predictions::{Paired, Prediction, References, read_predictions, study_name, write_submission};
pub use retrieval::{RetrievalScores, retrieval};
pub use rouge::{rouge_l, rouge_l_google};
use scores::Scores;
pub use tokens::{ct2rep_clean, plain, ptb_like, rouge_words};
pub use vocabulary::Vocabulary;
pub use wording::Instruments;
pub use wordnet::WordNet;

/// One study's generated report beside its reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The study's name.
    pub study: String,
    /// What was generated.
    pub generated: String,
    /// What the radiologist (or the phantom's author) wrote.
    pub reference: String,
    /// The reference's findings where they are known; else the labeller reads them out of its text.
    pub labels: Option<[bool; 18]>,
}

/// What each study contributes, for intervals and paired tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyScores {
    /// The study's name.
    pub study: String,
    /// Its values of the scores that are means over studies, by the same names.
    pub scores: BTreeMap<String, f64>,
    /// What corpus BLEU sums, by tokenisation.
    pub bleu: BTreeMap<String, BleuCounts>,
    /// Findings in the reference.
    pub expected: [bool; 18],
    /// Findings that the labeller reads in the generated report.
    pub found: [bool; 18],
}

/// How the reports were written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    /// Tokens written, ends included.
    pub tokens: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Most memory that the process held while writing, MiB (Linux).
    pub peak_memory_mib: Option<u64>,
}

/// All scores of a run on a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// What was evaluated.
    pub run: String,
    /// Studies.
    pub studies: usize,
    /// SHA-256 of the sorted study names.
    pub split_sha256: String,
    /// SHA-256 of the studies with their reference reports.
    pub references_sha256: String,
    /// The split that the studies are of, where it is known.
    pub split: Option<SplitRecord>,
    /// Who labelled generated reports.
    pub labeller: String,
    /// Who labelled references: the labeller, the data set's own label file (`given`), or both for different studies.
    pub reference_labeller: String,
    /// What scores were made with that is not in this program: dictionary, jar, encoder.
    pub instruments: BTreeMap<String, String>,
    /// SHA-256 of the weights that wrote the reports, by file; empty for reports from elsewhere.
    pub weights: BTreeMap<String, String>,
    /// How they were written; absent for reports from elsewhere.
    pub writing: Option<Writing>,
    /// Scores by name and convention.
    pub metrics: BTreeMap<String, f64>,
    /// Precision, recall and F1 a finding.
    pub findings: Vec<LabelScores>,
    /// Each study's contribution.
    pub per_study: Vec<StudyScores>,
}

/// Who labelled the references of these pairs.
fn reference_labeller(pairs: &[Pair], labeller: &Labeller) -> String {
    match pairs.iter().filter(|pair| pair.labels.is_some()).count() {
        0 => labeller.name().to_string(),
        count if count == pairs.len() => "given".to_string(),
        count => format!("given for {count}, {} for {}", labeller.name(), pairs.len() - count),
    }
}

/// The findings of the references: the data set's own where it has them, else as `labeller` reads them.
fn expected_labels(pairs: &[Pair], labeller: &Labeller) -> Result<Vec<[bool; 18]>> {
    let unlabelled: Vec<&str> = pairs.iter().filter(|pair| pair.labels.is_none()).map(|pair| pair.reference.as_str()).collect();
    let mut read = labeller.label(&unlabelled)?.into_iter();
    let of_reference = |pair: &Pair| pair.labels.or_else(|| read.next()).expect("one was read for each without labels");
    Ok(pairs.iter().map(of_reference).collect())
}

/// Scores `pairs`; the names say how (docs/metrics.md).
pub fn evaluate(run: &str, pairs: &[Pair], instruments: &Instruments) -> Result<Evaluation> {
    if pairs.is_empty() {
        return Err(Error::Invalid(format!("{run}: there is no pair to evaluate")));
    }
    let expected = expected_labels(pairs, &instruments.labeller)?;
    let found = instruments.labeller.label(&pairs.iter().map(|pair| pair.generated.as_str()).collect::<Vec<_>>())?;
    let mut scores = Scores::new(pairs.len());
    let bleu = wording::add_metrics(pairs, instruments, &mut scores)?;
    let findings = labels::add_metrics(&expected, &found, &mut scores);
    honesty::add_metrics(pairs, &found, &mut scores);
    let labels = expected.into_iter().zip(found);
    let studies = pairs.iter().zip(scores.studies).zip(bleu).zip(labels);
    let study = |(((pair, scores), bleu), (expected, found)): (((&Pair, _), _), _)| StudyScores {
        study: pair.study.clone(),
        scores,
        bleu,
        expected,
        found,
    };
    Ok(Evaluation {
        run: run.to_string(),
        studies: pairs.len(),
        split_sha256: split_sha256(pairs.iter().map(|pair| pair.study.as_str())),
        references_sha256: references_sha256(pairs.iter().map(|pair| (pair.study.as_str(), pair.reference.as_str()))),
        split: None,
        labeller: instruments.labeller.name().to_string(),
        reference_labeller: reference_labeller(pairs, &instruments.labeller),
        instruments: instruments.names(),
        weights: BTreeMap::new(),
        writing: None,
        metrics: scores.corpus,
        findings,
        per_study: studies.map(study).collect(),
    })
}

/// SHA-256 of studies with their reference reports: what was scored against.
pub fn references_sha256<'a>(references: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    split_sha256(references.map(|(study, reference)| format!("{study}\t{reference}")))
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let split = self.split.as_ref().map_or(String::new(), |split| match split.missing {
            0 => format!(" (all of the split {})", split.name),
            missing => format!(" of the split {} ({missing} of its {} are missing)", split.name, split.studies),
        });
        let reference =
            Some(&self.reference_labeller).filter(|by| **by != self.labeller).map_or(String::new(), |by| format!(", references' {by}"));
        writeln!(f, "{}: {} studies{split}, labels by {}{reference}", self.run, self.studies, self.labeller)?;
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(["metric", "value"]);
        for (name, value) in &self.metrics {
            table.add_row([name.clone(), format!("{value:.4}")]);
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(["finding", "support", "precision", "recall", "F1"]);
        for (name, scores) in FINDINGS.iter().zip(&self.findings) {
            let cell = |value: f64| format!("{value:.3}");
            table.add_row([name.to_string(), scores.support.to_string(), cell(scores.precision), cell(scores.recall), cell(scores.f1)]);
        }
        write!(f, "{table}")
    }
}
