//! The cache of prepared volumes, opened: one file a study, and what is known of each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::volume::{Geometry, PreparationConfig};
use crate::weights;
use crate::{Error, Result};

use super::subsets::{NamedSplits, SplitList, SplitRecord, Subset};
use super::{Split, Study};

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
    /// Each structure's sentences, where they came ready-made; else the rules split the report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structure_texts: Option<BTreeMap<String, String>>,
}

impl CachedStudy {
    /// What is kept of a study.
    pub(super) fn of(study: &Study) -> Self {
        let Study { name, patient, split, report, labels, structure_texts, .. } = study.clone();
        CachedStudy { name, patient, split, report, labels, structure_texts }
    }
}

/// What is told of a prepared volume.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Verdict {
    pub(super) hounsfield: String,
    pub(super) evidence: String,
    pub(super) notices: Vec<String>,
}

/// What is kept with a prepared volume, as one entry of its metadata: several would be written in an order that changes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) geometry: Geometry,
    pub(super) verdict: Verdict,
}

/// The entry's key.
pub(super) const NOTE: &str = "prepared";

/// The note of a prepared volume; earlier versions kept the geometry alone.
pub(super) fn read_note(path: &Path) -> Result<Note> {
    let mut metadata = weights::metadata(path)?;
    let fault = |e: serde_json::Error| Error::field(path, NOTE, e.to_string());
    if let Some(text) = metadata.remove(NOTE) {
        return serde_json::from_str(&text).map_err(fault);
    }
    let text = metadata.remove("geometry").ok_or_else(|| Error::file(path, "holds no geometry"))?;
    Ok(Note { geometry: serde_json::from_str(&text).map_err(fault)?, verdict: Verdict::default() })
}

/// A cache, opened.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// How its volumes were prepared.
    pub preparation: PreparationConfig,
    /// Its studies, sorted by name.
    pub studies: Vec<CachedStudy>,
    /// Published splits and all their studies, prepared or not.
    pub named: NamedSplits,
}

pub(super) const STUDIES: &str = "studies.jsonl";
pub(super) const PREPARATION: &str = "preparation.json";
pub(super) const SPLITS: &str = "splits.json";

pub(super) fn read_preparation(path: &Path) -> Result<PreparationConfig> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}

pub(super) fn volume_path(root: &Path, name: &str) -> PathBuf {
    root.join("volumes").join(format!("{name}.safetensors"))
}

/// The published splits; a cache of an earlier version has none.
pub(super) fn read_splits(path: &Path) -> Result<NamedSplits> {
    if !path.is_file() {
        return Ok(NamedSplits::new());
    }
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}

impl Cache {
    /// Opens a folder that [`super::prepare`] has filled.
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
        let preparation = read_preparation(&root.join(PREPARATION))?;
        Ok(Cache { root: root.to_path_buf(), preparation, studies, named: read_splits(&root.join(SPLITS))? })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The studies of a split.
    pub fn split(&self, split: Split) -> Vec<&CachedStudy> {
        self.studies.iter().filter(|study| study.split == split).collect()
    }

    /// The prepared studies of a split or of a published split, in the order of their names.
    pub fn subset(&self, subset: Subset) -> Result<Vec<&CachedStudy>> {
        let studies: Vec<&CachedStudy> = match subset {
            Subset::Split(split) => self.split(split),
            Subset::Named(named) => {
                let list = self.named.get(&named).ok_or_else(|| self.unknown(subset))?;
                self.studies.iter().filter(|study| list.names.binary_search(&study.name).is_ok()).collect()
            }
        };
        if studies.is_empty() {
            return Err(Error::file(&self.root, format!("holds no study of the split {subset}")));
        }
        Ok(studies)
    }

    /// What a result on `used` studies of a subset says of its split.
    pub fn split_record(&self, subset: Subset, used: usize) -> Result<SplitRecord> {
        let list = match subset {
            Subset::Split(split) => SplitList::new(self.split(split).into_iter().map(|study| study.name.clone()).collect()),
            Subset::Named(named) => self.named.get(&named).cloned().ok_or_else(|| self.unknown(subset))?,
        };
        let SplitList { studies, sha256, .. } = list;
        Ok(SplitRecord { name: subset.name().to_string(), studies, sha256, missing: studies.saturating_sub(used) })
    }

    fn unknown(&self, subset: Subset) -> Error {
        let known = self.named.keys().map(|named| named.name()).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_string() } else { known };
        Error::field(self.root.join(SPLITS), subset.name(), format!("the dataset that was prepared has no such split; it has {known}"))
    }

    /// A study's prepared volume (1, D, H, W) in f32.
    pub fn volume(&self, name: &str) -> Result<Tensor> {
        let path = volume_path(&self.root, name);
        let tensor = weights::open(&path)?.remove("volume").ok_or_else(|| Error::file(&path, "holds no tensor `volume`"))?;
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// Where a study's prepared voxels lie in its scan.
    pub fn geometry(&self, name: &str) -> Result<Geometry> {
        Ok(read_note(&volume_path(&self.root, name))?.geometry)
    }

    /// Refuses a cache that was prepared otherwise than `config` says.
    pub fn check(&self, config: &PreparationConfig) -> Result<()> {
        if self.preparation == *config {
            return Ok(());
        }
        Err(Error::file(self.root.join(PREPARATION), "the cache was prepared with other `volume` keys than the run's"))
    }
}
