//! Reports from elsewhere: CSV, JSON, JSON lines, VLM3D's submissions; read, paired with references, and written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Pair;
use crate::weights::write_aside;
use crate::{Error, Result};

// Names that columns and keys go by, the first found is taken.
const STUDY: [&str; 7] = ["study", "input_image_name", "VolumeName", "AccessionNo", "name", "id", "image_id"];
const GENERATED: [&str; 6] = ["generated", "report", "text", "prediction", "hypothesis", "caption"];
const REFERENCE: [&str; 5] = ["reference", "report", "text", "ground_truth", "Findings_EN"];

/// A report of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// The study's name, without a volume file's ending.
    pub study: String,
    /// What was generated.
    pub generated: String,
    /// The reference, where the file has one.
    pub reference: Option<String>,
}

/// What a study's reports are scored against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References(BTreeMap<String, (String, Option<[bool; 18]>)>);

/// Predictions beside their references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paired {
    /// Studies that have both.
    pub pairs: Vec<Pair>,
    /// Studies of the references without a prediction.
    pub missing: Vec<String>,
    /// Predictions without a reference.
    pub unknown: Vec<String>,
}

/// A volume's name without its file's ending, as VLM3D compares them.
pub fn study_name(name: &str) -> &str {
    let name = name.trim().rsplit('/').next().unwrap_or_default();
    [".nii.gz", ".nii", ".mha", ".npz"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// Reads predictions: a CSV or JSON lines with a study's and a report's column (`study`, `VolumeName`, ..; `generated`, `report`, ..), a
/// JSON object study -> report, a JSON list of such objects, or a VLM3D submission. A row that cannot be read or a study that comes
/// twice is named.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let rows = read_rows(path)?;
    let mut seen = BTreeSet::new();
    let prediction = |(at, row): (String, Map<String, Value>)| {
        let text = |names: &[&str]| names.iter().find_map(|name| row.get(*name)?.as_str());
        let lacks =
            |what: &str, names: &[&str]| Error::field(path, at.clone(), format!("has no {what} (expected one of {})", names.join(", ")));
        let study = study_name(text(&STUDY).ok_or_else(|| lacks("study", &STUDY))?).to_string();
        if !seen.insert(study.clone()) {
            return Err(Error::field(path, at.clone(), format!("study {study} comes a second time")));
        }
        let generated = text(&GENERATED).ok_or_else(|| lacks("report", &GENERATED))?.to_string();
        Ok(Prediction { study, generated, reference: row.get(REFERENCE[0]).and_then(Value::as_str).map(String::from) })
    };
    rows.into_iter().map(prediction).collect()
}

/// The rows of any of the formats, each with its place.
fn read_rows(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    let text = || std::fs::read_to_string(path).map_err(|e| Error::io(path, e));
    match ending.as_str() {
        "csv" => csv_rows(path),
        "jsonl" => {
            let text = text()?;
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let row = |(index, line): (usize, &str)| {
                let at = format!("row {}", index + 1);
                let row = serde_json::from_str(line).map_err(|e| Error::field(path, at.clone(), e.to_string()))?;
                Ok((at, row))
            };
            lines.map(row).collect()
        }
        _ => json_rows(path, serde_json::from_str(&text()?).map_err(|e| Error::file(path, e.to_string()))?),
    }
}

fn csv_rows(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    let fault = |e: csv::Error| Error::file(path, e.to_string());
    let mut reader = csv::Reader::from_path(path).map_err(fault)?;
    let header: Vec<String> = reader.headers().map_err(fault)?.iter().map(|name| name.trim().to_string()).collect();
    let row = |(index, record): (usize, csv::Result<csv::StringRecord>)| {
        let at = format!("row {}", index + 2);
        let record = record.map_err(|e| Error::field(path, at.clone(), e.to_string()))?;
        let cells = header.iter().cloned().zip(record.iter().map(Value::from));
        Ok((at, cells.collect()))
    };
    reader.records().enumerate().map(row).collect()
}

/// An object study -> report, a list of objects, or VLM3D's `generated_reports`, bare or wrapped as its platform hands them on.
fn json_rows(path: &Path, document: Value) -> Result<Vec<(String, Map<String, Value>)>> {
    let inner = ["/0/outputs/0/value", "/outputs/0/value", ""].iter().find_map(|place| document.pointer(place)?.get("generated_reports"));
    let rows = match inner.unwrap_or(&document) {
        Value::Array(rows) => rows.iter().map(|row| row.as_object().cloned()).collect::<Option<Vec<_>>>(),
        Value::Object(reports) => {
            let row = |(study, report): (&String, &Value)| {
                report
                    .as_str()
                    .map(|report| Map::from_iter([("study".to_string(), json!(study)), ("generated".to_string(), json!(report))]))
            };
            reports.iter().map(row).collect()
        }
        _ => None,
    };
    let rows = rows.ok_or_else(|| Error::file(path, "expected an object study -> report, a list of objects, or a VLM3D submission"))?;
    Ok(rows.into_iter().enumerate().map(|(index, row)| (format!("entry {}", index + 1), row)).collect())
}

impl References {
    /// Of pairs that were evaluated before.
    pub fn of_pairs(pairs: &[Pair]) -> Self {
        References(pairs.iter().map(|pair| (study_name(&pair.study).to_string(), (pair.reference.clone(), pair.labels))).collect())
    }

    /// Reads a file in the formats of [`read_predictions`]; a column `reference` is taken before any other, and `labels` of JSON lines
    /// that `evaluate` wrote are kept.
    pub fn read(path: &Path) -> Result<Self> {
        let entry = |(at, row): (String, Map<String, Value>)| {
            let text = |names: &[&str]| names.iter().find_map(|name| row.get(*name)?.as_str());
            let lacks = |what: &str| Error::field(path, at.clone(), format!("has no {what}"));
            let study = study_name(text(&STUDY).ok_or_else(|| lacks("study"))?).to_string();
            let reference = text(&REFERENCE).or_else(|| text(&GENERATED)).ok_or_else(|| lacks("reference"))?.to_string();
            let labels = row.get("labels").cloned().and_then(|labels| serde_json::from_value(labels).ok());
            Ok((study, (reference, labels)))
        };
        Ok(References(read_rows(path)?.into_iter().map(entry).collect::<Result<_>>()?))
    }

    /// Pairs predictions with these; their own references are used for studies that are unknown here.
    pub fn pair(&self, predictions: &[Prediction]) -> Paired {
        let mut paired = Paired { pairs: Vec::new(), missing: Vec::new(), unknown: Vec::new() };
        for prediction in predictions {
            let own = prediction.reference.clone().map(|reference| (reference, None));
            let Some((reference, labels)) = self.0.get(&prediction.study).cloned().or(own) else {
                paired.unknown.push(prediction.study.clone());
                continue;
            };
            paired.pairs.push(Pair { study: prediction.study.clone(), generated: prediction.generated.clone(), reference, labels });
        }
        let predicted: BTreeSet<&str> = predictions.iter().map(|prediction| prediction.study.as_str()).collect();
        paired.missing = self.0.keys().filter(|study| !predicted.contains(study.as_str())).cloned().collect();
        paired
    }
}

/// Writes generated reports as VLM3D's platform takes them (`predictions.json`).
pub fn write_submission(path: &Path, pairs: &[Pair]) -> Result<()> {
    let report = |pair: &Pair| json!({ "input_image_name": study_name(&pair.study), "report": pair.generated });
    let value = json!({
        "name": "Generated reports",
        "type": "Report generation",
        "version": "1.0",
        "generated_reports": pairs.iter().map(report).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&json!([{ "outputs": [{ "value": value }] }])).map_err(|e| Error::file(path, e.to_string()))?;
    write_aside(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<Prediction>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_predictions(&path)
    }

    #[test]
    fn all_formats_say_the_same() {
        let expected = read("a.csv", "study,text\nvalid_1_a_1,Normal.\nvalid_2_a_1,\"Big, heart.\"\n").unwrap();
        assert_eq!((expected[1].study.as_str(), expected[1].generated.as_str()), ("valid_2_a_1", "Big, heart."));
        let list = r#"[{"input_image_name": "valid_1_a_1.nii.gz", "report": "Normal."}, {"input_image_name": "valid_2_a_1.mha", "report": "Big, heart."}]"#;
        let forms = [
            ("a.json", r#"{"valid_1_a_1": "Normal.", "valid_2_a_1": "Big, heart."}"#.to_string()),
            ("b.json", list.to_string()),
            ("c.json", format!(r#"{{"name": "Generated reports", "generated_reports": {list}, "version": {{"major": 1}}}}"#)),
            ("d.json", format!(r#"[{{"outputs": [{{"value": {{"generated_reports": {list}}}}}]}}]"#)),
            ("e.jsonl", "{\"study\": \"valid_1_a_1\", \"generated\": \"Normal.\"}\n\n{\"study\": \"valid_2_a_1\", \"generated\": \"Big, heart.\"}\n".to_string()),
            ("f.csv", "VolumeName,report\nvalid_1_a_1.nii.gz,Normal.\nvalid_2_a_1.nii.gz,\"Big, heart.\"\n".to_string()),
        ];
        for (name, text) in forms {
            assert_eq!(read(name, &text).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let message = |name: &str, text: &str| read(name, text).unwrap_err().to_string();
        assert!(message("a.csv", "study,words\na,b\n").contains("row 2: has no report (expected one of generated, report"));
        assert!(message("a.csv", "study,text\na,b\na,c\n").contains("row 3: study a comes a second time"));
        assert!(message("a.json", "[1, 2]").contains("expected an object study -> report"));
        assert!(message("a.jsonl", "{}\n").contains("row 1: has no study"));
    }

    #[test]
    fn a_submission_is_read_back_and_paired_with_its_references() {
        let pair = |study: &str, reference: &str| Pair {
            study: study.to_string(),
            generated: format!("{study} generated"),
            reference: reference.to_string(),
            labels: Some([true; 18]),
        };
        let pairs = [pair("a", "one"), pair("b", "two")];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.json");
        write_submission(&path, &pairs).unwrap();
        let predictions = read_predictions(&path).unwrap();
        assert_eq!(References::of_pairs(&pairs).pair(&predictions), Paired { pairs: pairs.to_vec(), missing: vec![], unknown: vec![] });
        let part = References::of_pairs(&[pairs[0].clone(), pair("c", "three")]).pair(&predictions);
        assert_eq!((part.pairs.len(), part.missing, part.unknown), (1, vec!["c".to_string()], vec!["b".to_string()]));
    }
}
