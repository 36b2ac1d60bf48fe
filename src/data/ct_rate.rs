//! CT-RATE's folders and CSV files (peers.md c.1), v1 and v2; columns by name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::text::{FINDINGS, Sections, report_text};
use crate::volume::CsvRescale;
use crate::{Error, Result};

use super::subsets::{NamedSplit, SplitList};
use super::table::{Row, Table, labels};
use super::{DataConfig, Dataset, Reconstructions, Split, Study, train_split};

const REPORTS: [&str; 3] = ["VolumeName", "Findings_EN", "Impressions_EN"];
const METADATA: [&str; 5] = ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"];

/// Characters of the findings from which the authors keep a report.
const LONG: usize = 500;

/// CT-RATE's two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// 20,000 patients to learn from.
    Train,
    /// 1,304 patients: the test set.
    Valid,
}

impl Part {
    /// Both.
    pub const ALL: [Part; 2] = [Part::Train, Part::Valid];

    /// Its name in folders and volumes.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Valid => "valid",
        }
    }

    /// Its tables below the data set's root: reports, metadata, labels.
    pub fn tables(self) -> [String; 3] {
        let (long, short) = (if self == Part::Train { "train" } else { "validation" }, self.name());
        [
            format!("radiology_text_reports/{long}_reports.csv"),
            format!("metadata/{long}_metadata.csv"),
            format!("multi_abnormality_labels/{short}_predicted_labels.csv"),
        ]
    }
}

/// Reads a CT-RATE tree at `root` (the folder `dataset` or the one above it).
pub fn read_ct_rate(root: &Path, config: &DataConfig, seed: u64) -> Result<Dataset> {
    let root = if root.join("dataset").is_dir() { root.join("dataset") } else { root.to_path_buf() };
    if !root.is_dir() {
        return Err(Error::file(&root, "no such folder"));
    }
    let mut dataset = Dataset::default();
    for part in Part::ALL {
        let folder = [format!("{}_fixed", part.name()), part.name().to_string()].into_iter().map(|name| root.join(name));
        let Some(folder) = folder.into_iter().find(|path| path.is_dir()) else { continue };
        let tables = Tables::read(part, &part.tables().map(|path| root.join(path)))?;
        dataset.add(tables.studies(&volumes(&folder)?, config, seed));
    }
    dataset.finish(&root, "train, train_fixed, valid or valid_fixed")
}

/// `*/*/*.nii.gz` by file name, as the peers' scripts look for them.
fn volumes(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(folder).min_depth(1).max_depth(3).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::file(folder, e.to_string()))?;
        let name = entry.file_name().to_string_lossy().to_string();
        if entry.file_type().is_file() && (name.ends_with(".nii.gz") || name.ends_with(".nii")) && !name.starts_with("part_") {
            files.insert(name, entry.path().to_path_buf());
        }
    }
    Ok(files)
}

/// A part's tables.
pub(super) struct Tables {
    part: Part,
    reports: Table,
    metadata: Table,
    labels: Table,
}

/// `SPLIT_PATIENT_SCAN_RECONSTRUCTION` taken apart.
struct VolumeName<'a> {
    patient: &'a str,
    scan: &'a str,
    reconstruction: u32,
}

impl<'a> VolumeName<'a> {
    fn of(file: &'a str) -> Option<Self> {
        let name = bare(file);
        let (scan, reconstruction) = name.rsplit_once('_')?;
        let (patient, letter) = scan.rsplit_once('_')?;
        let (split, number) = patient.rsplit_once('_')?;
        let whole = !letter.is_empty() && !number.is_empty() && !split.is_empty() && !split.contains('_');
        whole.then_some(VolumeName { patient, scan, reconstruction: reconstruction.parse().ok()? })
    }
}

fn bare(file: &str) -> &str {
    file.trim_end_matches(".gz").trim_end_matches(".nii")
}

impl Tables {
    /// Reads reports, metadata and labels; the last two may be absent.
    pub(super) fn read(part: Part, [reports, metadata, labels]: &[PathBuf; 3]) -> Result<Self> {
        let label_columns: Vec<&'static str> = std::iter::once("VolumeName").chain(FINDINGS).collect();
        Ok(Tables {
            part,
            reports: Table::read(reports, &REPORTS, &[])?,
            metadata: Table::read_if_there(metadata, &METADATA)?,
            labels: Table::read_if_there(labels, &label_columns)?,
        })
    }

    /// The volumes that have a report.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &String> {
        self.reports.rows.keys()
    }

    /// The studies of these files (by volume name), with what is left out and why, and the published splits.
    pub(super) fn studies(&self, files: &BTreeMap<String, PathBuf>, config: &DataConfig, seed: u64) -> Dataset {
        let mut dataset = Dataset { named: self.named(), ..Dataset::default() };
        let first = self.first_reconstructions();
        for (file, path) in files {
            match self.study(file, path, &first, (config, seed)) {
                Ok(study) => dataset.studies.push(study),
                Err(why) => dataset.left_out.push((file.clone(), why)),
            }
        }
        let without = self.volumes().filter(|name| !files.contains_key(*name));
        dataset.left_out.extend(without.map(|name| (name.clone(), "has a report and no volume".to_string())));
        dataset.unreadable = [&self.reports, &self.metadata, &self.labels].into_iter().flat_map(|table| table.unreadable.clone()).collect();
        dataset
    }

    /// The lowest reconstruction of each scan that has a report. One whose file is missing is not replaced by another.
    fn first_reconstructions(&self) -> HashMap<&str, u32> {
        let mut first = HashMap::new();
        for name in self.volumes().filter_map(|file| VolumeName::of(file)) {
            let lowest = first.entry(name.scan).or_insert(name.reconstruction);
            *lowest = name.reconstruction.min(*lowest);
        }
        first
    }

    fn named(&self) -> BTreeMap<NamedSplit, SplitList> {
        if self.part == Part::Train {
            return BTreeMap::new();
        }
        let first = self.first_reconstructions();
        let is_first = |file: &str| VolumeName::of(file).is_some_and(|name| first[name.scan] == name.reconstruction);
        let is_long =
            |row: &Row| report_text(&row["Findings_EN"], "", Sections::Findings).is_some_and(|findings| findings.chars().count() >= LONG);
        let list = |wanted: &dyn Fn(&str, &Row) -> bool| {
            let rows = self.reports.rows.iter().filter(|(file, row)| wanted(file, row));
            SplitList::new(rows.map(|(file, _)| bare(file).to_string()).collect())
        };
        BTreeMap::from([
            (NamedSplit::CtRateValidVolumes, list(&|_, _| true)),
            (NamedSplit::CtRateValidScans, list(&|file, _| is_first(file))),
            (NamedSplit::CtRateValid500, list(&|file, row| is_first(file) && is_long(row))),
        ])
    }

    /// The study of a file, or why it is left out.
    fn study(
        &self,
        file: &str,
        path: &Path,
        first: &HashMap<&str, u32>,
        (config, seed): (&DataConfig, u64),
    ) -> std::result::Result<Study, String> {
        let name = VolumeName::of(file).ok_or("its name is not SPLIT_PATIENT_SCAN_RECONSTRUCTION")?;
        let row = self.reports.rows.get(file).ok_or("no row in the reports")?;
        if config.reconstructions == Reconstructions::First && first.get(name.scan).is_some_and(|first| *first != name.reconstruction) {
            return Err("another reconstruction of the scan is used (data.reconstructions: first)".to_string());
        }
        let report = config.report(&row["Findings_EN"], &row["Impressions_EN"])?;
        let metadata = self.metadata.rows.get(file);
        let mut notices = Vec::new();
        let (rescale, spacing_mm) = match metadata {
            Some(row) => scanner(row, &mut notices),
            None => {
                notices.push("no row in the metadata".to_string());
                (None, None)
            }
        };
        let split = if self.part == Part::Train { train_split(name.patient, config.validation_share, seed) } else { Split::Test };
        Ok(Study {
            rescale,
            spacing_mm,
            labels: self.labels.rows.get(file).map(labels),
            notices,
            ..Study::new(bare(file), name.patient, split, path, report)
        })
    }
}

/// Slope and intercept, and the spacing (z, xy), of a metadata row; what cannot be read is noted.
fn scanner(row: &Row, notices: &mut Vec<String>) -> (Option<CsvRescale>, Option<[f64; 2]>) {
    let number = |column: &str| row[column].trim().parse::<f64>().ok().filter(|value| value.is_finite());
    let rescale = number("RescaleSlope").zip(number("RescaleIntercept")).map(|(slope, intercept)| CsvRescale { slope, intercept });
    if rescale.is_none() {
        notices
            .push(format!("metadata: RescaleSlope {:?}, RescaleIntercept {:?}: no numbers", row["RescaleSlope"], row["RescaleIntercept"]));
    }
    let (z, xy) = (number("ZSpacing").filter(|z| *z > 0.0), xy_spacing(&row["XYSpacing"]));
    if z.is_none() || xy.is_none() {
        notices.push(format!("metadata: XYSpacing {:?}, ZSpacing {:?}: no spacing", row["XYSpacing"], row["ZSpacing"]));
    }
    (rescale, z.zip(xy).map(|(z, xy)| [z, xy]))
}

/// The spacing of "[0.728515625, 0.728515625]", "0.7,0.7", "('0.75', '0.75')", "0.7\0.7", "[0.75]", "0.75"; `None` where a part is no positive
/// number, or where the two differ by more than a hundredth: the voxels would not be square.
fn xy_spacing(cell: &str) -> Option<f64> {
    let part = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
    let separators = |c: char| c.is_whitespace() || ",;\\/[](){}'\"".contains(c);
    let parts: Vec<f64> = cell.split(separators).filter(|text| !text.is_empty()).map(part).collect::<Option<_>>()?;
    match parts[..] {
        [xy] => Some(xy),
        [x, y] if (x - y).abs() <= 0.01 * x => Some(x),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacing_is_read_in_all_its_spellings() {
        for (cell, expected) in [
            ("[0.728515625, 0.728515625]", Some(0.728515625)),
            ("[0.75]", Some(0.75)),
            ("0.7,0.7", Some(0.7)),
            ("1.25, 1.25", Some(1.25)),
            ("('0.75', '0.75')", Some(0.75)),
            ("[\"0.8\", \"0.8\"]", Some(0.8)),
            ("0.7\\0.7", Some(0.7)),
            ("[7.5e-1 7.5e-1]", Some(0.75)),
            ("0.7", Some(0.7)),
            ("", None),
            ("nan", None),
            ("[0, 0]", None),
            ("[0.7, 0.9]", None),
            ("[0.7, 0.7, 1.5]", None),
        ] {
            assert_eq!(xy_spacing(cell), expected, "{cell}");
        }
    }

    #[test]
    fn a_volume_s_name_is_split_patient_scan_and_reconstruction() {
        let name = VolumeName::of("valid_53_a_2.nii.gz").unwrap();
        assert_eq!((name.patient, name.scan, name.reconstruction), ("valid_53", "valid_53_a", 2));
        for wrong in ["valid_53_a.nii.gz", "scan.nii.gz", "valid_53_a_x.nii.gz", "a_valid_53_a_1.nii.gz"] {
            assert!(VolumeName::of(wrong).is_none(), "{wrong}");
        }
    }
}
