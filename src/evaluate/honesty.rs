//! What scores hide: collapse into one template, all-normal answers, repetition, contradictions, wrong sides, length.

use std::collections::HashSet;

use rayon::prelude::*;

use super::bleu::BleuCounts;
use super::scores::Scores;
use super::vocabulary::Vocabulary;
use super::{Pair, mean, ptb_like};
use crate::text::{FINDINGS, Side, Statement, contradictions, impossible_sides, read_statements, sides_of};

/// Reports compared with each other for self-BLEU.
const SAMPLE: usize = 60;

/// Adds the measures of collapse, contradiction, laterality and length; `found`: what each generated report affirms.
pub(super) fn add_metrics(pairs: &[Pair], found: &[[bool; 18]], scores: &mut Scores) {
    let unique: HashSet<&str> = pairs.iter().map(|pair| pair.generated.as_str()).collect();
    scores.add("collapse.unique_share", unique.len() as f64 / pairs.len() as f64);
    scores.add("collapse.self_bleu_4", self_bleu(pairs));
    scores.add_mean("collapse.all_normal_share", found.iter().map(|labels| share(!labels.contains(&true))));
    scores.add_mean("collapse.repeated_sentence_share", pairs.iter().map(|pair| repeated_share(&pair.generated)));
    let words = |text: fn(&Pair) -> &str| pairs.par_iter().map(|pair| ptb_like(text(pair)).len() as f64).collect::<Vec<_>>();
    let (generated, reference) = (words(|pair| &pair.generated), words(|pair| &pair.reference));
    scores.add("length.ratio", generated.iter().sum::<f64>() / reference.iter().sum::<f64>().max(1.0));
    scores.add_mean("length.words.generated", generated);
    scores.add_mean("length.words.reference", reference);
    let read = |text: fn(&Pair) -> &str| pairs.par_iter().map(|pair| read_statements(text(pair))).collect::<Vec<_>>();
    let (generated, reference) = (read(|pair| &pair.generated), read(|pair| &pair.reference));
    let contradicts = |statements: &Vec<Statement>| share(!contradictions(statements).is_empty());
    scores.add_mean("contradiction.reports.generated", generated.iter().map(contradicts));
    // what the rules find in the references is their noise
    scores.add_mean("contradiction.reports.reference", reference.iter().map(contradicts));
    scores.add_mean("laterality.impossible.generated", pairs.iter().map(|pair| share(!impossible_sides(&pair.generated).is_empty())));
    scores.add_mean("laterality.impossible.reference", pairs.iter().map(|pair| share(!impossible_sides(&pair.reference).is_empty())));
    add_sides(&generated, &reference, scores);
}

fn share(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// Of the findings that both reports affirm with a side: how many, on the same sides, on none in common.
fn add_sides(generated: &[Vec<Statement>], reference: &[Vec<Statement>], scores: &mut Scores) {
    let sided = |statements: &Vec<Statement>| -> Vec<Vec<Side>> { (0..FINDINGS.len()).map(|f| sides_of(statements, f)).collect() };
    let both = |(own, other): (&Vec<Statement>, &Vec<Statement>)| {
        let pairs = sided(own).into_iter().zip(sided(other));
        pairs.filter(|(own, other)| !own.is_empty() && !other.is_empty()).collect::<Vec<_>>()
    };
    let compared: Vec<(Vec<Side>, Vec<Side>)> = generated.iter().zip(reference).flat_map(both).collect();
    let of_all = |count: usize| count as f64 / compared.len().max(1) as f64;
    scores.add("laterality.compared", compared.len() as f64);
    scores.add("laterality.agreement", of_all(compared.iter().filter(|(own, other)| own == other).count()));
    let apart = |(own, other): &&(Vec<Side>, Vec<Side>)| own.iter().all(|side| !other.contains(side));
    scores.add("laterality.conflict", of_all(compared.iter().filter(apart).count()));
}

/// Mean BLEU-4 of each report of a sample against each other one.
fn self_bleu(pairs: &[Pair]) -> f64 {
    let step = pairs.len().div_ceil(SAMPLE).max(1);
    let mut words = Vocabulary::default();
    let mut number = |text: &str| ptb_like(text).iter().map(|word| words.id(word)).collect::<Vec<u32>>();
    let reports: Vec<Vec<u32>> = pairs.iter().step_by(step).map(|pair| number(&pair.generated)).collect();
    let others = |i: usize| reports.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, report)| report);
    let against = |i: usize| others(i).map(|other| BleuCounts::of(&reports[i], other).scores()[3]).collect::<Vec<f64>>();
    mean(&(0..reports.len()).into_par_iter().flat_map_iter(against).collect::<Vec<f64>>())
}

fn repeated_share(report: &str) -> f64 {
    let sentences: Vec<&str> =
        report.split(". ").map(|sentence| sentence.trim_matches(['.', ' '])).filter(|sentence| !sentence.is_empty()).collect();
    let distinct: HashSet<&&str> = sentences.iter().collect();
    (sentences.len() - distinct.len()) as f64 / sentences.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(pairs: &[(&str, &str)]) -> Scores {
        let pair = |(generated, reference): &(&str, &str)| Pair {
            study: String::new(),
            generated: (*generated).to_string(),
            reference: (*reference).to_string(),
            labels: None,
        };
        let mut scores = Scores::new(pairs.len());
        add_metrics(&pairs.iter().map(pair).collect::<Vec<_>>(), &vec![[false; 18]; pairs.len()], &mut scores);
        scores
    }

    #[test]
    fn sides_are_compared_where_both_reports_name_one() {
        let scores = scored(&[
            ("Right pleural effusion. A nodule in the left lung.", "Left pleural effusion. A nodule in the left lung."),
            ("Bilateral pleural effusion.", "Left pleural effusion. Consolidation in the right lung."),
            ("Pleural effusion.", "Left pleural effusion."),
        ]);
        assert_eq!(scores.corpus["laterality.compared"], 3.0);
        assert!((scores.corpus["laterality.agreement"] - 1.0 / 3.0).abs() < 1e-12);
        assert!((scores.corpus["laterality.conflict"] - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn contradictions_repetition_and_length_are_counted_a_report() {
        let scores = scored(&[
            ("Pleural effusion on the left. No pleural effusion.", "No pleural effusion."),
            ("Both lungs are clear. Both lungs are clear.", "Both lungs are clear."),
        ]);
        assert_eq!(scores.corpus["contradiction.reports.generated"], 0.5);
        assert_eq!(scores.corpus["contradiction.reports.reference"], 0.0);
        assert_eq!(scores.corpus["collapse.repeated_sentence_share"], 0.25);
        assert_eq!(scores.corpus["length.ratio"], 16.0 / 7.0);
        assert_eq!(scores.studies[0]["contradiction.reports.generated"], 1.0);
    }
}
