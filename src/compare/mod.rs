//! Runs and outside predictions side by side over the same studies: scores with intervals, differences with paired tests.

mod comparison;
mod ledger;
mod page;
mod resample;
mod tables;

use std::collections::{BTreeSet, HashSet};

use crate::evaluate::{Evaluation, LabelScores, label_scores};
use crate::text::FINDINGS;
use crate::{Error, Result};

pub use comparison::{Comparing, Comparison, Difference, FindingRow, MetricRow, RunFacts};
use ledger::{Columns, Ledger, finding_name};
use resample::{Bootstrap, holm, permutation_test};

/// Scores that are tested, if the runs have them; beginnings of names.
const TESTED: [&str; 9] = [
    "bleu_4.corpus.ptb_like",
    "rouge_l.coco.ptb_like",
    "cider_d.coco.ptb_like",
    "meteor.nltk.ptb_like",
    "meteor-no-synonyms.nltk.ptb_like",
    "bert_score.f1.",
    "labels.f1.micro",
    "labels.f1.macro_supported",
    "labels.crg",
];

/// Compares runs; of different splits, or with other references, they are refused unless `comparing` allows it.
pub fn compare(runs: &[Evaluation], comparing: &Comparing) -> Result<Comparison> {
    let Some(first) = runs.first() else { return Err(Error::Invalid("there is no run to compare".to_string())) };
    check(runs, comparing)?;
    let whole = runs.iter().all(|run| run.split_sha256 == first.split_sha256);
    let names = shared_studies(runs)?;
    let columns = Columns::of(runs);
    let ledgers: Vec<Ledger> = runs.iter().map(|run| Ledger::of(run, &names, &columns)).collect();
    let bootstrap = Bootstrap::new(&ledgers, &columns, comparing.draws, comparing.seed);
    Ok(Comparison {
        runs: runs.iter().map(|run| run.run.clone()).collect(),
        facts: runs.iter().map(facts).collect(),
        studies: names.len(),
        comparing: comparing.clone(),
        metrics: metrics(runs, &ledgers, &columns, &bootstrap, whole),
        differences: differences(runs, &ledgers, &columns, &bootstrap, comparing),
        findings: findings(&ledgers, &columns, &bootstrap),
    })
}

fn check(runs: &[Evaluation], comparing: &Comparing) -> Result<()> {
    let first = &runs[0];
    for run in &runs[1..] {
        let (one, other) = (&first.run, &run.run);
        if run.labeller != first.labeller {
            let what = format!("{one} was labelled by {}, {other} by {}: evaluate both again", first.labeller, run.labeller);
            return Err(Error::Invalid(what));
        }
        let (own, others) = (&first.reference_labeller, &run.reference_labeller);
        if own != others {
            return Err(Error::Invalid(format!(
                "the references' findings of {one} are {own}, those of {other} {others}: evaluate both again"
            )));
        }
        if comparing.allow_different_splits {
            continue;
        }
        let hint = "--allow-different-splits compares them on the studies that all have";
        if run.split_sha256 != first.split_sha256 {
            let what = format!("{one} and {other} were evaluated on different studies ({} and {}); {hint}", first.studies, run.studies);
            return Err(Error::Invalid(what));
        }
        if run.references_sha256 != first.references_sha256 {
            return Err(Error::Invalid(format!("{one} and {other} were evaluated against different reference reports; {hint}")));
        }
    }
    Ok(())
}

/// Names that all runs have, in the first one's order.
fn shared_studies(runs: &[Evaluation]) -> Result<Vec<&str>> {
    let names = |run: &'_ Evaluation| run.per_study.iter().map(|study| study.study.clone()).collect::<HashSet<String>>();
    let others: Vec<HashSet<String>> = runs[1..].iter().map(names).collect();
    let shared = runs[0].per_study.iter().map(|study| study.study.as_str()).filter(|name| others.iter().all(|other| other.contains(*name)));
    let shared: Vec<&str> = shared.collect();
    if shared.is_empty() {
        return Err(Error::Invalid("the runs have no study in common".to_string()));
    }
    Ok(shared)
}

fn facts(run: &Evaluation) -> RunFacts {
    RunFacts {
        studies: run.studies,
        split_sha256: run.split_sha256.clone(),
        references_sha256: run.references_sha256.clone(),
        labeller: run.labeller.clone(),
        instruments: run.instruments.clone(),
        weights: run.weights.clone(),
        writing: run.writing.clone(),
    }
}

/// All scores; on a part of the studies only those that follow from sums, without CIDEr, whose document frequencies are a whole split's.
fn metrics(runs: &[Evaluation], ledgers: &[Ledger], columns: &Columns, bootstrap: &Bootstrap, whole: bool) -> Vec<MetricRow> {
    let parts: Vec<Vec<f64>> = ledgers.iter().map(|ledger| columns.values(&ledger.sums(std::iter::repeat(1.0)))).collect();
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.metrics.keys()).collect();
    let row = |name: &String| {
        let place = columns.place(name);
        let values = match place {
            Some(place) if !whole => parts.iter().map(|part| Some(part[place])).collect(),
            _ => runs.iter().map(|run| run.metrics.get(name).copied()).collect(),
        };
        let intervals = place.map(|place| (0..runs.len()).map(|run| bootstrap.interval(run, place)).collect());
        MetricRow { name: name.clone(), values, intervals }
    };
    let kept = |name: &&String| whole || (columns.place(name).is_some() && !name.starts_with("cider"));
    names.into_iter().filter(kept).map(row).collect()
}

fn differences(
    runs: &[Evaluation],
    ledgers: &[Ledger],
    columns: &Columns,
    bootstrap: &Bootstrap,
    comparing: &Comparing,
) -> Vec<Difference> {
    let whole = runs.iter().all(|run| run.split_sha256 == runs[0].split_sha256);
    let wanted = |name: &&String| comparing.tested.contains(name) || TESTED.iter().any(|tested| name.starts_with(tested));
    let tested: Vec<&String> = columns.names().iter().filter(wanted).filter(|name| whole || !name.starts_with("cider")).collect();
    let mut rows = Vec::new();
    for (run, ledger) in ledgers.iter().enumerate().skip(1) {
        let p = permutation_test(&ledgers[0], ledger, columns, (comparing.permutations, comparing.seed));
        let value = |ledger: &Ledger| columns.values(&ledger.sums(std::iter::repeat(1.0)));
        let (own, other) = (value(&ledgers[0]), value(ledger));
        for name in &tested {
            let Some(place) = columns.place(name) else { continue };
            rows.push(Difference {
                run: runs[run].run.clone(),
                metric: (*name).clone(),
                difference: other[place] - own[place],
                interval: bootstrap.difference(run, place),
                p: p[place],
                p_holm: 1.0,
                wins_ties_losses: wins_ties_losses(name, &ledgers[0], ledger),
            });
        }
    }
    let corrected = holm(&rows.iter().map(|row| row.p).collect::<Vec<_>>());
    rows.iter_mut().zip(corrected).for_each(|(row, p)| row.p_holm = p);
    rows
}

fn wins_ties_losses(name: &str, first: &Ledger, run: &Ledger) -> [usize; 3] {
    let value = |study: &crate::evaluate::StudyScores| {
        let own = study.scores.get(name).copied();
        own.or_else(|| bleu_of(name, study)).or_else(|| study.scores.get("labels.f1.samples").copied()).unwrap_or(0.0)
    };
    let deltas: Vec<f64> = first.studies.iter().zip(&run.studies).map(|(own, other)| value(other) - value(own)).collect();
    let (wins, losses) = (deltas.iter().filter(|delta| **delta > 0.0).count(), deltas.iter().filter(|delta| **delta < 0.0).count());
    [wins, deltas.len() - wins - losses, losses]
}

/// `bleu_N.corpus.TOKENISATION` of one study.
fn bleu_of(name: &str, study: &crate::evaluate::StudyScores) -> Option<f64> {
    let (order, tokenisation) = name.strip_prefix("bleu_")?.split_once(".corpus.")?;
    let scores = study.bleu.get(tokenisation)?.scores();
    Some(order.parse().map_or(scores.iter().sum::<f64>() / 4.0, |order: usize| scores[order - 1]))
}

fn findings(ledgers: &[Ledger], columns: &Columns, bootstrap: &Bootstrap) -> Vec<FindingRow> {
    let labels = |ledger: &Ledger| {
        let (expected, found): (Vec<_>, Vec<_>) = ledger.studies.iter().map(|study| (study.expected, study.found)).unzip();
        label_scores(&expected, &found)
    };
    let runs: Vec<Vec<LabelScores>> = ledgers.iter().map(labels).collect();
    let row = |(finding, name): (usize, &&str)| {
        let place = columns.place(&finding_name(name))?;
        let scores: Vec<LabelScores> = runs.iter().map(|run| run[finding]).collect();
        let support = scores.iter().map(|scores| scores.support).max().unwrap_or(0);
        let intervals = (0..runs.len()).map(|run| bootstrap.interval(run, place)).collect();
        (support > 0).then(|| FindingRow { name: (*name).to_string(), support, scores, intervals })
    };
    FINDINGS.iter().enumerate().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use crate::evaluate::{Instruments, Pair, evaluate};

    use super::*;

    const REFERENCE: &str = "Heart size is increased. No pleural effusion.";

    fn run(name: &str, generated: &str, studies: &[&str]) -> Evaluation {
        let pair = |study: &&str| Pair {
            study: (*study).to_string(),
            generated: generated.to_string(),
            reference: REFERENCE.to_string(),
            labels: None,
        };
        evaluate(name, &studies.iter().map(pair).collect::<Vec<_>>(), &Instruments::default()).unwrap()
    }

    const STUDIES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    fn seeded() -> Comparing {
        Comparing { draws: 200, permutations: 400, ..Comparing::seeded(1) }
    }

    #[test]
    fn the_better_run_wins_every_study() {
        let runs = [run("poor", "The lungs are clear.", &STUDIES), run("good", REFERENCE, &STUDIES)];
        let comparison = compare(&runs, &seeded()).unwrap();
        // one reference for all has no rare word, so that CIDEr sees nothing
        for difference in comparison.differences.iter().filter(|difference| !difference.metric.starts_with("cider")) {
            assert_eq!(difference.wins_ties_losses, [8, 0, 0], "{}", difference.metric);
            // of 256 swaps of eight studies two are as large; the test cannot know better
            assert!(difference.p < 0.03 && difference.p_holm >= difference.p, "{difference:?}");
        }
        let f1 = comparison.differences.iter().find(|d| d.metric == "labels.f1.macro_supported").unwrap();
        assert_eq!((f1.difference, f1.interval), (1.0, [1.0, 1.0]));
        assert!(comparison.markdown().contains("| labels.f1.macro_supported | 0.0000 [0.0000, 0.0000] | 1.0000 [1.0000, 1.0000] |"));
    }

    #[test]
    fn a_run_does_not_differ_from_itself() {
        let runs = [run("one", "The heart is big.", &STUDIES), run("other", "The heart is big.", &STUDIES)];
        let comparison = compare(&runs, &seeded()).unwrap();
        assert!(
            comparison.differences.iter().all(|d| d.difference == 0.0 && d.p == 1.0 && d.p_holm == 1.0 && d.wins_ties_losses == [0, 8, 0])
        );
    }

    #[test]
    fn scores_from_sums_are_those_of_the_evaluation() {
        let generated =
            ["No pleural effusion.", "Heart size is increased. Pleural effusion on the left.", "Cardiomegaly. No effusion is seen."];
        let pairs: Vec<Pair> = generated
            .iter()
            .enumerate()
            .map(|(n, text)| Pair { study: n.to_string(), generated: (*text).to_string(), reference: REFERENCE.to_string(), labels: None })
            .collect();
        let evaluation = evaluate("run", &pairs, &Instruments::default()).unwrap();
        let columns = Columns::of(std::slice::from_ref(&evaluation));
        let ledger = Ledger::of(&evaluation, &["0", "1", "2"], &columns);
        let values = columns.values(&ledger.sums(std::iter::repeat(1.0)));
        let mut compared = 0;
        for (name, value) in columns.names().iter().zip(values) {
            if let Some(expected) = evaluation.metrics.get(name) {
                assert!((value - expected).abs() < 1e-12, "{name}: {value} is not {expected}");
                compared += 1;
            }
        }
        assert!(compared > 50, "{compared}");
    }

    #[test]
    fn runs_of_different_studies_are_refused_unless_told_and_then_compared_on_the_common_ones() {
        let runs = [run("one", "The heart is big.", &STUDIES), run("other", REFERENCE, &STUDIES[3..])];
        let message = compare(&runs, &seeded()).unwrap_err().to_string();
        assert!(message.contains("one and other were evaluated on different studies (8 and 5)"), "{message}");
        let comparison = compare(&runs, &Comparing { allow_different_splits: true, ..seeded() }).unwrap();
        assert_eq!(comparison.studies, 5);
        assert!(comparison.metrics.iter().all(|row| !row.name.starts_with("cider") && row.name != "collapse.unique_share"));
    }

    #[test]
    fn other_references_are_refused() {
        let mut other = run("other", "x", &STUDIES);
        other.references_sha256 = "else".to_string();
        let message = compare(&[run("one", "x", &STUDIES), other], &seeded()).unwrap_err().to_string();
        assert!(message.contains("different reference reports"), "{message}");
    }
}
