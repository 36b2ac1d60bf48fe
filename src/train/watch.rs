//! What is written of a run while it goes: `metrics.jsonl`, TensorBoard events, samples, curves; and what is measured on written reports.

use serde_json::{Map, Value, json};

use crate::config::REPORT_MEASURES;
use crate::data::{Cache, Split};
use crate::evaluate::{Instruments, Pair, evaluate, rare_recall};
use crate::{Error, Result};

use super::curves::draw_curves;
use super::events::EventFile;
use super::run_folder::RunFolder;

/// What a stage found on validation studies.
#[derive(Debug, Default)]
pub struct Validation {
    /// Numbers by name.
    pub measures: Map<String, Value>,
    /// Reports to look at.
    pub samples: Vec<Pair>,
}

/// The files in which a stage's folder tells how it goes.
#[derive(Debug)]
pub struct Record<'a> {
    run: &'a RunFolder,
    stage: String,
    events: EventFile,
}

impl<'a> Record<'a> {
    /// The record of `stage` up to step `step`; what an interrupted run wrote of later ones is cut off, for they come again.
    pub fn open(run: &'a RunFolder, stage: &str, step: u64) -> Result<Self> {
        run.cut_metrics(step)?;
        Ok(Record { run, stage: stage.to_string(), events: EventFile::open(run.root(), step)? })
    }

    /// A line of training.
    pub fn training(&mut self, step: u64, measures: Map<String, Value>) -> Result<()> {
        self.events.scalars(step, &scalars("train", &measures))?;
        self.line(json!({ "stage": self.stage, "step": step }), measures)
    }

    /// What was found on validation studies.
    pub fn validation(&mut self, step: u64, found: &Validation) -> Result<()> {
        if !found.measures.is_empty() {
            self.events.scalars(step, &scalars("validation", &found.measures))?;
            self.line(json!({ "stage": self.stage, "step": step, "validation": true }), found.measures.clone())?;
        }
        if found.samples.is_empty() {
            return Ok(());
        }
        let text = |pair: &Pair| {
            (format!("samples/{}", pair.study), format!("**Generated.** {}\n\n**Reference.** {}", pair.generated, pair.reference))
        };
        self.events.texts(step, &found.samples.iter().map(text).collect::<Vec<_>>())?;
        let folder = self.run.path("samples");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let line =
            |pair: &Pair| json!({ "study": pair.study, "generated": pair.generated, "reference": pair.reference }).to_string() + "\n";
        self.run.write_text(&format!("samples/{step:08}.jsonl"), &found.samples.iter().map(line).collect::<String>())
    }

    /// Draws `curves.svg` anew.
    pub fn draw(&self) -> Result<()> {
        self.run.write_text("curves.svg", &draw_curves(&self.stage, &self.run.metrics()?)?)
    }

    fn line(&self, head: Value, measures: Map<String, Value>) -> Result<()> {
        let Value::Object(mut line) = head else { return Ok(()) };
        line.extend(measures);
        self.run.append_metrics(&Value::Object(line))
    }
}

/// Numbers by TensorBoard's names: `PART/NAME`, inside an object or a list `PART/NAME/KEY`.
fn scalars(part: &str, measures: &Map<String, Value>) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for (name, value) in measures {
        let tag = format!("{part}/{}", name.strip_prefix("validation_").unwrap_or(name));
        match value {
            Value::Object(inner) => found.extend(inner.iter().filter_map(|(key, value)| Some((format!("{tag}/{key}"), value.as_f64()?)))),
            Value::Array(inner) => {
                found.extend(inner.iter().enumerate().filter_map(|(index, value)| Some((format!("{tag}/{index}"), value.as_f64()?))));
            }
            value => found.extend(value.as_f64().map(|value| (tag, value))),
        }
    }
    found
}

/// The collapse panel, the labels' scores and the recall of `rare` findings, of written reports.
pub fn report_measures(stage: &str, pairs: &[Pair], rare: &[usize]) -> Result<Map<String, Value>> {
    let evaluation = evaluate(stage, pairs, &Instruments::default())?;
    let mut measures: Map<String, Value> =
        REPORT_MEASURES.iter().filter_map(|name| Some(((*name).to_string(), json!(evaluation.metrics.get(*name)?)))).collect();
    measures.insert("labels.recall.rare".to_string(), json!(rare_recall(&evaluation.findings, rare)));
    Ok(measures)
}

/// Values a structure by name, and their mean over the structures that have one.
pub fn by_structure(name: &str, structures: &[String], values: &[f64]) -> Map<String, Value> {
    let known: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    let each: Map<String, Value> = structures.iter().zip(values).map(|(structure, value)| (structure.clone(), json!(value))).collect();
    Map::from_iter([(name.to_string(), json!(mean)), (format!("{name}_by_structure"), Value::Object(each))])
}

/// Refuses a cache in which a patient is both learned from and watched or tested.
pub fn check_patients(cache: &Cache) -> Result<()> {
    let patients = |split: Split| cache.split(split).into_iter().map(|study| study.patient.as_str());
    let learned: std::collections::HashSet<&str> = patients(Split::Train).collect();
    for split in [Split::Validation, Split::Test] {
        if let Some(patient) = patients(split).find(|patient| learned.contains(patient)) {
            return Err(Error::file(cache.root(), format!("patient {patient} is in the training split and in {split:?}")));
        }
    }
    Ok(())
}
