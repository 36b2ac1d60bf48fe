//! CT-RATE's folders and CSV files (peers.md c.1), v1 and v2; columns by name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::text::{FINDINGS, report_text};
use crate::volume::CsvRescale;
use crate::{Error, Result};

use super::{DataConfig, Reconstructions, Split};

/// One volume with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// The file's name without `.nii.gz`: `valid_53_a_1`.
    pub name: String,
    /// `valid_53`: all volumes of a patient are in one split.
    pub patient: String,
    /// What it is used for.
    pub split: Split,
    /// The volume's file.
    pub path: PathBuf,
    /// The report.
    pub report: String,
    /// The 18 findings, where the label file has the volume.
    pub labels: Option<[bool; 18]>,
    /// The metadata's slope and intercept.
    pub rescale: Option<CsvRescale>,
    /// The metadata's spacing (z, xy) in mm.
    pub spacing_mm: Option<[f64; 2]>,
}

/// The studies of a dataset, and what was left out and why.
#[derive(Debug, Default)]
pub struct Dataset {
    /// Studies, sorted by name.
    pub studies: Vec<Study>,
    /// Volume, and why it is not among the studies.
    pub left_out: Vec<(String, String)>,
    /// Row of a CSV that cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// A CSV's cells by volume name and column.
type Table = HashMap<String, HashMap<String, String>>;

const REPORTS: [&str; 3] = ["VolumeName", "Findings_EN", "Impressions_EN"];
const METADATA: [&str; 5] = ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"];

/// Reads a CT-RATE tree at `root` (the folder `dataset` or the one above it).
pub fn read_ct_rate(root: &Path, config: &DataConfig, seed: u64) -> Result<Dataset> {
    let root = if root.join("dataset").is_dir() { root.join("dataset") } else { root.to_path_buf() };
    if !root.is_dir() {
        return Err(Error::file(&root, "no such folder"));
    }
    let mut dataset = Dataset::default();
    for (split, reports, labels) in [("train", "train", "train"), ("valid", "validation", "valid")] {
        let folder = [format!("{split}_fixed"), split.to_string()].into_iter().map(|name| root.join(name)).find(|path| path.is_dir());
        let Some(folder) = folder else { continue };
        let csv = |kind: &str, name: String| root.join(kind).join(name);
        let mut tables = Tables {
            reports: table(&csv("radiology_text_reports", format!("{reports}_reports.csv")), &REPORTS, &mut dataset)?,
            metadata: optional(&csv("metadata", format!("{reports}_metadata.csv")), &METADATA, &mut dataset)?,
            labels: optional(&csv("multi_abnormality_labels", format!("{labels}_predicted_labels.csv")), &label_columns(), &mut dataset)?,
        };
        read_split(&folder, split == "train", &mut tables, (config, seed), &mut dataset)?;
    }
    if dataset.studies.is_empty() {
        let why = dataset
            .left_out
            .first()
            .map_or(String::new(), |(name, why)| format!("; the first of {}: {name}: {why}", dataset.left_out.len()));
        return Err(Error::file(&root, format!("no usable study in train, train_fixed, valid or valid_fixed{why}")));
    }
    dataset.studies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(dataset)
}

struct Tables {
    reports: Table,
    metadata: Table,
    labels: Table,
}

fn label_columns() -> Vec<&'static str> {
    std::iter::once("VolumeName").chain(FINDINGS).collect()
}

fn read_split(folder: &Path, train: bool, tables: &mut Tables, (config, seed): (&DataConfig, u64), dataset: &mut Dataset) -> Result<()> {
    let files = volumes(folder)?;
    for (file, path) in &files {
        match study(file, path, train, tables, (config, seed)) {
            Ok(Some(study)) => dataset.studies.push(study),
            Ok(None) => {}
            Err(why) => dataset.left_out.push((file.clone(), why)),
        }
    }
    let mut without: Vec<&String> = tables.reports.keys().filter(|name| !files.contains_key(*name)).collect();
    without.sort();
    dataset.left_out.extend(without.into_iter().map(|name| (name.clone(), "has a report and no volume".to_string())));
    Ok(())
}

/// `*/*/*.nii.gz` by file name, as the peers' scripts look for them.
fn volumes(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(folder).min_depth(1).max_depth(3).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::file(folder, e.to_string()))?;
        let name = entry.file_name().to_string_lossy().to_string();
        if entry.file_type().is_file() && (name.ends_with(".nii.gz") || name.ends_with(".nii")) {
            files.insert(name, entry.path().to_path_buf());
        }
    }
    Ok(files)
}

/// The study of a file; `None`: a reconstruction that is not wanted; an error says why it is left out.
fn study(
    file: &str,
    path: &Path,
    train: bool,
    tables: &Tables,
    (config, seed): (&DataConfig, u64),
) -> std::result::Result<Option<Study>, String> {
    let name = file.trim_end_matches(".gz").trim_end_matches(".nii");
    let parts: Vec<&str> = name.split('_').collect();
    let [_, _, _, reconstruction] = parts[..] else {
        return Err("its name is not SPLIT_PATIENT_SCAN_RECONSTRUCTION".to_string());
    };
    if config.reconstructions == Reconstructions::First && reconstruction != "1" {
        return Ok(None);
    }
    let row = tables.reports.get(file).ok_or("no row in the reports")?;
    let report =
        report_text(&row["Findings_EN"], &row["Impressions_EN"], config.sections).ok_or("its report is empty or \"Not given.\"")?;
    if report.chars().count() < config.min_report_chars {
        return Err(format!(
            "its report has {} characters, fewer than data.min_report_chars {}",
            report.chars().count(),
            config.min_report_chars
        ));
    }
    let patient = parts[..2].join("_");
    let metadata = tables.metadata.get(file);
    let number = |column: &str| metadata.and_then(|row| row[column].trim().parse::<f64>().ok());
    let rescale = number("RescaleSlope").zip(number("RescaleIntercept")).map(|(slope, intercept)| CsvRescale { slope, intercept });
    let xy = metadata.and_then(|row| xy_spacing(&row["XYSpacing"]));
    Ok(Some(Study {
        name: name.to_string(),
        split: if train { train_split(&patient, config.validation_share, seed) } else { Split::Test },
        patient,
        path: path.to_path_buf(),
        report,
        labels: tables.labels.get(file).map(|row| std::array::from_fn(|index| matches!(row[FINDINGS[index]].trim(), "1" | "1.0"))),
        rescale,
        spacing_mm: number("ZSpacing").zip(xy).map(|(z, xy)| [z, xy]),
    }))
}

/// The first number of "[0.728515625, 0.728515625]", "0.75", "(0.7, 0.7)".
fn xy_spacing(cell: &str) -> Option<f64> {
    let inner = cell.trim().trim_matches(['[', ']', '(', ')', '"', '\'']);
    inner.split([',', ' ', '\\']).find(|part| !part.is_empty())?.parse().ok()
}

/// Training or validation, by the patient's name and the seed alone: adding studies moves no other patient.
fn train_split(patient: &str, share: f64, seed: u64) -> Split {
    let digest = Sha256::digest(format!("{seed} {patient}").as_bytes());
    let draw = u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes")) as f64 / u64::MAX as f64;
    if draw < share { Split::Validation } else { Split::Train }
}

fn optional(path: &Path, columns: &[&str], dataset: &mut Dataset) -> Result<Table> {
    if path.is_file() { table(path, columns, dataset) } else { Ok(Table::new()) }
}

/// The rows of a CSV by VolumeName, these columns only. An unreadable row is left out and named; a missing column is an error.
fn table(path: &Path, columns: &[&str], dataset: &mut Dataset) -> Result<Table> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_path(path).map_err(|e| Error::file(path, e.to_string()))?;
    let header = reader.headers().map_err(|e| Error::file(path, e.to_string()))?.clone();
    let position = |column: &&str| -> Result<usize> {
        let at = header.iter().position(|name| name.trim() == *column);
        at.ok_or_else(|| Error::field(path, *column, format!("no such column; found {}", header.iter().collect::<Vec<_>>().join(", "))))
    };
    let positions: Vec<usize> = columns.iter().map(position).collect::<Result<_>>()?;
    let mut rows = Table::new();
    for (index, record) in reader.records().enumerate() {
        let line = index + 2;
        let row = record.map_err(|e| e.to_string()).and_then(|record| {
            let cell = |at: &usize| record.get(*at).ok_or(format!("{} cells, expected {}", record.len(), header.len()));
            positions.iter().map(|at| cell(at).map(String::from)).collect::<std::result::Result<Vec<_>, _>>()
        });
        match row {
            Ok(cells) => {
                let name = cells[0].clone();
                rows.insert(name, columns.iter().map(|column| column.to_string()).zip(cells).collect());
            }
            Err(why) => dataset.unreadable.push((format!("{}: row {line}", path.display()), why)),
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacing_is_read_in_all_its_spellings() {
        for (cell, expected) in [
            ("[0.728515625, 0.728515625]", Some(0.728515625)),
            ("[0.75]", Some(0.75)),
            ("1.25, 1.25", Some(1.25)),
            ("0.7", Some(0.7)),
            ("", None),
        ] {
            assert_eq!(xy_spacing(cell), expected, "{cell}");
        }
    }

    #[test]
    fn a_patient_keeps_its_split_and_shares_are_as_asked() {
        let drawn = (0..2000).filter(|n| train_split(&format!("train_{n}"), 0.1, 7) == Split::Validation).count();
        assert!((150..250).contains(&drawn), "{drawn}");
        assert_eq!(train_split("train_5", 0.1, 7), train_split("train_5", 0.1, 7));
    }
}
