//! Clinical efficacy: precision, recall and F1 over the 18 findings; CRG.

use serde::{Deserialize, Serialize};

use super::scores::Scores;

/// True and false positives, false negatives.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Affirmed and expected.
    pub hit: f64,
    /// Affirmed and not expected.
    pub extra: f64,
    /// Expected and not affirmed.
    pub missed: f64,
}

/// One finding's scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelScores {
    /// Studies whose reference has the finding.
    pub support: usize,
    /// hit / (hit + extra); 0 where nothing was affirmed.
    pub precision: f64,
    /// hit / (hit + missed); 0 where nothing was expected.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

impl Counts {
    fn count(&mut self, expected: bool, found: bool) {
        self.hit += f64::from(u8::from(expected && found));
        self.extra += f64::from(u8::from(!expected && found));
        self.missed += f64::from(u8::from(expected && !found));
    }

    /// Precision, recall, F1.
    pub fn scores(&self) -> LabelScores {
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        LabelScores {
            support: (self.hit + self.missed) as usize,
            precision: ratio(self.hit, self.hit + self.extra),
            recall: ratio(self.hit, self.hit + self.missed),
            f1: ratio(2.0 * self.hit, 2.0 * self.hit + self.extra + self.missed),
        }
    }
}

/// Scores a finding over all studies.
pub fn label_scores(expected: &[[bool; 18]], found: &[[bool; 18]]) -> Vec<LabelScores> {
    counts(expected, found).iter().map(Counts::scores).collect()
}

pub(super) fn counts(expected: &[[bool; 18]], found: &[[bool; 18]]) -> [Counts; 18] {
    LabelSums::of(expected.iter().zip(found)).findings
}

/// Which findings are rare: of those that some study has, the third with the fewest, rounded up; of equally many, the earlier ones.
pub fn rare_findings(labels: &[[bool; 18]]) -> Vec<usize> {
    let count = |finding: usize| labels.iter().filter(|labels| labels[finding]).count();
    let mut found: Vec<(usize, usize)> = (0..18).map(|finding| (count(finding), finding)).filter(|(count, _)| *count > 0).collect();
    found.sort_unstable();
    found.truncate(found.len().div_ceil(3));
    found.into_iter().map(|(_, finding)| finding).collect()
}

/// Mean recall over those of the `rare` findings that some reference has; NaN if none has any.
pub fn rare_recall(scores: &[LabelScores], rare: &[usize]) -> f64 {
    let supported: Vec<f64> = rare.iter().map(|finding| scores[*finding]).filter(|scores| scores.support > 0).map(|s| s.recall).collect();
    if supported.is_empty() { f64::NAN } else { super::mean(&supported) }
}

/// Sums of the counts that scores over all findings are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LabelSums {
    /// By finding.
    pub findings: [Counts; 18],
    /// Studies.
    pub studies: f64,
}

impl LabelSums {
    /// The sums of studies, each with the findings of its reference and those of its generated report.
    pub fn of<'a>(studies: impl Iterator<Item = (&'a [bool; 18], &'a [bool; 18])>) -> Self {
        let mut sums = LabelSums::default();
        for (expected, found) in studies {
            sums.studies += 1.0;
            for (counts, (expected, found)) in sums.findings.iter_mut().zip(expected.iter().zip(found)) {
                counts.count(*expected, *found);
            }
        }
        sums
    }

    /// The scores over all findings, by name and convention.
    pub fn scores(&self) -> Vec<(&'static str, f64)> {
        let each: Vec<LabelScores> = self.findings.iter().map(Counts::scores).collect();
        let total = self.total();
        let supported: Vec<&LabelScores> = each.iter().filter(|scores| scores.support > 0).collect();
        let mean_of =
            |scores: &[&LabelScores], value: fn(&LabelScores) -> f64| super::mean(&scores.iter().map(|s| value(s)).collect::<Vec<_>>());
        let of_supported = |value| mean_of(&supported, value);
        let of_all = |value| mean_of(&each.iter().collect::<Vec<_>>(), value);
        let weighted = |value: fn(&LabelScores) -> f64| {
            let support = each.iter().map(|scores| scores.support as f64).sum::<f64>().max(1.0);
            each.iter().map(|scores| value(scores) * scores.support as f64).sum::<f64>() / support
        };
        let labels = 18.0 * self.studies;
        vec![
            ("labels.precision.micro", total.scores().precision),
            ("labels.recall.micro", total.scores().recall),
            ("labels.f1.micro", total.scores().f1),
            ("labels.precision.macro_supported", of_supported(|s| s.precision)),
            ("labels.recall.macro_supported", of_supported(|s| s.recall)),
            ("labels.f1.macro_supported", of_supported(|s| s.f1)),
            ("labels.precision.macro_18", of_all(|s| s.precision)),
            ("labels.recall.macro_18", of_all(|s| s.recall)),
            ("labels.f1.macro_18", of_all(|s| s.f1)),
            ("labels.precision.weighted", weighted(|s| s.precision)),
            ("labels.recall.weighted", weighted(|s| s.recall)),
            ("labels.f1.weighted", weighted(|s| s.f1)),
            ("labels.crg", crg(labels, &total)),
            ("labels.positive_rate.generated", (total.hit + total.extra) / labels),
            ("labels.positive_rate.reference", (total.hit + total.missed) / labels),
        ]
    }

    fn total(&self) -> Counts {
        self.findings.iter().fold(Counts::default(), |sum, c| Counts {
            hit: sum.hit + c.hit,
            extra: sum.extra + c.extra,
            missed: sum.missed + c.missed,
        })
    }
}

/// Adds micro, macro, weighted and sample-wise scores and CRG; returns the scores a finding.
pub(super) fn add_metrics(expected: &[[bool; 18]], found: &[[bool; 18]], scores: &mut Scores) -> Vec<LabelScores> {
    let sums = LabelSums::of(expected.iter().zip(found));
    sums.scores().into_iter().for_each(|(name, value)| scores.add(name, value));
    let samples: Vec<LabelScores> = expected.iter().zip(found).map(|(expected, found)| sample(expected, found)).collect();
    scores.add_mean("labels.precision.samples", samples.iter().map(|scores| scores.precision));
    scores.add_mean("labels.recall.samples", samples.iter().map(|scores| scores.recall));
    scores.add_mean("labels.f1.samples", samples.iter().map(|scores| scores.f1));
    sums.findings.iter().map(Counts::scores).collect()
}

/// One study's precision, recall and F1 over its findings; a study without findings that gets none is right.
fn sample(expected: &[bool; 18], found: &[bool; 18]) -> LabelScores {
    let mut counts = Counts::default();
    (0..18).for_each(|finding| counts.count(expected[finding], found[finding]));
    if counts == Counts::default() { LabelScores { support: 0, precision: 1.0, recall: 1.0, f1: 1.0 } } else { counts.scores() }
}

/// CRG (VLM3D): U / (2 U - s), s = r hits - r missed - extra, r = (X - A) / (2 A), U = (X - A) / 2; X labels, A of them positive.
fn crg(labels: f64, total: &Counts) -> f64 {
    let positive = total.hit + total.missed;
    let reward = (labels - positive) / (2.0 * positive.max(1.0));
    let best = (labels - positive) / 2.0;
    best / (2.0 * best - (reward * total.hit - reward * total.missed - total.extra))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(set: &[usize]) -> [bool; 18] {
        std::array::from_fn(|finding| set.contains(&finding))
    }

    #[test]
    fn precision_recall_and_f1_are_those_of_the_counts() {
        let (expected, found) = ([labels(&[0, 1]), labels(&[0])], [labels(&[0]), labels(&[0, 2])]);
        let scores = label_scores(&expected, &found);
        assert_eq!(scores[0], LabelScores { support: 2, precision: 1.0, recall: 1.0, f1: 1.0 });
        assert_eq!(scores[1], LabelScores { support: 1, precision: 0.0, recall: 0.0, f1: 0.0 });
        let sums = LabelSums { findings: counts(&expected, &found), studies: 2.0 };
        let value = |name: &str| sums.scores().into_iter().find(|(own, _)| *own == name).unwrap().1;
        assert_eq!(value("labels.f1.macro_supported"), 0.5);
        assert_eq!(value("labels.f1.macro_18"), 1.0 / 18.0);
        // 2 hits, 1 extra, 1 missed; finding 0 has support 2 and F1 1, finding 1 support 1 and F1 0
        assert!((value("labels.f1.micro") - 2.0 / 3.0).abs() < 1e-12 && (value("labels.f1.weighted") - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(sample(&expected[0], &found[0]), LabelScores { support: 2, precision: 1.0, recall: 0.5, f1: 2.0 / 3.0 });
    }

    #[test]
    fn the_rarest_third_of_the_findings_seen_is_rare_and_its_recall_counts_supported_ones_alone() {
        let trained = [labels(&[0, 1, 2, 3]), labels(&[0, 1, 2]), labels(&[0, 1, 2]), labels(&[0, 9])];
        // counts: 4, 3, 3, 1, and 1 of finding 9; five findings were seen, two are rare
        let rare = rare_findings(&trained);
        assert_eq!(rare, [3, 9]);
        let scores = label_scores(&[labels(&[0, 3]), labels(&[3])], &[labels(&[0]), labels(&[3])]);
        assert_eq!(rare_recall(&scores, &rare), 0.5);
        assert!(rare_recall(&scores, &[9]).is_nan());
    }

    #[test]
    fn a_perfect_answer_has_crg_one_and_silence_a_third() {
        let perfect = Counts { hit: 6.0, ..Counts::default() };
        assert!((crg(36.0, &perfect) - 1.0).abs() < 1e-12);
        let silent = Counts { missed: 6.0, ..Counts::default() };
        assert!((crg(36.0, &silent) - 1.0 / 3.0).abs() < 1e-12);
    }
}
