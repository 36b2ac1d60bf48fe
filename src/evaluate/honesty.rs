//! What scores hide: collapse into one template, all-normal answers, repetition.

use std::collections::HashSet;

use super::{Pair, bleu, mean, ptb_like};

/// Reports compared with each other for self-BLEU.
const SAMPLE: usize = 60;

/// Adds the share of unique reports, self-BLEU-4, the share of reports without any finding, repeated sentences and length.
pub(super) fn add_metrics(pairs: &[Pair], found: &[[bool; 18]], add: &mut dyn FnMut(&str, f64) -> Option<f64>) {
    let share = |count: usize| count as f64 / pairs.len() as f64;
    let unique: HashSet<&str> = pairs.iter().map(|pair| pair.generated.as_str()).collect();
    add("collapse.unique_share", share(unique.len()));
    add("collapse.all_normal_share", share(found.iter().filter(|labels| !labels.contains(&true)).count()));
    add("collapse.self_bleu_4", self_bleu(pairs));
    let repeated: Vec<f64> = pairs.iter().map(|pair| repeated_share(&pair.generated)).collect();
    add("collapse.repeated_sentence_share", mean(&repeated));
    let words = |text: fn(&Pair) -> &str| mean(&pairs.iter().map(|pair| ptb_like(text(pair)).len() as f64).collect::<Vec<_>>());
    add("length.words.generated", words(|pair| &pair.generated));
    add("length.words.reference", words(|pair| &pair.reference));
}

/// Mean BLEU-4 of each generated report against the next ones of a sample.
fn self_bleu(pairs: &[Pair]) -> f64 {
    let step = pairs.len().div_ceil(SAMPLE).max(1);
    let reports: Vec<Vec<String>> = pairs.iter().step_by(step).map(|pair| ptb_like(&pair.generated)).collect();
    let others = |i: usize| reports.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, report)| report);
    let against: Vec<(Vec<String>, Vec<String>)> =
        (0..reports.len()).flat_map(|i| others(i).map(|other| (reports[i].clone(), other.clone())).collect::<Vec<_>>()).collect();
    let values: Vec<f64> = bleu(&against).per_item.iter().map(|scores| scores[3]).collect();
    mean(&values)
}

fn repeated_share(report: &str) -> f64 {
    let sentences: Vec<&str> =
        report.split(". ").map(|sentence| sentence.trim_matches(['.', ' '])).filter(|sentence| !sentence.is_empty()).collect();
    let distinct: HashSet<&&str> = sentences.iter().collect();
    (sentences.len() - distinct.len()) as f64 / sentences.len().max(1) as f64
}
