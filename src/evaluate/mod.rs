//! Scores of generated reports, each named with its convention.

mod bleu;
mod cider;
mod honesty;
mod labels;
mod retrieval;
mod rouge;
mod tokens;

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::data::SplitRecord;
use crate::text::{FINDINGS, Labeller};
use crate::{Error, Result};

pub use crate::data::split_sha256;

pub use bleu::{Bleu, bleu};
pub use cider::cider;
pub(crate) use labels::macro_f1;
pub use labels::{Counts, LabelScores, label_scores, rare_findings, rare_recall};
pub use retrieval::{RetrievalScores, retrieval};
pub use rouge::rouge_l;
pub use tokens::{ct2rep_clean, plain, ptb_like};

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
    /// ROUGE-L.
    pub rouge_l: f64,
    /// BLEU-4 of this pair alone.
    pub bleu_4: f64,
    /// Findings in the reference.
    pub expected: [bool; 18],
    /// Findings that the labeller reads in the generated report.
    pub found: [bool; 18],
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
    /// The split that the studies are of, where it is known.
    pub split: Option<SplitRecord>,
    /// Who labelled generated reports.
    pub labeller: String,
    /// Who labelled references: the labeller, the data set's own label file (`given`), or both for different studies.
    pub reference_labeller: Option<String>,
    /// Scores by name and convention.
    pub metrics: BTreeMap<String, f64>,
    /// Precision, recall and F1 a finding.
    pub findings: Vec<LabelScores>,
    /// Each study's contribution.
    pub per_study: Vec<StudyScores>,
}

/// Scores `pairs`, findings read by the rules.
pub fn evaluate(run: &str, pairs: &[Pair]) -> Result<Evaluation> {
    evaluate_with(run, pairs, &Labeller::Rules)
}

/// Who labelled the references of these pairs.
fn reference_labeller(pairs: &[Pair], labeller: &Labeller) -> String {
    match pairs.iter().filter(|pair| pair.labels.is_some()).count() {
        0 => labeller.name().to_string(),
        count if count == pairs.len() => "given".to_string(),
        count => format!("given for {count}, {} for {}", labeller.name(), pairs.len() - count),
    }
}

/// Scores `pairs`. BLEU, ROUGE-L and CIDEr are pycocoevalcap's, over lower-case words without punctuation (`ptb_like`).
pub fn evaluate_with(run: &str, pairs: &[Pair], labeller: &Labeller) -> Result<Evaluation> {
    if pairs.is_empty() {
        return Err(Error::Invalid(format!("{run}: there is no pair to evaluate")));
    }
    let tokens: Vec<(Vec<String>, Vec<String>)> = pairs.iter().map(|pair| (ptb_like(&pair.generated), ptb_like(&pair.reference))).collect();
    let bleu = bleu(&tokens);
    let rouge: Vec<f64> = tokens.iter().map(|(hypothesis, reference)| rouge_l(hypothesis, reference)).collect();
    let cider_scores = cider(&tokens);
    let unlabelled: Vec<&str> = pairs.iter().filter(|pair| pair.labels.is_none()).map(|pair| pair.reference.as_str()).collect();
    let mut read = labeller.label(&unlabelled)?.into_iter();
    let of_reference = |pair: &Pair| pair.labels.or_else(|| read.next()).expect("one was read for each without labels");
    let expected: Vec<[bool; 18]> = pairs.iter().map(of_reference).collect();
    let found = labeller.label(&pairs.iter().map(|pair| pair.generated.as_str()).collect::<Vec<_>>())?;
    let mut metrics = BTreeMap::new();
    let mut add = |name: &str, value: f64| metrics.insert(name.to_string(), value);
    for (order, value) in bleu.corpus.iter().enumerate() {
        add(&format!("bleu_{}.corpus.ptb_like", order + 1), *value);
    }
    add("rouge_l.coco.ptb_like", mean(&rouge));
    add("cider.coco.ptb_like", mean(&cider_scores));
    let findings = labels::add_metrics(&expected, &found, &mut add);
    honesty::add_metrics(pairs, &found, &mut add);
    let study = |index: usize| StudyScores {
        study: pairs[index].study.clone(),
        rouge_l: rouge[index],
        bleu_4: bleu.per_item[index][3],
        expected: expected[index],
        found: found[index],
    };
    Ok(Evaluation {
        run: run.to_string(),
        studies: pairs.len(),
        split_sha256: split_sha256(pairs.iter().map(|pair| pair.study.as_str())),
        split: None,
        labeller: labeller.name().to_string(),
        reference_labeller: Some(reference_labeller(pairs, labeller)),
        metrics,
        findings,
        per_study: (0..pairs.len()).map(study).collect(),
    })
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
            self.reference_labeller.as_deref().filter(|by| *by != self.labeller).map_or(String::new(), |by| format!(", references' {by}"));
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
