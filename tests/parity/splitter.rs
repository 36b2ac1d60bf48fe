//! Structures of sentences: the authors' splitter exactly, ours measured on labelled sentences.

use std::collections::{BTreeMap, BTreeSet};

use ctscribe::text::{FINDINGS, Structures, label_report};

use crate::fixtures::{data, folder};

#[test]
fn the_authors_splitter_is_reproduced_to_the_blank() {
    let Some(folder) = folder("method") else { return };
    let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("splitter.json")).unwrap()).unwrap();
    let structures = Structures::load("reference").unwrap();
    let mut compared = 0;
    for case in cases.as_array().unwrap() {
        let found = structures.assign(case["text"].as_str().unwrap());
        if let Some(expected) = case["stage1"]["structures"].as_array() {
            let expected: Vec<Option<String>> = expected.iter().map(|text| Some(text.as_str().unwrap().to_string())).collect();
            assert_eq!(found.texts, expected, "{}", case["text"]);
            compared += 1;
        }
    }
    assert!(compared > 5);
}

/// The labelled sentences of each volume, in the file's order: regions in the alphabet's order, not the report's.
fn labelled_sentences() -> Option<BTreeMap<String, Vec<(String, BTreeSet<String>)>>> {
    let mut by_volume: BTreeMap<String, Vec<(String, BTreeSet<String>)>> = BTreeMap::new();
    for record in csv::Reader::from_path(data("text/radgenome_dev.csv")?).unwrap().records() {
        let record = record.unwrap();
        let labels = record[1].split('|').map(|name| name.replace("trachea and bronchie", "trachea_bronchi")).collect();
        by_volume.entry(record[0].to_string()).or_default().push((record[2].to_string(), labels));
    }
    Some(by_volume)
}

/// Hits, extra and missed labels a structure; `alone`: each sentence without the one before.
fn count(volumes: &BTreeMap<String, Vec<(String, BTreeSet<String>)>>, alone: bool) -> BTreeMap<String, [f64; 3]> {
    let structures = Structures::load("ours").unwrap();
    let Structures::Rules(rules) = &structures else { panic!("our rules are rules") };
    let mut counts: BTreeMap<String, [f64; 3]> = BTreeMap::new();
    for rows in volumes.values() {
        let sentences: Vec<String> = rows.iter().map(|(sentence, _)| sentence.clone()).collect();
        let labels =
            if alone { sentences.iter().flat_map(|s| rules.label(std::slice::from_ref(s))).collect() } else { rules.label(&sentences) };
        for (labels, (_, expected)) in labels.iter().zip(rows) {
            let found: BTreeSet<String> = labels.iter().map(|&index| structures.names()[index].to_string()).collect();
            found.intersection(expected).for_each(|name| counts.entry(name.clone()).or_default()[0] += 1.0);
            found.difference(expected).for_each(|name| counts.entry(name.clone()).or_default()[1] += 1.0);
            expected.difference(&found).for_each(|name| counts.entry(name.clone()).or_default()[2] += 1.0);
        }
    }
    counts
}

fn precision_recall(count: [f64; 3]) -> (f64, f64) {
    (count[0] / (count[0] + count[1]), count[0] / (count[0] + count[2]))
}

#[test]
fn our_rules_agree_with_labelled_sentences() {
    let Some(volumes) = labelled_sentences() else { return };
    for alone in [false, true] {
        let counts = count(&volumes, alone);
        println!("{}", if alone { "each sentence alone" } else { "in the file's order" });
        for (name, count) in &counts {
            let (precision, recall) = precision_recall(*count);
            println!("  {name}: precision {precision:.3}, recall {recall:.3}, {count:?}");
        }
        let micro = counts.values().fold([0.0; 3], |sum, count| [0, 1, 2].map(|i| sum[i] + count[i]));
        let (precision, recall) = precision_recall(micro);
        println!("  micro: precision {precision:.4}, recall {recall:.4}");
        assert!(precision >= 0.93 && recall >= 0.93, "precision {precision}, recall {recall}");
    }
}

#[test]
fn no_character_of_a_real_report_is_lost() {
    let Some(path) = data("text/ctclip_train.csv") else { return };
    let structures = Structures::load("ours").unwrap();
    let dense = |text: &str| text.split_whitespace().collect::<String>();
    let (mut reports, mut sentences, mut unassigned) = (0, 0, 0);
    for record in csv::Reader::from_path(path).unwrap().records() {
        let report = record.unwrap()[1].to_string();
        let labelled = structures.labelled(&report);
        assert_eq!(labelled.iter().map(|(sentence, _)| dense(sentence)).collect::<String>(), dense(&report));
        let assignment = structures.assign(&report);
        let own: Vec<&String> = labelled.iter().filter(|(_, labels)| labels.is_empty()).map(|(sentence, _)| sentence).collect();
        assert_eq!(own, assignment.unassigned.iter().collect::<Vec<_>>());
        for (index, text) in assignment.texts.iter().enumerate() {
            let own = labelled.iter().filter(|(_, labels)| labels.contains(&index)).map(|(sentence, _)| sentence.as_str());
            assert_eq!(own.collect::<Vec<_>>().join(" "), text.as_deref().unwrap_or_default());
        }
        (reports, sentences, unassigned) = (reports + 1, sentences + labelled.len(), unassigned + own.len());
    }
    println!("{reports} reports, {sentences} sentences, {unassigned} of no structure");
    assert!(reports == 800 && (unassigned as f64) < 0.05 * sentences as f64);
}

#[test]
fn the_rule_labeller_agrees_with_the_silver_labels_of_real_reports() {
    let Some(path) = data("text/ctclip_train.csv") else { return };
    let (mut hit, mut extra, mut missed) = ([0.0; 18], [0.0; 18], [0.0; 18]);
    for record in csv::Reader::from_path(path).unwrap().records() {
        let record = record.unwrap();
        let found = label_report(&record[1]);
        for finding in 0..18 {
            match (found[finding], &record[2 + finding] == "1") {
                (true, true) => hit[finding] += 1.0,
                (true, false) => extra[finding] += 1.0,
                (false, true) => missed[finding] += 1.0,
                _ => {}
            }
        }
    }
    let f1 = |finding: usize| 2.0 * hit[finding] / (2.0 * hit[finding] + extra[finding] + missed[finding]);
    for (finding, name) in FINDINGS.iter().enumerate() {
        println!("{name}: F1 {:.3}", f1(finding));
    }
    let macro_f1 = (0..18).map(f1).sum::<f64>() / 18.0;
    println!("macro F1 {macro_f1:.3}");
    assert!(macro_f1 > 0.7, "macro F1 {macro_f1}");
}
