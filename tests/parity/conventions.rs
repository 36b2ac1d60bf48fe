//! Metrics against the programs that others publish with: NLTK, rouge-score, sacrebleu, pycocoevalcap, bert-score, METEOR 1.5
//! (tests/fixtures/metrics, written by the script there).

use std::path::{Path, PathBuf};

use ctscribe::evaluate::{
    BertScore, BleuCounts, ChrfCounts, Cider, Instruments, Meteor, Pair, Smoothing, Vocabulary, WordNet, bleu, evaluate, meteor_jar, plain,
    porter_stem, ptb_like, rouge_l, rouge_l_google, rouge_words,
};
use serde_json::Value;

use crate::fixtures::folder;

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(own(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// (hypothesis, reference) as they were written.
fn pairs(scores: &Value) -> Vec<(String, String)> {
    let text = |pair: &Value, side: usize| pair[side].as_str().unwrap().to_string();
    scores["pairs"].as_array().unwrap().iter().map(|pair| (text(pair, 0), text(pair, 1))).collect()
}

type Words = Vec<(Vec<String>, Vec<String>)>;

/// Both tokenisations, by their names.
fn tokens(scores: &Value) -> [(&'static str, Words); 2] {
    let of = |tokenise: &dyn Fn(&str) -> Vec<String>| pairs(scores).iter().map(|(own, other)| (tokenise(own), tokenise(other))).collect();
    [("ptb_like", of(&ptb_like)), ("plain", of(&|text| plain(&text.to_lowercase())))]
}

#[track_caller]
fn all_near(what: &str, found: &[f64], expected: &Value, tolerance: f64) {
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{what}, pair {at}: {found} is not {expected}");
    }
}

#[test]
fn words_are_those_that_the_others_counted() {
    let scores = read("scores.json");
    for (name, words) in tokens(&scores) {
        assert_eq!(serde_json::to_value(words).unwrap(), scores[name]["tokens"], "{name}");
    }
}

#[test]
fn stems_are_nltks() {
    let stems = read("stems.json");
    let stems = stems["stems"].as_object().unwrap();
    assert!(stems.len() > 2000);
    for (word, stem) in stems {
        assert_eq!(porter_stem(word), stem.as_str().unwrap(), "{word}");
    }
}

/// METEOR of each pair.
fn meteor(words: &Words, wordnet: Option<&WordNet>) -> Vec<f64> {
    let mut known = Vocabulary::default();
    let mut number = |text: &Vec<String>| text.iter().map(|word| known.id(word)).collect::<Vec<u32>>();
    let numbered: Vec<(Vec<u32>, Vec<u32>)> = words.iter().map(|(own, other)| (number(own), number(other))).collect();
    let meteor = Meteor::new(known.words(), wordnet).unwrap();
    numbered.iter().map(|(own, other)| meteor.score(own, other)).collect()
}

#[test]
fn meteor_is_nltks_with_synonyms_and_without() {
    let scores = read("scores.json");
    let mut dictionaries = vec![own("wordnet")];
    let whole = PathBuf::from("/usr/share/wordnet");
    if whole.is_dir() {
        dictionaries.push(whole);
    } else {
        eprintln!("skipped: {} is absent; the part of it in the fixtures is read", whole.display());
    }
    for (name, words) in tokens(&scores) {
        all_near(name, &meteor(&words, None), &scores[name]["meteor_no_synonyms"], 1e-9);
        for dictionary in &dictionaries {
            let wordnet = WordNet::open(dictionary).unwrap();
            assert!(wordnet.name().starts_with("WordNet 3.0 ("), "{}", wordnet.name());
            all_near(name, &meteor(&words, Some(&wordnet)), &scores[name]["meteor"], 1e-9);
        }
    }
}

#[test]
fn a_word_that_is_nothing_but_an_ending_has_no_empty_base_form() {
    let wordnet = WordNet::open(&own("wordnet")).unwrap();
    for ending in ["s", "es", "ed", "ing", "er", "est"] {
        assert!(wordnet.synonyms(ending).is_ok(), "{ending}");
    }
}

#[test]
fn a_folder_that_holds_no_dictionary_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let message = WordNet::find(Some(empty.path())).unwrap_err().to_string();
    assert!(message.contains("index.noun") || message.contains("noun.exc"), "{message}");
}

#[test]
fn meteor_without_a_dictionary_says_so_in_its_name() {
    let pair = Pair { study: "a".into(), generated: "men women".into(), reference: "man woman".into(), labels: None };
    let names = |instruments: &Instruments| evaluate("run", std::slice::from_ref(&pair), instruments).unwrap().metrics;
    let without = names(&Instruments::default());
    assert!(without.contains_key("meteor-no-synonyms.nltk.ptb_like") && !without.contains_key("meteor.nltk.ptb_like"));
    let with = names(&Instruments { wordnet: Some(WordNet::open(&own("wordnet")).unwrap()), ..Instruments::default() });
    assert!(with["meteor.nltk.ptb_like"] > without["meteor-no-synonyms.nltk.ptb_like"]);
}

#[test]
fn bleu_of_sentences_is_nltks_under_its_smoothings_and_of_the_corpus_pycocoevalcaps() {
    let scores = read("scores.json");
    for (name, words) in tokens(&scores) {
        all_near(name, &bleu(&words).corpus, &scores[name]["bleu_corpus"], 1e-9);
        for (key, smoothing) in [("method1", Smoothing::Method1), ("method2", Smoothing::Method2), ("method4", Smoothing::Method4)] {
            for ((own, other), expected) in words.iter().zip(scores[name]["bleu_sentence"][key].as_array().unwrap()) {
                all_near(&format!("{name} {key} {own:?}"), &BleuCounts::of(own, other).smoothed(smoothing), expected, 1e-9);
            }
        }
    }
}

#[test]
fn rouge_l_is_pycocoevalcaps_and_googles() {
    let scores = read("scores.json");
    for (name, words) in tokens(&scores) {
        let found: Vec<f64> = words.iter().map(|(own, other)| rouge_l(own, other)).collect();
        all_near(name, &found, &scores[name]["rouge_l"], 1e-9);
    }
    for (key, stem) in [("no_stem", None), ("stem", Some(porter_stem as fn(&str) -> String))] {
        let words = |text: &str| rouge_words(text, stem);
        let found: Vec<f64> = pairs(&scores).iter().map(|(own, other)| rouge_l_google(&words(own), &words(other))).collect();
        all_near(key, &found, &scores["rouge_google"][key], 1e-9);
    }
}

#[test]
fn cider_d_is_pycocoevalcaps_and_cider_the_papers() {
    let scores = read("scores.json");
    for (name, words) in tokens(&scores) {
        all_near(name, &Cider::D.score(&words), &scores[name]["cider_d"], 1e-9);
        all_near(name, &Cider::Paper.score(&words), &scores[name]["cider"], 1e-9);
    }
}

#[test]
fn chrf_is_sacrebleus() {
    let scores = read("scores.json");
    let counts: Vec<ChrfCounts> = pairs(&scores).iter().map(|(own, other)| ChrfCounts::of(own, other)).collect();
    let each: Vec<f64> = counts.iter().map(|counts| 100.0 * counts.score()).collect();
    all_near("sentence", &each, &scores["chrf2"]["sentence"], 1e-9);
    let mut total = ChrfCounts::default();
    counts.iter().for_each(|counts| total.add(counts));
    assert!((100.0 * total.score() - scores["chrf2"]["corpus"].as_f64().unwrap()).abs() <= 1e-9);
}

#[test]
fn bert_score_is_bert_scores_own() {
    let Some(fixtures) = folder("bert_encoder") else { return };
    let encoder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixtures.join(file), encoder.path().join(file)).unwrap();
    }
    let document = read("bert_score.json");
    for (layer, expected) in document["layers"].as_object().unwrap() {
        let scorer = BertScore::open(encoder.path(), Some(layer.parse().unwrap())).unwrap();
        let texts = pairs(&document);
        let found = scorer.score(&texts.iter().map(|(own, other)| (own.as_str(), other.as_str())).collect::<Vec<_>>()).unwrap();
        for (part, key) in ["precision", "recall", "f1"].into_iter().enumerate() {
            // f32 states on either side
            all_near(&format!("layer {layer} {key}"), &found.iter().map(|values| values[part]).collect::<Vec<_>>(), &expected[key], 2e-6);
        }
    }
}

#[test]
fn meteor_1_5_is_its_jars() {
    let jar = std::env::var_os("METEOR_JAR").map(PathBuf::from).filter(|jar| jar.is_file());
    let java = std::process::Command::new("java").arg("-version").output().is_ok_and(|output| output.status.success());
    let Some(jar) = jar.filter(|_| java) else {
        eprintln!("skipped: METEOR_JAR does not name meteor-1.5.jar, or there is no java");
        return;
    };
    let scores = read("scores.json");
    let lines: Vec<(String, String)> = tokens(&scores)[0].1.iter().map(|(own, other)| (own.join(" "), other.join(" "))).collect();
    let found = meteor_jar(&jar, &lines).unwrap();
    all_near("per item", &found.per_item, &scores["meteor_1_5"]["per_item"], 1e-9);
    assert!((found.corpus - scores["meteor_1_5"]["corpus"].as_f64().unwrap()).abs() <= 1e-9);
}
