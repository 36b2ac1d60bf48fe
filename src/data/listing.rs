//! A plain CSV of studies: NIfTI files, DICOM folders or folders of slice images, with their reports.

use std::path::Path;

use crate::text::FINDINGS;
use crate::{Error, Result};

use super::table::{Row, labels, rows};
use super::{DataConfig, Dataset, Split, Study, draw};

const COLUMNS: [&str; 3] = ["study", "path", "report"];

/// Reads a CSV with the columns study, path, report, and where there are any patient, split (train, validation, test) and the 18 findings.
///
/// Paths are relative to the CSV's folder. Without a column split, `validation_share` of the patients are validation and as many are test, by the
/// patient's name and the seed.
pub fn read_listing(path: &Path, config: &DataConfig, seed: u64) -> Result<Dataset> {
    if !path.is_file() {
        return Err(Error::file(path, "no such file: expected a CSV with the columns study, path, report"));
    }
    let optional: Vec<&'static str> = ["patient", "split"].into_iter().chain(FINDINGS).collect();
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut dataset = Dataset::default();
    for (line, row) in rows(path, &COLUMNS, &optional)? {
        match row.and_then(|row| study(&row, folder, (config, seed)).map_err(|why| format!("{}: {why}", row["study"]))) {
            Ok(Ok(study)) => dataset.studies.push(study),
            Ok(Err((name, why))) => dataset.left_out.push((name, why)),
            Err(why) => dataset.unreadable.push((format!("{}: row {line}", path.display()), why)),
        }
    }
    together(&mut dataset, path)?;
    dataset.finish(path, "the list")
}

/// A study; or its name and why it is left out; or what is wrong with the row.
type Read = std::result::Result<std::result::Result<Study, (String, String)>, String>;

fn study(row: &Row, folder: &Path, (config, seed): (&DataConfig, u64)) -> Read {
    let name = row["study"].trim();
    // it becomes a file's name
    if name.is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.') {
        return Err("study: expected a name that can name a file".to_string());
    }
    let patient = row.get("patient").map(|patient| patient.trim()).filter(|patient| !patient.is_empty()).unwrap_or(name);
    let split = match row.get("split").map(|split| split.trim().to_lowercase()).as_deref() {
        None | Some("") => drawn(patient, config.validation_share, seed),
        Some("train" | "training") => Split::Train,
        Some("validation" | "valid" | "val" | "dev") => Split::Validation,
        Some("test") => Split::Test,
        Some(other) => return Err(format!("split: {other}: expected train, validation or test")),
    };
    let path = folder.join(row["path"].trim());
    let left_out = |why: String| Ok(Err((name.to_string(), why)));
    if !path.exists() {
        return left_out(format!("{}: no such file or folder", path.display()));
    }
    let report = match config.report(&row["report"], "") {
        Ok(report) => report,
        Err(why) => return left_out(why),
    };
    let has_labels = FINDINGS.iter().all(|finding| row.get(finding).is_some_and(|cell| !cell.trim().is_empty()));
    Ok(Ok(Study { labels: has_labels.then(|| labels(row)), grey: config.grey, ..Study::new(name, patient, split, &path, report) }))
}

fn drawn(patient: &str, share: f64, seed: u64) -> Split {
    match draw(patient, seed) {
        draw if draw < share => Split::Validation,
        draw if draw < 2.0 * share => Split::Test,
        _ => Split::Train,
    }
}

/// All studies of a patient must be in one split.
fn together(dataset: &mut Dataset, path: &Path) -> Result<()> {
    let mut splits = std::collections::HashMap::new();
    for study in &dataset.studies {
        let split = *splits.entry(study.patient.as_str()).or_insert(study.split);
        if split != study.split {
            let what =
                format!("patient {} is in {split:?} and in {:?}: all studies of a patient belong to one split", study.patient, study.split);
            return Err(Error::field(path, "split", what));
        }
    }
    Ok(())
}
