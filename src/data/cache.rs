//! The cache of prepared volumes: one file a study, a manifest, and a verdict for every volume of the dataset.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::volume::{self, Geometry, HuVerdict, PreparationConfig, Prepared, apply_policy, looks_like_chest, orient};
use crate::weights;
use crate::{Error, Result};

use super::{Dataset, Split, Study};

/// A study whose volume is prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachedStudy {
    /// The volume's name.
    pub name: String,
    /// The patient.
    pub patient: String,
    /// What it is used for.
    pub split: Split,
    /// The report.
    pub report: String,
    /// The 18 findings, where known.
    pub labels: Option<[bool; 18]>,
}

/// What became of each volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreparationReport {
    /// Prepared now.
    pub prepared: usize,
    /// Found prepared from an earlier call.
    pub kept: usize,
    /// Name and reason.
    pub failed: Vec<(String, String)>,
    /// Name and what deserves a word.
    pub warned: Vec<(String, String)>,
}

/// A cache, opened.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// How its volumes were prepared.
    pub preparation: PreparationConfig,
    /// Its studies, sorted by name.
    pub studies: Vec<CachedStudy>,
}

const STUDIES: &str = "studies.jsonl";
const PREPARATION: &str = "preparation.json";

/// Prepares the volumes of `dataset` into `root`, several at once. A volume that fails is listed and passed over; one that is there already is kept.
pub fn prepare(dataset: &Dataset, config: &PreparationConfig, root: &Path, done: impl Fn(usize) + Sync) -> Result<PreparationReport> {
    let volumes = root.join("volumes");
    fs::create_dir_all(&volumes).map_err(|e| Error::io(&volumes, e))?;
    agree(&root.join(PREPARATION), config)?;
    let count = std::sync::atomic::AtomicUsize::new(0);
    let prepare_one = |study: &Study| {
        let path = volume_path(root, &study.name);
        let outcome = if path.is_file() { Ok(Outcome::Kept) } else { prepare_study(study, config, &path).map(Outcome::Prepared) };
        done(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
        outcome
    };
    let outcomes: Vec<Result<Outcome>> = dataset.studies.par_iter().map(prepare_one).collect();
    let mut report = PreparationReport::default();
    let (mut manifest, mut rows) = (String::new(), Vec::new());
    for (study, outcome) in dataset.studies.iter().zip(outcomes) {
        let row = match outcome {
            Ok(outcome) => {
                let cached = CachedStudy {
                    name: study.name.clone(),
                    patient: study.patient.clone(),
                    split: study.split,
                    report: study.report.clone(),
                    labels: study.labels,
                };
                manifest += &(serde_json::to_string(&cached).map_err(|e| Error::file(root, e.to_string()))? + "\n");
                report.note(&study.name, outcome)
            }
            Err(error) => {
                let why = crate::error::chain(&error);
                report.failed.push((study.name.clone(), why.clone()));
                ["failed".to_string(), String::new(), why]
            }
        };
        rows.push((study.name.clone(), row));
    }
    for (outcome, listed) in [("left out", &dataset.left_out), ("unreadable row", &dataset.unreadable)] {
        rows.extend(listed.iter().map(|(name, why)| (name.clone(), [outcome.to_string(), String::new(), why.clone()])));
    }
    write_rows(&root.join("prepare.csv"), &rows, report.kept > 0)?;
    weights::write_aside(&root.join(STUDIES), manifest.as_bytes())?;
    Ok(report)
}

enum Outcome {
    Kept,
    Prepared((HuVerdict, Option<String>)),
}

impl PreparationReport {
    fn note(&mut self, name: &str, outcome: Outcome) -> [String; 3] {
        match outcome {
            Outcome::Kept => {
                self.kept += 1;
                ["kept".to_string(), String::new(), String::new()]
            }
            Outcome::Prepared((verdict, warning)) => {
                self.prepared += 1;
                if let Some(warning) = &warning {
                    self.warned.push((name.to_string(), warning.clone()));
                }
                ["prepared".to_string(), verdict.decision, warning.unwrap_or(verdict.evidence)]
            }
        }
    }
}

/// `prepare.csv`: name, outcome, Hounsfield decision, evidence or reason. Rows of volumes that are kept stay as they were written.
fn write_rows(path: &Path, rows: &[(String, [String; 3])], keep: bool) -> Result<()> {
    let mut earlier: HashMap<String, Vec<String>> = HashMap::new();
    if keep && let Ok(mut reader) = csv::Reader::from_path(path) {
        for record in reader.records().flatten() {
            earlier.insert(record[0].to_string(), record.iter().map(String::from).collect());
        }
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    let fault = |e: csv::Error| Error::file(path, e.to_string());
    writer.write_record(["volume", "outcome", "hounsfield", "evidence"]).map_err(fault)?;
    for (name, [outcome, decision, evidence]) in rows {
        let new = || vec![name.clone(), outcome.clone(), decision.clone(), evidence.clone()];
        let row = if outcome == "kept" { earlier.remove(name).unwrap_or_else(new) } else { new() };
        writer.write_record(row).map_err(fault)?;
    }
    let bytes = writer.into_inner().map_err(|e| Error::file(path, e.to_string()))?;
    weights::write_aside(path, &bytes)
}

/// A cache holds volumes of one preparation only.
fn agree(path: &Path, config: &PreparationConfig) -> Result<()> {
    if path.is_file() {
        if read_preparation(path)? != *config {
            return Err(Error::file(path, "the cache was prepared with other `volume` keys; give another folder"));
        }
        return Ok(());
    }
    let text = serde_json::to_string_pretty(config).map_err(|e| Error::file(path, e.to_string()))?;
    weights::write_aside(path, text.as_bytes())
}

fn read_preparation(path: &Path) -> Result<PreparationConfig> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}

fn volume_path(root: &Path, name: &str) -> PathBuf {
    root.join("volumes").join(format!("{name}.safetensors"))
}

fn prepare_study(study: &Study, config: &PreparationConfig, path: &Path) -> Result<(HuVerdict, Option<String>)> {
    let mut volume = volume::read(&study.path)?;
    let verdict = apply_policy(&mut volume, study.rescale, config.hounsfield)?;
    let chest = looks_like_chest(&volume);
    let warning =
        (!chest.is_chest).then(|| format!("does not look like a chest: {:.1}% of the body has lung's density", 100.0 * chest.lung_share));
    let volume = orient(volume, config.orientation);
    let Prepared { tensor, geometry } = volume::prepare(&volume, config, study.spacing_mm)?;
    let geometry = serde_json::to_string(&geometry).map_err(|e| Error::file(path, e.to_string()))?;
    let tensors = BTreeMap::from([("volume".to_string(), tensor.to_dtype(DType::F16)?)]);
    weights::write(path, &tensors, &HashMap::from([("geometry".to_string(), geometry)]))?;
    Ok((verdict, warning))
}

impl Cache {
    /// Opens a folder that [`prepare`] has filled.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(STUDIES);
        if !path.is_file() {
            return Err(Error::file(root, "not a cache of prepared volumes: it holds no studies.jsonl (see `ctscribe prepare`)"));
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let study = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| Error::field(&path, format!("line {}", index + 1), e.to_string()))
        };
        let studies = text.lines().enumerate().map(study).collect::<Result<_>>()?;
        Ok(Cache { root: root.to_path_buf(), preparation: read_preparation(&root.join(PREPARATION))?, studies })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The studies of a split.
    pub fn split(&self, split: Split) -> Vec<&CachedStudy> {
        self.studies.iter().filter(|study| study.split == split).collect()
    }

    /// A study's prepared volume (1, D, H, W) in f32.
    pub fn volume(&self, name: &str) -> Result<Tensor> {
        let path = volume_path(&self.root, name);
        let tensor = weights::open(&path)?.remove("volume").ok_or_else(|| Error::file(&path, "holds no tensor `volume`"))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// Where a study's prepared voxels lie in its scan.
    pub fn geometry(&self, name: &str) -> Result<Geometry> {
        let path = volume_path(&self.root, name);
        let text = weights::metadata(&path)?.remove("geometry").ok_or_else(|| Error::file(&path, "holds no geometry"))?;
        serde_json::from_str(&text).map_err(|e| Error::field(&path, "geometry", e.to_string()))
    }

    /// Refuses a cache that was prepared otherwise than `config` says.
    pub fn check(&self, config: &PreparationConfig) -> Result<()> {
        if self.preparation == *config {
            return Ok(());
        }
        Err(Error::file(self.root.join(PREPARATION), "the cache was prepared with other `volume` keys than the run's"))
    }
}
