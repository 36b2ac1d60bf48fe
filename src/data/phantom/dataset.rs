//! Phantoms on disk, as CT-RATE v2 lays out its files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::text::FINDINGS;
use crate::volume::write_nifti;
use crate::{Error, Result};

use super::anatomy::Anatomy;
use super::{FIRST_VALID, Lesion, Lobe, Phantom, PhantomConfig, Side, Source, draw_source};

/// A share of the patients has a second scan, a share of the scans a second reconstruction.
const SECOND_SCAN: f64 = 1.0 / 12.0;
const SECOND_RECONSTRUCTION: f64 = 1.0 / 15.0;

/// A split: its name in folders, volumes and labels, its name in the other tables.
struct Split {
    name: &'static str,
    tables: &'static str,
    scans: usize,
    first: u64,
}

/// A volume to be written.
struct Planned {
    split: usize,
    patient: String,
    scan: String,
    name: String,
    source: Source,
}

/// What the tables tell of a volume; its voxels are on disk already.
struct Row {
    name: String,
    female: bool,
    phantom: Phantom,
}

/// A line of `phantom_truth.jsonl`.
#[derive(Serialize)]
struct Truth<'a> {
    volume: &'a str,
    lesions: Vec<TruthLesion<'a>>,
}

#[derive(Serialize)]
struct TruthLesion<'a> {
    finding: &'static str,
    structure: &'a str,
    side: Option<Side>,
    lobe: Option<Lobe>,
    size_mm: f64,
    first: [usize; 3],
    end: [usize; 3],
}

/// Writes the data set under `root/dataset`; `done` hears how many volumes are written. The same configuration writes the same bytes.
pub fn write_dataset(root: &Path, config: &PhantomConfig, done: impl Fn(usize) + Sync) -> Result<()> {
    let faults = config.faults("phantom");
    if !faults.is_empty() {
        return Err(Error::Config { source_name: "phantom".to_string(), faults });
    }
    let root = root.join("dataset");
    let splits = [
        Split { name: "train", tables: "train", scans: config.train, first: 0 },
        Split { name: "valid", tables: "validation", scans: config.valid, first: FIRST_VALID },
    ];
    let volumes: Vec<Planned> = splits.iter().enumerate().flat_map(|(index, split)| plan(index, split, config.seed)).collect();
    refuse_leftovers(&root, &splits, &volumes)?;
    let written = AtomicUsize::new(0);
    let rows: Vec<Row> = volumes
        .par_iter()
        .map(|volume| {
            let row = write_volume(&root, &splits[volume.split], volume, config)?;
            done(written.fetch_add(1, Ordering::Relaxed) + 1);
            Ok(row)
        })
        .collect::<Result<_>>()?;
    for (index, split) in splits.iter().enumerate() {
        let of_split = volumes.iter().zip(&rows).filter(|(volume, _)| volume.split == index);
        let of_split: Vec<&Row> = of_split.map(|(_, row)| row).collect();
        write_table(&root.join(format!("radiology_text_reports/{}_reports.csv", split.tables)), reports(&of_split))?;
        write_table(&root.join(format!("metadata/{}_metadata.csv", split.tables)), metadata(&of_split))?;
        write_table(&root.join(format!("multi_abnormality_labels/{}_predicted_labels.csv", split.name)), labels(&of_split))?;
    }
    write_truth(&root.join("phantom_truth.jsonl"), &rows)
}

/// The volumes of a split: patients with their scans and reconstructions.
fn plan(index: usize, split: &Split, seed: u64) -> Vec<Planned> {
    let (mut volumes, mut number, mut patient, mut letter) = (Vec::new(), 0, split.first, 'a');
    for scan in (0..split.scans as u64).map(|scan| split.first + scan) {
        let mut rng = Source::rng(seed, scan, 8);
        let (second_scan, second_reconstruction) = (rng.random_bool(SECOND_SCAN), rng.random_bool(SECOND_RECONSTRUCTION));
        if second_scan && letter == 'a' && number > 0 {
            letter = 'b';
        } else {
            (number, patient, letter) = (number + 1, scan, 'a');
        }
        for reconstruction in 0..=u64::from(second_reconstruction) {
            let patient_name = format!("{}_{number}", split.name);
            let scan_name = format!("{patient_name}_{letter}");
            let name = format!("{scan_name}_{}.nii.gz", reconstruction + 1);
            let source = Source { patient, scan, reconstruction };
            volumes.push(Planned { split: index, patient: patient_name, scan: scan_name, name, source });
        }
    }
    volumes
}

fn folder(root: &Path, split: &Split) -> PathBuf {
    root.join(format!("{}_fixed", split.name))
}

/// Volumes of another configuration would be read with this one's tables: they are refused, not deleted.
fn refuse_leftovers(root: &Path, splits: &[Split], volumes: &[Planned]) -> Result<()> {
    let planned: std::collections::HashSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    for split in splits {
        let files = walkdir::WalkDir::new(folder(root, split)).sort_by_file_name().into_iter().filter_map(|entry| entry.ok());
        for file in files.filter(|file| file.file_type().is_file()) {
            let name = file.file_name().to_string_lossy();
            if !planned.contains(name.as_ref()) && !name.starts_with("part_") {
                return Err(Error::file(file.path(), "left by another configuration; choose an empty folder"));
            }
        }
    }
    Ok(())
}

fn write_volume(root: &Path, split: &Split, volume: &Planned, config: &PhantomConfig) -> Result<Row> {
    let folder = folder(root, split).join(&volume.patient).join(&volume.scan);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let mut phantom = draw_source(config.seed, volume.source, config);
    let (aside, path) = (folder.join(format!("part_{}", volume.name)), folder.join(&volume.name));
    write_nifti(&aside, &phantom.values, phantom.shape, phantom.spacing_mm, &phantom.affine)?;
    fs::rename(&aside, &path).map_err(|e| Error::io(&path, e))?;
    phantom.values = Vec::new();
    let female = Anatomy::draw(&mut Source::rng(config.seed, volume.source.patient, 0)).female();
    Ok(Row { name: volume.name.clone(), female, phantom })
}

fn reports(rows: &[&Row]) -> Vec<Vec<String>> {
    let head = ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"].map(String::from).to_vec();
    let lines = rows.iter().map(|row| {
        let technique = "Non-contrast images were drawn in the axial plane.".to_string();
        vec![row.name.clone(), "Not given.".to_string(), technique, row.phantom.findings.clone(), row.phantom.impression.clone()]
    });
    std::iter::once(head).chain(lines).collect()
}

/// The scanner's columns. Slope and intercept are DICOM's, though the files hold Hounsfield units, as in CT-RATE v2.
fn metadata(rows: &[&Row]) -> Vec<Vec<String>> {
    let head = [
        "VolumeName",
        "Manufacturer",
        "SeriesDescription",
        "ManufacturerModelName",
        "PatientSex",
        "PatientAge",
        "ReconstructionDiameter",
        "PatientPosition",
        "Rows",
        "Columns",
        "RescaleSlope",
        "RescaleIntercept",
        "XYSpacing",
        "ZSpacing",
        "NumberofSlices",
    ];
    let lines = rows.iter().map(|row| {
        let Phantom { shape: [slices, height, width], spacing_mm: [z, _, xy], .. } = &row.phantom;
        let sex = if row.female { "F" } else { "M" };
        let diameter = format!("{:.0}", xy * *width as f64);
        let [height, width, slices] = [height, width, slices].map(|count| count.to_string());
        [
            row.name.as_str(),
            "phantom",
            "CHEST",
            "drawn",
            sex,
            "",
            &diameter,
            "HFS",
            &height,
            &width,
            "1",
            "-1024",
            &format!("[{xy}, {xy}]"),
            &z.to_string(),
            &slices,
        ]
        .map(String::from)
        .to_vec()
    });
    std::iter::once(head.map(String::from).to_vec()).chain(lines).collect()
}

fn labels(rows: &[&Row]) -> Vec<Vec<String>> {
    let head = std::iter::once("VolumeName").chain(FINDINGS).map(String::from).collect();
    let lines = rows.iter().map(|row| {
        let labels = row.phantom.labels.iter().map(|label| u8::from(*label).to_string());
        std::iter::once(row.name.clone()).chain(labels).collect()
    });
    std::iter::once(head).chain(lines).collect()
}

fn write_table(path: &Path, lines: Vec<Vec<String>>) -> Result<()> {
    let broken = |e: csv::Error| Error::file(path, e.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    for line in lines {
        writer.write_record(&line).map_err(broken)?;
    }
    let bytes = writer.into_inner().map_err(|e| Error::file(path, e.to_string()))?;
    write_aside(path, &bytes)
}

fn write_truth(path: &Path, rows: &[Row]) -> Result<()> {
    let mut bytes = Vec::new();
    for row in rows {
        let truth = Truth { volume: &row.name, lesions: row.phantom.lesions.iter().map(TruthLesion::new).collect() };
        serde_json::to_writer(&mut bytes, &truth).map_err(|e| Error::file(path, e.to_string()))?;
        bytes.push(b'\n');
    }
    write_aside(path, &bytes)
}

impl<'a> TruthLesion<'a> {
    fn new(lesion: &'a Lesion) -> Self {
        let Lesion { finding, structure, side, lobe, size_mm, first, end } = lesion;
        let finding = FINDINGS[*finding];
        TruthLesion { finding, structure, side: *side, lobe: *lobe, size_mm: *size_mm, first: *first, end: *end }
    }
}

/// Written beside its place and renamed into it: a killed run leaves the old file or the new one.
fn write_aside(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().expect("tables lie in folders");
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io(folder, e))?;
    file.write_all(bytes).map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}
