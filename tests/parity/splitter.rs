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

#[test]
fn our_rules_agree_with_labelled_sentences() {
    let Some(path) = data("text/radgenome_dev.csv") else { return };
    let Structures::Rules(rules) = Structures::load("ours").unwrap() else { panic!("our rules are rules") };
    let names: Vec<String> = Structures::load("ours").unwrap().names().into_iter().map(String::from).collect();
    let mut by_volume: BTreeMap<String, Vec<(String, BTreeSet<String>)>> = BTreeMap::new();
    for record in csv::Reader::from_path(path).unwrap().records() {
        let record = record.unwrap();
        let labels = record[1].split('|').map(|name| name.replace("trachea and bronchie", "trachea_bronchi")).collect();
        by_volume.entry(record[0].to_string()).or_default().push((record[2].to_string(), labels));
    }
    let (mut hit, mut extra, mut missed) = (0.0, 0.0, 0.0);
    for rows in by_volume.values() {
        let sentences: Vec<String> = rows.iter().map(|(sentence, _)| sentence.clone()).collect();
        for (labels, (_, expected)) in rules.label(&sentences).iter().zip(rows) {
            let found: BTreeSet<String> = labels.iter().map(|&index| names[index].clone()).collect();
            hit += found.intersection(expected).count() as f64;
            extra += found.difference(expected).count() as f64;
            missed += expected.difference(&found).count() as f64;
        }
    }
    let (precision, recall) = (hit / (hit + extra), hit / (hit + missed));
    println!("structure rules: micro precision {precision:.3}, recall {recall:.3}");
    assert!(precision >= 0.90 && recall >= 0.90, "precision {precision}, recall {recall}");
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
