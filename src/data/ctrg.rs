//! CTRG-Chest-548K: a folder of slice images a study (or the NIfTI files that others made of them), and one JSON of reports by split.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Result};

use super::subsets::{NamedSplit, SplitList};
use super::{DataConfig, Dataset, Split, Study};

/// One study of the JSON. The data set calls the text `finding`, files made for R2Gen's readers `report`; other keys are not read.
#[derive(Deserialize)]
struct Annotation {
    id: serde_json::Value,
    finding: Option<String>,
    report: Option<String>,
    impression: Option<String>,
}

impl Annotation {
    fn name(&self) -> String {
        self.id.as_str().map_or_else(|| self.id.to_string(), String::from)
    }
}

/// Reads the data set at `root`: one `*.json` with `train`, `val` and `test`, each a list of `id`, `finding` and perhaps `impression`; and below
/// `root`, for each id, a folder `ID` of slices (JPEG, PNG, DICOM) or a file `ID.nii.gz`. `data.grey` says what the slices' grey values mean.
pub fn read_ctrg(root: &Path, config: &DataConfig) -> Result<Dataset> {
    let (json, annotations) = annotations(root)?;
    let places = places(root)?;
    let mut dataset = Dataset::default();
    for (key, rows) in &annotations {
        let split = match key.as_str() {
            "train" => Split::Train,
            "val" | "valid" | "validation" => Split::Validation,
            "test" => Split::Test,
            other => return Err(Error::field(&json, other, "expected train, val and test")),
        };
        for row in rows {
            match study(row, split, &places, config) {
                Ok(study) => dataset.studies.push(study),
                Err(why) => dataset.left_out.push((row.name(), why)),
            }
        }
        if split == Split::Test {
            dataset.named.insert(NamedSplit::CtrgTest, SplitList::new(rows.iter().map(Annotation::name).collect()));
        }
    }
    dataset.finish(root, &json.display().to_string())
}

type Annotations = BTreeMap<String, Vec<Annotation>>;

/// The one JSON at the root.
fn annotations(root: &Path) -> Result<(PathBuf, Annotations)> {
    let entries = std::fs::read_dir(root).map_err(|e| Error::io(root, e))?.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    found.sort();
    let [json] = &found[..] else {
        return Err(Error::file(root, format!("holds {} JSON files; expected one: the reports by split", found.len())));
    };
    let text = std::fs::read_to_string(json).map_err(|e| Error::io(json, e))?;
    let read = serde_json::from_str(&text).map_err(|e| Error::file(json, format!("expected lists of id and finding by split: {e}")))?;
    Ok((json.clone(), read))
}

/// Folders of slices and NIfTI files by name.
fn places(root: &Path) -> Result<HashMap<String, Vec<PathBuf>>> {
    let mut places: HashMap<String, Vec<PathBuf>> = HashMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::file(root, e.to_string()))?;
        let name = entry.file_name().to_string_lossy().to_string();
        let bare = name.trim_end_matches(".gz").trim_end_matches(".nii");
        if entry.file_type().is_dir() || bare.len() < name.len() {
            places.entry(bare.to_string()).or_default().push(entry.into_path());
        }
    }
    Ok(places)
}

fn study(
    row: &Annotation,
    split: Split,
    places: &HashMap<String, Vec<PathBuf>>,
    config: &DataConfig,
) -> std::result::Result<Study, String> {
    let name = row.name();
    let path = match places.get(&name).map(Vec::as_slice) {
        Some([path]) => path,
        None | Some([]) => return Err("has a report and neither a folder nor a NIfTI file of its name".to_string()),
        Some([first, second, ..]) => return Err(format!("two places: {} and {}", first.display(), second.display())),
    };
    let finding = row.finding.as_deref().or(row.report.as_deref()).unwrap_or_default();
    let impression = row.impression.as_deref().unwrap_or_default();
    let report = config.report(finding, impression)?;
    Ok(Study { grey: config.grey, ..Study::new(&name, &name, split, path, report) })
}
