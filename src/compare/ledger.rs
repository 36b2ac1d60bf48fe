//! Scores as functions of sums over studies, so that they can be computed again for any sample of the studies.

use std::collections::{BTreeSet, HashMap};

use crate::evaluate::{BleuCounts, Counts, Evaluation, LabelSums, StudyScores};
use crate::text::FINDINGS;

/// BLEU's counts of one tokenisation: two lengths, four guesses, four hits.
const BLEU: usize = 10;
/// Hits, extras and misses of the findings.
const LABELS: usize = 3 * FINDINGS.len();

/// What the rows of all ledgers hold, and which scores follow from their sums.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    means: Vec<String>,
    tokenisations: Vec<String>,
    names: Vec<String>,
}

impl Columns {
    /// What all runs have.
    pub(super) fn of(runs: &[Evaluation]) -> Self {
        let shared = |keys: &dyn Fn(&StudyScores) -> BTreeSet<String>| -> Vec<String> {
            let sets = runs.iter().filter_map(|run| run.per_study.first()).map(keys);
            sets.reduce(|a, b| &a & &b).unwrap_or_default().into_iter().collect()
        };
        let means = shared(&|study| study.scores.keys().cloned().collect());
        let tokenisations = shared(&|study| study.bleu.keys().cloned().collect());
        let mut columns = Columns { means, tokenisations, names: Vec::new() };
        let sums = vec![1.0; columns.width()];
        columns.names = columns.scores(&sums).into_iter().map(|(name, _)| name).collect();
        columns
    }

    /// The scores' names, in the order of [`Self::values`].
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// A score's place.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|own| own == name)
    }

    fn width(&self) -> usize {
        1 + self.means.len() + BLEU * self.tokenisations.len() + LABELS
    }

    /// What a study adds to the sums.
    pub(super) fn row(&self, study: &StudyScores) -> Vec<f64> {
        let mut row = vec![1.0];
        row.extend(self.means.iter().map(|name| study.scores.get(name).copied().unwrap_or(0.0)));
        for tokenisation in &self.tokenisations {
            let counts = study.bleu.get(tokenisation).copied().unwrap_or_default();
            row.extend([counts.hypothesis, counts.reference].into_iter().chain(counts.guess).chain(counts.correct));
        }
        for (expected, found) in study.expected.iter().zip(&study.found) {
            row.extend([expected & found, !expected & found, expected & !found].map(|holds| f64::from(u8::from(holds))));
        }
        row
    }

    /// Scores of the studies whose rows were summed.
    pub(super) fn values(&self, sums: &[f64]) -> Vec<f64> {
        self.scores(sums).into_iter().map(|(_, value)| value).collect()
    }

    fn scores(&self, sums: &[f64]) -> Vec<(String, f64)> {
        let (studies, rest) = (sums[0].max(1.0), &sums[1..]);
        let (means, rest) = rest.split_at(self.means.len());
        let (bleu, labels) = rest.split_at(BLEU * self.tokenisations.len());
        let mut scores: Vec<(String, f64)> = self.means.iter().cloned().zip(means.iter().map(|sum| sum / studies)).collect();
        for (tokenisation, sums) in self.tokenisations.iter().zip(bleu.chunks(BLEU)) {
            let part = |from: usize| std::array::from_fn(|n| sums[from + n]);
            let corpus = BleuCounts { hypothesis: sums[0], reference: sums[1], guess: part(2), correct: part(6) }.scores();
            scores.extend((1..).zip(corpus).map(|(order, value)| (format!("bleu_{order}.corpus.{tokenisation}"), value)));
            scores.push((format!("bleu_mean.corpus.{tokenisation}"), corpus.iter().sum::<f64>() / 4.0));
        }
        let findings = std::array::from_fn(|f| Counts { hit: labels[3 * f], extra: labels[3 * f + 1], missed: labels[3 * f + 2] });
        scores.extend(LabelSums { findings, studies }.scores().into_iter().map(|(name, value)| (name.to_string(), value)));
        scores.extend(FINDINGS.iter().zip(findings).map(|(name, counts)| (finding_name(name), counts.scores().f1)));
        scores
    }
}

/// What a finding's F1 is called among the scores.
pub(super) fn finding_name(finding: &str) -> String {
    format!("labels.f1.finding.{finding}")
}

/// A run's rows for the compared studies, in the order that all runs share.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    pub(super) studies: Vec<&'a StudyScores>,
    pub(super) rows: Vec<Vec<f64>>,
}

impl<'a> Ledger<'a> {
    /// The rows of `names`; studies that the run lacks are left out, so ask for those it has.
    pub(super) fn of(run: &'a Evaluation, names: &[&str], columns: &Columns) -> Self {
        let own: HashMap<&str, &StudyScores> = run.per_study.iter().map(|study| (study.study.as_str(), study)).collect();
        let studies: Vec<&StudyScores> = names.iter().filter_map(|name| own.get(name).copied()).collect();
        Ledger { rows: studies.iter().map(|study| columns.row(study)).collect(), studies }
    }

    /// Sums of the rows, each so many times.
    pub(super) fn sums(&self, times: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.rows.first().map_or(0, Vec::len)];
        for (row, times) in self.rows.iter().zip(times).filter(|(_, times)| *times != 0.0) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += times * value);
        }
        sums
    }
}
