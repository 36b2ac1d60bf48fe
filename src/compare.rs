//! Two or more runs, side by side: the same studies, differences with paired bootstrap intervals.

use std::fmt;

use comfy_table::{Table, presets};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::evaluate::{Evaluation, StudyScores, label_scores, macro_f1};
use crate::text::FINDINGS;
use crate::{Error, Result};

/// Bootstrap draws.
const DRAWS: usize = 1000;

/// Runs beside each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The runs' names; the first is what the others are compared with.
    pub runs: Vec<String>,
    /// Studies.
    pub studies: usize,
    /// Metric, and its value in each run.
    pub metrics: Vec<(String, Vec<f64>)>,
    /// Differences to the first run.
    pub differences: Vec<Difference>,
    /// F1 a finding in each run.
    pub findings: Vec<(String, Vec<f64>)>,
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
    /// Studies in which the run is better, equal, worse; absent for metrics that no single study has.
    pub wins_ties_losses: Option<[usize; 3]>,
}

/// Compares runs over the same studies; runs of different splits are refused.
pub fn compare(runs: &[Evaluation], seed: u64) -> Result<Comparison> {
    let [first, others @ ..] = runs else { return Err(Error::Invalid("there is no run to compare".to_string())) };
    for run in others {
        if run.split_sha256 != first.split_sha256 {
            let what = format!("{} and {} were evaluated on different studies ({} and {})", first.run, run.run, first.studies, run.studies);
            return Err(Error::Invalid(what));
        }
    }
    let value = |run: &Evaluation, name: &str| run.metrics.get(name).copied().unwrap_or(f64::NAN);
    let metrics = first.metrics.keys().map(|name| (name.clone(), runs.iter().map(|run| value(run, name)).collect())).collect();
    let findings = FINDINGS.iter().enumerate().filter(|(index, _)| first.findings[*index].support > 0);
    Ok(Comparison {
        runs: runs.iter().map(|run| run.run.clone()).collect(),
        studies: first.studies,
        metrics,
        differences: others.iter().flat_map(|run| differences(first, run, seed)).collect(),
        findings: findings.map(|(index, name)| (name.to_string(), runs.iter().map(|run| run.findings[index].f1).collect())).collect(),
    })
}

fn differences(first: &Evaluation, run: &Evaluation, seed: u64) -> Vec<Difference> {
    let paired: Vec<(&StudyScores, &StudyScores)> =
        first.per_study.iter().filter_map(|own| Some((own, run.per_study.iter().find(|other| other.study == own.study)?))).collect();
    type Metric = fn(&StudyScores) -> f64;
    let single: [(&str, Metric); 2] = [("rouge_l.coco.ptb_like", |study| study.rouge_l), ("bleu_4.item.ptb_like", |study| study.bleu_4)];
    let mut all: Vec<Difference> = single.iter().map(|(name, metric)| of_studies(run, name, *metric, &paired, seed)).collect();
    let f1 = |chosen: &[usize], other: bool| {
        let study = |index: &usize| if other { paired[*index].1 } else { paired[*index].0 };
        let (expected, found): (Vec<_>, Vec<_>) = chosen.iter().map(study).map(|study| (study.expected, study.found)).unzip();
        macro_f1(&label_scores(&expected, &found))
    };
    let change = |chosen: &[usize]| f1(chosen, true) - f1(chosen, false);
    let whole: Vec<usize> = (0..paired.len()).collect();
    all.push(Difference {
        run: run.run.clone(),
        metric: "labels.f1.macro_supported".to_string(),
        difference: change(&whole),
        interval: bootstrap(paired.len(), seed, change),
        wins_ties_losses: None,
    });
    all
}

fn of_studies(
    run: &Evaluation,
    name: &str,
    metric: fn(&StudyScores) -> f64,
    paired: &[(&StudyScores, &StudyScores)],
    seed: u64,
) -> Difference {
    let deltas: Vec<f64> = paired.iter().map(|(own, other)| metric(other) - metric(own)).collect();
    let mean = |chosen: &[usize]| chosen.iter().map(|&index| deltas[index]).sum::<f64>() / chosen.len().max(1) as f64;
    let (wins, losses) = (deltas.iter().filter(|delta| **delta > 0.0).count(), deltas.iter().filter(|delta| **delta < 0.0).count());
    Difference {
        run: run.run.clone(),
        metric: name.to_string(),
        difference: mean(&(0..deltas.len()).collect::<Vec<_>>()),
        interval: bootstrap(deltas.len(), seed, mean),
        wins_ties_losses: Some([wins, deltas.len() - wins - losses, losses]),
    }
}

/// The 2.5th and 97.5th percentiles of `value` over resampled studies.
fn bootstrap(studies: usize, seed: u64, value: impl Fn(&[usize]) -> f64) -> [f64; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || -> f64 { value(&(0..studies).map(|_| rng.random_range(0..studies.max(1))).collect::<Vec<_>>()) };
    let mut values: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    values.sort_by(f64::total_cmp);
    [values[DRAWS * 25 / 1000], values[DRAWS * 975 / 1000 - 1]]
}

impl Comparison {
    /// Header and rows of the table of metrics.
    pub fn metric_rows(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let header = [vec!["metric".to_string()], self.runs.clone()].concat();
        let row =
            |(name, values): &(String, Vec<f64>)| [vec![name.clone()], values.iter().map(|value| format!("{value:.4}")).collect()].concat();
        (header, self.metrics.iter().map(row).collect())
    }

    /// Header and rows of the table of findings.
    pub fn finding_rows(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let header = [vec!["finding (F1)".to_string()], self.runs.clone()].concat();
        let row =
            |(name, values): &(String, Vec<f64>)| [vec![name.clone()], values.iter().map(|value| format!("{value:.3}")).collect()].concat();
        (header, self.findings.iter().map(row).collect())
    }

    /// Header and rows of the table of differences.
    pub fn difference_rows(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let header = ["difference to the first", "metric", "difference", "95% interval", "wins / ties / losses"].map(String::from).to_vec();
        let row = |d: &Difference| {
            let counts = d.wins_ties_losses.map_or("-".to_string(), |[wins, ties, losses]| format!("{wins} / {ties} / {losses}"));
            vec![
                d.run.clone(),
                d.metric.clone(),
                format!("{:+.4}", d.difference),
                format!("{:+.4} to {:+.4}", d.interval[0], d.interval[1]),
                counts,
            ]
        };
        (header, self.differences.iter().map(row).collect())
    }

    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        let tables = [self.metric_rows(), self.difference_rows(), self.finding_rows()];
        let table = |(header, rows): &(Vec<String>, Vec<Vec<String>>)| {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            let rule = format!("|{}\n", "---|".repeat(header.len()));
            format!("{}{rule}{}", line(header), rows.iter().map(|row| line(row)).collect::<String>())
        };
        tables.iter().map(table).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} studies", self.studies)?;
        for (header, rows) in [self.metric_rows(), self.difference_rows(), self.finding_rows()] {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(header).add_rows(rows);
            write!(f, "\n{table}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::evaluate::{Pair, evaluate};

    use super::*;

    fn run(name: &str, generated: &str, study: &str) -> Evaluation {
        let pair = |n: usize| Pair {
            study: format!("{study}{n}"),
            generated: generated.to_string(),
            reference: "Heart size is increased. No pleural effusion.".to_string(),
            labels: None,
        };
        evaluate(name, &(0..4).map(pair).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_better_run_wins_every_study() {
        let runs = [run("a", "The lungs are clear.", "s"), run("b", "Heart size is increased. No pleural effusion.", "s")];
        let comparison = compare(&runs, 1).unwrap();
        assert_eq!(comparison.differences[0].wins_ties_losses, Some([4, 0, 0]));
        let f1 = comparison.differences.iter().find(|d| d.metric.starts_with("labels")).unwrap();
        assert_eq!((f1.difference, f1.interval), (1.0, [1.0, 1.0]));
        assert!(comparison.markdown().contains("| labels.f1.macro_supported | 0.0000 | 1.0000 |"));
    }

    #[test]
    fn runs_of_different_studies_are_refused() {
        let message = compare(&[run("a", "x", "s"), run("b", "x", "t")], 1).unwrap_err().to_string();
        assert!(message.contains("a and b were evaluated on different studies"), "{message}");
    }
}
