//! Clinical efficacy: precision, recall and F1 over the 18 findings; CRG.

use serde::{Deserialize, Serialize};

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

fn counts(expected: &[[bool; 18]], found: &[[bool; 18]]) -> [Counts; 18] {
    let mut counts = [Counts::default(); 18];
    for (expected, found) in expected.iter().zip(found) {
        for finding in 0..18 {
            counts[finding].count(expected[finding], found[finding]);
        }
    }
    counts
}

/// Mean F1 over the findings that some reference has: the convention named `macro_supported`.
pub(crate) fn macro_f1(scores: &[LabelScores]) -> f64 {
    let supported: Vec<f64> = scores.iter().filter(|scores| scores.support > 0).map(|scores| scores.f1).collect();
    super::mean(&supported)
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

/// Adds micro, macro, weighted and sample-wise scores and CRG; returns the scores a finding.
pub(super) fn add_metrics(
    expected: &[[bool; 18]],
    found: &[[bool; 18]],
    add: &mut dyn FnMut(&str, f64) -> Option<f64>,
) -> Vec<LabelScores> {
    let counts = counts(expected, found);
    let scores: Vec<LabelScores> = counts.iter().map(Counts::scores).collect();
    let total = counts.iter().fold(Counts::default(), |sum, c| Counts {
        hit: sum.hit + c.hit,
        extra: sum.extra + c.extra,
        missed: sum.missed + c.missed,
    });
    let supported: Vec<&LabelScores> = scores.iter().filter(|scores| scores.support > 0).collect();
    let average = |value: &dyn Fn(&LabelScores) -> f64| super::mean(&supported.iter().map(|scores| value(scores)).collect::<Vec<_>>());
    add("labels.f1.micro", total.scores().f1);
    add("labels.precision.micro", total.scores().precision);
    add("labels.recall.micro", total.scores().recall);
    add("labels.f1.macro_supported", macro_f1(&scores));
    add("labels.precision.macro_supported", average(&|scores| scores.precision));
    add("labels.recall.macro_supported", average(&|scores| scores.recall));
    let support: f64 = scores.iter().map(|scores| scores.support as f64).sum();
    add("labels.f1.weighted", scores.iter().map(|scores| scores.f1 * scores.support as f64).sum::<f64>() / support.max(1.0));
    let sample = |(expected, found): (&[bool; 18], &[bool; 18])| {
        let mut counts = Counts::default();
        (0..18).for_each(|finding| counts.count(expected[finding], found[finding]));
        // a study without findings that gets none is right
        if counts == Counts::default() { 1.0 } else { counts.scores().f1 }
    };
    add("labels.f1.samples", super::mean(&expected.iter().zip(found).map(sample).collect::<Vec<_>>()));
    add("labels.crg", crg(expected.len(), &total));
    add("labels.positive_rate.generated", (total.hit + total.extra) / (18 * expected.len()) as f64);
    add("labels.positive_rate.reference", (total.hit + total.missed) / (18 * expected.len()) as f64);
    scores
}

/// CRG (VLM3D): U / (2 U - s), s = r hits - r missed - extra, r = (X - A) / (2 A), U = (X - A) / 2; X labels, A of them positive.
fn crg(studies: usize, total: &Counts) -> f64 {
    let (labels, positive) = ((18 * studies) as f64, total.hit + total.missed);
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
        assert_eq!(macro_f1(&scores), 0.5);
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
        assert!((crg(2, &perfect) - 1.0).abs() < 1e-12);
        let silent = Counts { missed: 6.0, ..Counts::default() };
        assert!((crg(2, &silent) - 1.0 / 3.0).abs() < 1e-12);
    }
}
