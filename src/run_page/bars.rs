//! Bars with intervals: a percentile bootstrap over studies, the same draws for every run, so that differences are paired.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::evaluate::{LabelSums, label_scores};
use crate::text::FINDINGS;
use crate::viewer::{Bar, BarGroup};

use super::files::Scored;

const DRAWS: usize = 1000;

/// Label scores that have bars.
const LABELS: [&str; 2] = ["labels.f1.micro", "labels.f1.macro_supported"];

/// A group a metric, for the runs that were evaluated on the same studies as the first; and what the intervals are.
pub(super) fn groups(scored: &[Scored], seed: u64) -> (Vec<BarGroup>, String) {
    let Some(first) = scored.first() else { return (Vec::new(), String::new()) };
    let names = |decoder: &Scored| decoder.pairs.iter().map(|pair| pair.study.clone()).collect::<Vec<_>>();
    let runs: Vec<&Scored> = scored.iter().filter(|decoder| names(decoder) == names(first)).collect();
    let draws = draws(first.pairs.len(), seed);
    let mut groups: Vec<BarGroup> = LABELS.iter().map(|name| label_group(name, &runs, &draws)).collect();
    for column in first.columns() {
        let values: Option<Vec<Vec<f64>>> = runs.iter().map(|run| run.column(&column)).collect();
        if let Some(values) = values.filter(|values| values.iter().flatten().all(|value| value.is_finite() && *value >= 0.0)) {
            let of = |run: usize, chosen: &[usize]| chosen.iter().map(|&study| values[run][study]).sum::<f64>() / chosen.len() as f64;
            groups.push(group(&format!("{column}, mean of studies"), &runs, &draws, &of));
        }
    }
    (groups, format!("{} studies; 95% intervals: {DRAWS} bootstrap draws of studies, differences paired", first.pairs.len()))
}

/// All studies, then the draws.
fn draws(studies: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let whole = (0..studies).collect();
    let mut draw = || (0..studies).map(|_| rng.random_range(0..studies)).collect();
    std::iter::once(whole).chain((0..DRAWS).map(|_| draw())).collect()
}

fn label_group(name: &str, runs: &[&Scored], draws: &[Vec<usize>]) -> BarGroup {
    let of = |run: usize, chosen: &[usize]| {
        let pairs = chosen.iter().map(|&study| &runs[run].pairs[study]);
        let scores = LabelSums::of(pairs.map(|pair| (&pair.expected, &pair.found))).scores();
        scores.into_iter().find_map(|(own, value)| (own == name).then_some(value)).expect("every name of `LABELS` is a label score")
    };
    group(name, runs, draws, &of)
}

fn group(metric: &str, runs: &[&Scored], draws: &[Vec<usize>], of: &dyn Fn(usize, &[usize]) -> f64) -> BarGroup {
    let values: Vec<Vec<f64>> = (0..runs.len()).map(|run| draws.iter().map(|chosen| of(run, chosen)).collect()).collect();
    let bar = |(index, run): (usize, &&Scored)| {
        let own = &values[index];
        let above: Vec<f64> = own.iter().zip(&values[0]).map(|(own, first)| own - first).collect();
        let difference = (index > 0).then(|| (above[0], middle(&above[1..])));
        Bar { run: run.name.clone(), value: own[0], interval: middle(&own[1..]), difference }
    };
    let bars: Vec<Bar> = runs.iter().enumerate().map(bar).collect();
    let highest = bars.iter().map(|bar| bar.interval[1].max(bar.value)).fold(0.0, f64::max);
    // a round end, so that bars of several metrics can be read off by eye
    let round = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0].into_iter().find(|end| highest <= *end);
    BarGroup { metric: metric.to_string(), most: round.unwrap_or(highest.ceil()), bars }
}

/// The 2.5th and 97.5th percentiles.
fn middle(values: &[f64]) -> [f64; 2] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [sorted[sorted.len() * 25 / 1000], sorted[(sorted.len() * 975 / 1000).saturating_sub(1)]]
}

/// Rows: finding with its support, F1 of each decoder; findings that no reference has are left out.
pub(super) fn findings(scored: &[Scored]) -> Vec<Vec<String>> {
    let score = |decoder: &Scored| {
        let (expected, found): (Vec<_>, Vec<_>) = decoder.pairs.iter().map(|pair| (pair.expected, pair.found)).unzip();
        label_scores(&expected, &found)
    };
    let scores: Vec<_> = scored.iter().map(score).collect();
    let supported = FINDINGS.iter().enumerate().filter(|(finding, _)| scores[0][*finding].support > 0);
    let row = |(finding, name): (usize, &&str)| {
        let f1 = scores.iter().map(|decoder| format!("{:.3}", decoder[finding].f1));
        std::iter::once(format!("{name} ({})", scores[0][finding].support)).chain(f1).collect()
    };
    supported.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Counts;

    #[test]
    fn f1_of_counts_is_that_of_the_evaluation() {
        let pairs: Vec<([bool; 18], [bool; 18])> = (0..40u32)
            .map(|study| {
                (
                    std::array::from_fn(|f| (study * 7 + f as u32).is_multiple_of(5)),
                    std::array::from_fn(|f| (study * 3 + f as u32).is_multiple_of(4)),
                )
            })
            .collect();
        let (expected, found): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        let mut own = [[0.0; 3]; 18];
        for (expected, found) in &pairs {
            for finding in 0..18 {
                own[finding][0] += f64::from(u8::from(expected[finding] && found[finding]));
                own[finding][1] += f64::from(u8::from(!expected[finding] && found[finding]));
                own[finding][2] += f64::from(u8::from(expected[finding] && !found[finding]));
            }
        }
        for (scores, count) in label_scores(&expected, &found).iter().zip(own) {
            let [hit, extra, missed] = count;
            assert!((scores.f1 - Counts { hit, extra, missed }.scores().f1).abs() < 1e-12);
        }
    }

    #[test]
    fn percentiles_leave_a_fortieth_on_either_side() {
        let values: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        assert_eq!(middle(&values), [25.0, 974.0]);
    }
}
