//! Structures of sentences: the authors' splitter exactly, ours measured on labelled sentences.

use ctscribe::text::{Labeller, Structures, Study, audit_labels, audit_structures, read_studies};

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

/// The half of a name that the rules were written with (0), or not looked at (1).
fn half(name: &str) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(name.as_bytes());
    crc.sum() % 2
}

/// All volumes of a patient are in one half: `valid_118_b_1` is patient 118.
fn patient(volume: &str) -> String {
    volume.split('_').take(2).collect::<Vec<_>>().join("_")
}

/// Each sentence as a study of its own: nothing can be carried from the one before.
fn alone(studies: &[Study]) -> Vec<Study> {
    let one = |study: &Study, at: usize| Study {
        sentences: study.sentences.as_ref().map(|sentences| vec![sentences[at].clone()]),
        expected: study.expected.as_ref().map(|expected| vec![expected[at].clone()]),
        ..study.clone()
    };
    studies.iter().flat_map(|study| (0..study.sentences.as_ref().unwrap().len()).map(|at| one(study, at)).collect::<Vec<_>>()).collect()
}

#[test]
fn our_rules_agree_with_labelled_sentences() {
    let Some(path) = data("text/radgenome_dev.csv") else { return };
    let structures = Structures::load("ours").unwrap();
    // Within a volume the file orders sentences by region, which helps the carrying over: each alone must reach the numbers too.
    let studies = read_studies(&path).unwrap();
    let of_half = |which: u32| studies.iter().filter(|study| half(&patient(&study.name)) == which).cloned().collect::<Vec<_>>();
    let micro = |studies: &[Study]| audit_structures(&structures, studies).micro.unwrap();
    for (name, half) in [("half 0, read while the rules were written", of_half(0)), ("half 1, not read", of_half(1))] {
        let micro = micro(&half);
        println!("{name}: {} volumes, precision {:.4}, recall {:.4}", half.len(), micro.precision(), micro.recall());
    }
    for (name, studies) in [("in the file's order", studies.clone()), ("each alone", alone(&studies))] {
        let audit = audit_structures(&structures, &studies);
        for structure in &audit.structures {
            let agreement = structure.agreement.unwrap();
            println!("{name}, {}: precision {:.3}, recall {:.3}", structure.name, agreement.precision(), agreement.recall());
        }
        let micro = audit.micro.unwrap();
        println!("{name}, micro: precision {:.4}, recall {:.4}", micro.precision(), micro.recall());
        assert!(audit.sentences == 5454 && micro.precision() >= 0.93 && micro.recall() >= 0.93, "{name}: {micro:?}");
    }
}

#[test]
fn no_character_of_a_real_report_is_lost() {
    let Some(path) = data("text/ctclip_train.csv") else { return };
    let structures = Structures::load("ours").unwrap();
    let studies = read_studies(&path).unwrap();
    let dense = |text: &str| text.split_whitespace().collect::<String>();
    for study in &studies {
        let labelled = structures.labelled(&study.text);
        assert_eq!(labelled.iter().map(|(sentence, _)| dense(sentence)).collect::<String>(), dense(&study.text));
        let assignment = structures.assign(&study.text);
        let of = |belongs: &dyn Fn(&[usize]) -> bool| -> Vec<&str> {
            labelled.iter().filter(|(_, own)| belongs(own)).map(|(sentence, _)| sentence.as_str()).collect()
        };
        assert_eq!(of(&|own| own.is_empty()), assignment.unassigned);
        for (index, text) in assignment.texts.iter().enumerate() {
            assert_eq!(of(&|own| own.contains(&index)).join(" "), text.as_deref().unwrap_or_default());
        }
    }
    let audit = audit_structures(&structures, &studies);
    println!("{audit}");
    assert_eq!((audit.reports, audit.characters_lost, audit.by_count.iter().sum::<usize>()), (800, 0, audit.sentences));
    assert_eq!(audit.unassigned.iter().map(|(_, count)| count).sum::<usize>(), audit.by_count[0]);
    assert!(20 * audit.by_count[0] < audit.sentences, "more than 5 % of the sentences are of no structure");
}

#[test]
fn the_rule_labeller_agrees_with_the_silver_labels_of_real_reports() {
    let Some(path) = data("text/ctclip_train.csv") else { return };
    let studies = read_studies(&path).unwrap();
    for (name, which) in [("half 0, read while the rules were written", 0), ("half 1, not read", 1)] {
        let audit = audit_labels(studies.iter().filter(|study| half(&study.text) == which), &Labeller::Rules).unwrap();
        println!("{name}: {} reports, macro F1 {:.4}, micro F1 {:.4}", audit.reports, audit.macro_f1, audit.micro_f1);
    }
    let audit = audit_labels(&studies, &Labeller::Rules).unwrap();
    println!("{audit}");
    assert!(audit.reports == 800 && audit.macro_f1 >= 0.94 && audit.micro_f1 >= 0.94, "macro {}, micro {}", audit.macro_f1, audit.micro_f1);
}
