//! What a run folder holds of its evaluations and its training, read leniently: keys that are not known here are passed over.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::data::Subset;
use crate::text::label_report;
use crate::{Error, Result};

/// Decoders and their reports from another study's visual tokens.
const DECODERS: [(&str, &str, bool); 4] =
    [("llama", "", false), ("bert", "", false), ("llama", "-shuffled", true), ("bert", "-shuffled", true)];

/// One decoder's evaluation.
#[derive(Debug)]
pub(super) struct Scored {
    /// The decoder's name; shuffled visual tokens say so.
    pub name: String,
    /// From another patient's visual tokens.
    pub shuffled: bool,
    /// Scores by name.
    pub metrics: BTreeMap<String, f64>,
    /// Reports beside their references.
    pub pairs: Vec<Pair>,
    /// Each study's numbers, by the study's name.
    per_study: BTreeMap<String, BTreeMap<String, f64>>,
}

/// A generated report and its reference.
#[derive(Debug, Deserialize)]
pub(super) struct Pair {
    pub study: String,
    pub generated: String,
    reference: String,
    labels: Option<[bool; 18]>,
    #[serde(skip)]
    pub expected: [bool; 18],
    #[serde(skip)]
    pub found: [bool; 18],
}

impl Pair {
    /// Findings missed and findings too many.
    pub(super) fn errors(&self) -> usize {
        self.expected.iter().zip(&self.found).filter(|(expected, found)| expected != found).count()
    }
}

impl Scored {
    pub(super) fn pair(&self, study: &str) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.study == study)
    }

    /// What the evaluation holds of a study, by name.
    pub(super) fn numbers(&self, study: &str) -> Vec<(String, f64)> {
        let numbers = self.per_study.get(study).into_iter().flatten();
        numbers.map(|(name, value)| (name.clone(), *value)).collect()
    }

    /// A number of every study, in the order of the pairs; `None` where a study lacks it.
    pub(super) fn column(&self, name: &str) -> Option<Vec<f64>> {
        self.pairs.iter().map(|pair| self.per_study.get(&pair.study)?.get(name).copied()).collect()
    }

    /// Names of the numbers that studies have.
    pub(super) fn columns(&self) -> Vec<String> {
        self.per_study.values().next().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    }
}

/// The evaluations of a split that `run` holds, the decoders' own first.
pub(super) fn read_scored(run: &Path, split: Subset) -> Result<Vec<Scored>> {
    let mut scored = Vec::new();
    for (decoder, suffix, shuffled) in DECODERS {
        let folder = run.join(decoder).join("reports");
        let (pairs, scores) = (folder.join(format!("{split}{suffix}.jsonl")), folder.join(format!("{split}{suffix}.json")));
        if pairs.is_file() {
            scored.push(read_one(format!("{decoder}{suffix}"), shuffled, &pairs, &scores)?);
        }
    }
    if !scored.iter().any(|decoder| !decoder.shuffled) {
        let what = format!("holds no reports of the {split} split (see `ctscribe evaluate --split {split}`)");
        return Err(Error::file(run, what));
    }
    Ok(scored)
}

fn read_one(name: String, shuffled: bool, pairs: &Path, scores: &Path) -> Result<Scored> {
    let text = std::fs::read_to_string(scores).map_err(|e| Error::io(scores, e))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| Error::file(scores, format!("not an evaluation: {e}")))?;
    let missing = |key: &str, kind: &str| Error::field(scores, key, format!("missing; expected {kind}"));
    let metrics = value.get("metrics").and_then(Value::as_object).ok_or_else(|| missing("metrics", "numbers by name"))?;
    let studies = value.get("per_study").and_then(Value::as_array).ok_or_else(|| missing("per_study", "a list of studies"))?;
    let numbers = |object: &serde_json::Map<String, Value>| -> BTreeMap<String, f64> {
        object.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect()
    };
    let study = |study: &Value| {
        let mut own = numbers(study.as_object()?);
        own.extend(study.get("scores").and_then(Value::as_object).map(numbers).unwrap_or_default());
        Some((study.get("study")?.as_str()?.to_string(), own))
    };
    Ok(Scored {
        name,
        shuffled,
        metrics: numbers(metrics),
        per_study: studies.iter().filter_map(study).collect(),
        pairs: read_pairs(pairs)?,
    })
}

fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let pair = |(index, line): (usize, &str)| {
        let mut pair: Pair = serde_json::from_str(line).map_err(|e| Error::field(path, format!("line {}", index + 1), e.to_string()))?;
        pair.expected = pair.labels.unwrap_or_else(|| label_report(&pair.reference));
        pair.found = label_report(&pair.generated);
        Ok(pair)
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(pair).collect()
}

/// A stage's lines; none where it has not run. A last line that was cut short is passed over.
pub(super) fn read_metrics(path: &Path) -> Result<Vec<Value>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
