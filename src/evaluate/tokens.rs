//! Tokenisations.

use std::sync::LazyLock;

use regex::Regex;

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[a-z0-9]+(?:[.'-][a-z0-9]+)*").expect("the pattern is fixed and valid"));
static SPACES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"_+|  +").expect("the pattern is fixed and valid"));
// the range ':' to '[' holds ; < = > ? @ A-Z [
static DELETED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"[.,?;*!%^&_+():-\[\](){}"'/\\]"#).expect("the pattern is fixed and valid"));

/// Lower-case words, inner points, apostrophes and hyphens kept: near the PTB tokenizer's, without Java.
pub fn ptb_like(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    WORD.find_iter(&lower).map(|word| word.as_str().to_string()).collect()
}

/// rouge-score's words: lower-case letters a to z and digits; with `stem`, words of more than three letters are stemmed by it.
pub fn rouge_words(text: &str, stem: Option<fn(&str) -> String>) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit())).filter(|word| !word.is_empty());
    words.map(|word| stem.filter(|_| word.len() > 3).map_or_else(|| word.to_string(), |stem| stem(word))).collect()
}

/// Split on blanks, nothing else.
pub fn plain(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// CT2Rep's cleaner (R2Gen's for MIMIC; peers.md c.3): decimals collapse, sentences are joined by " . ".
pub fn ct2rep_clean(report: &str) -> String {
    let mut text = report.replace('\n', " ");
    while SPACES.is_match(&text) || text.contains("..") {
        text = text.replace("__", "_").replace("  ", " ").replace("..", ".");
        if !text.contains("__") && !text.contains("  ") && !text.contains("..") {
            break;
        }
    }
    for enumerator in 1..=5 {
        if enumerator == 1 {
            text = text.replace("1. ", "");
        } else {
            text = text.replace(&format!(". {enumerator}. "), ". ");
        }
    }
    let lower = text.trim().to_lowercase();
    let sentences = lower.split(". ").map(|sentence| DELETED.replace_all(sentence.trim(), "").trim().to_string());
    let kept: Vec<String> = sentences.filter(|sentence| !sentence.is_empty()).collect();
    format!("{} .", kept.join(" . "))
}
