//! Metrics against pycocoevalcap.

use ctscribe::evaluate::{Cider, bleu, ct2rep_clean, plain, ptb_like, rouge_l};
use serde_json::Value;

use crate::fixtures::folder;

type Tokens = Vec<(Vec<String>, Vec<String>)>;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9, "{what}: {found} is not {expected}");
}

fn read(name: &str) -> Option<Value> {
    let folder = folder("metrics")?;
    Some(serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap())
}

#[test]
fn bleu_rouge_and_cider_on_given_tokens_are_the_peers() {
    let Some(f) = read("tokens.json") else { return };
    let texts = |key: &str| -> Vec<String> { f[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect() };
    let pairs: Tokens = texts("res").iter().zip(texts("gts")).map(|(res, gts)| (plain(res), plain(&gts))).collect();
    let scores = bleu(&pairs);
    for (order, expected) in numbers(&f["bleu"]).into_iter().enumerate() {
        near("bleu", scores.corpus[order], expected);
        for (item, expected) in numbers(&f["bleu_per_item"][order]).into_iter().enumerate() {
            near("bleu per item", scores.per_item[item][order], expected);
        }
    }
    // ROUGE-L splits on single blanks, so that two in a row make an empty token
    let split = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
    let rouge: Vec<f64> = texts("res").iter().zip(texts("gts")).map(|(res, gts)| rouge_l(&split(res), &split(&gts))).collect();
    for (found, expected) in rouge.iter().zip(numbers(&f["rouge_l_per_item"])) {
        near("rouge_l", *found, expected);
    }
    let values = Cider::D.score(&pairs);
    for (found, expected) in values.iter().zip(numbers(&f["cider_per_item"])) {
        near("cider", *found, expected);
    }
    near("cider", values.iter().sum::<f64>() / values.len() as f64, f["cider"].as_f64().unwrap());
}

#[test]
fn the_peers_cleaner_is_reproduced() {
    let Some(f) = read("tokens.json") else { return };
    for case in f["ct2rep_clean"].as_array().unwrap() {
        assert_eq!(ct2rep_clean(case["raw"].as_str().unwrap()), case["clean"].as_str().unwrap());
    }
}

#[test]
fn real_reports_score_as_the_peers_score_them_under_either_tokenisation() {
    let Some(f) = read("reports.json") else { return };
    let pairs = f["pairs"].as_array().unwrap();
    let text = |pair: &Value, key: &str| pair[key].as_str().unwrap().to_string();
    let ptb: Tokens = pairs.iter().map(|pair| (plain(&text(pair, "hypothesis_ptb")), plain(&text(pair, "reference_ptb")))).collect();
    let own: Tokens = pairs.iter().map(|pair| (ptb_like(&text(pair, "hypothesis")), ptb_like(&text(pair, "reference")))).collect();
    for (key, tokens) in [("corpus_expected_ptb", ptb), ("corpus_expected_regex", own)] {
        let expected = |name: &str| f[key][name].as_f64().unwrap();
        for order in 0..4 {
            near(key, bleu(&tokens).corpus[order], expected(&format!("BLEU_{}", order + 1)));
        }
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        near(key, mean(tokens.iter().map(|(hypothesis, reference)| rouge_l(hypothesis, reference)).collect()), expected("ROUGE_L"));
        near(key, mean(Cider::D.score(&tokens)), expected("CIDEr"));
    }
}
