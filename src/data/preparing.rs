//! From a dataset to a cache: several volumes at once, a verdict for each, and what is there already kept.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::DType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::chain;
use crate::ranks::{self, Alone, Communicator};
use crate::volume::{self, HuVerdict, PreparationConfig, Prepared, apply_policy, looks_like_chest, orient, read_grey};
use crate::weights;
use crate::{Error, Result};

use super::cache::{CachedStudy, NOTE, Note, PREPARATION, SPLITS, STUDIES, Verdict, read_note, read_preparation, volume_path};
use super::{Dataset, Study};

/// What became of each volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreparationReport {
    /// Prepared now.
    pub prepared: usize,
    /// Found prepared from an earlier call.
    pub kept: usize,
    /// Name and reason.
    pub failed: Vec<(String, String)>,
    /// Name and why its file was not brought.
    pub not_brought: Vec<(String, String)>,
    /// Name and what deserves a word.
    pub warned: Vec<(String, String)>,
}

/// A study's scan on disk; what was brought for the purpose is taken away again when this is dropped.
pub struct OnDisk {
    /// The file or folder.
    pub path: PathBuf,
    release: Option<Box<dyn FnOnce() + Send>>,
}

impl OnDisk {
    /// A scan that stays where it is.
    pub fn kept(path: PathBuf) -> Self {
        OnDisk { path, release: None }
    }

    /// A scan that was brought for the purpose; `release` is called when it has been dealt with.
    pub fn brought(path: PathBuf, release: impl FnOnce() + Send + 'static) -> Self {
        OnDisk { path, release: Some(Box::new(release)) }
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// Where scans come from.
pub trait Supply: Sync {
    /// The study's scan; or, in words, why it is not brought this time.
    fn bring(&self, study: &Study) -> Result<std::result::Result<OnDisk, String>>;
}

/// Scans that are on disk.
#[derive(Debug, Clone, Copy)]
pub struct LocalFiles;

impl Supply for LocalFiles {
    fn bring(&self, study: &Study) -> Result<std::result::Result<OnDisk, String>> {
        Ok(Ok(OnDisk::kept(study.path.clone())))
    }
}

/// A dataset to be prepared.
#[derive(Clone, Copy)]
pub struct Preparation<'a> {
    /// Its studies.
    pub dataset: &'a Dataset,
    /// How volumes are prepared.
    pub config: &'a PreparationConfig,
    /// The cache.
    pub root: &'a Path,
    /// Where scans come from.
    pub supply: &'a dyn Supply,
    /// Volumes at once in each rank: each needs a whole scan in memory.
    pub workers: usize,
    /// Who shares the work: every size-th volume is this rank's.
    pub ranks: &'a dyn Communicator,
}

/// As many as there are cores, at most four: a scan of 512 x 512 x 600 voxels takes some 700 MB while it is prepared.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

/// Prepares the volumes of `dataset`, which are on disk, into `root`, several at once. A volume that fails is listed and passed over; one that is
/// there already is kept.
pub fn prepare(dataset: &Dataset, config: &PreparationConfig, root: &Path, done: impl Fn(usize) + Sync) -> Result<PreparationReport> {
    Preparation { dataset, config, root, supply: &LocalFiles, workers: default_workers(), ranks: &Alone }.run(&done)
}

/// What became of one volume.
#[derive(Serialize, Deserialize)]
enum Outcome {
    Kept(Verdict),
    Prepared(Verdict),
    NotBrought(String),
    Failed(String),
}

impl Preparation<'_> {
    /// Prepares what is not there yet; every rank gets the whole report. `done` hears how many volumes are dealt with, of all ranks as far as
    /// this one can tell.
    pub fn run(&self, done: &(dyn Fn(usize) + Sync)) -> Result<PreparationReport> {
        self.ranks.agree("the dataset's studies (SHA-256)", &self.studies_sha256())?;
        self.ranks.leader_first(|| self.open_root())?;
        let mut outcomes = self.ranks.gather_values(&self.outcomes(done))?;
        outcomes.sort_unstable_by_key(|(index, _)| *index);
        let mut report = PreparationReport::default();
        let (mut manifest, mut rows) = (String::new(), Vec::new());
        for (study, (_, outcome)) in self.dataset.studies.iter().zip(outcomes) {
            if matches!(outcome, Outcome::Kept(_) | Outcome::Prepared(_)) {
                manifest += &(serde_json::to_string(&CachedStudy::of(study)).map_err(|e| Error::file(self.root, e.to_string()))? + "\n");
            }
            rows.push(report.note(study, outcome));
        }
        self.ranks.leader_only(|| self.write_lists(rows, &manifest))?;
        Ok(report)
    }

    /// Of all studies' names and reports, in their order.
    fn studies_sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for study in &self.dataset.studies {
            [&study.name, &study.report].into_iter().for_each(|text| hasher.update([text.as_bytes(), &[0]].concat()));
        }
        format!("{:x}", hasher.finalize())
    }

    /// Makes the cache's folder, or finds in it what was prepared in the same way, less what a killed call left half written.
    fn open_root(&self) -> Result<()> {
        let volumes = self.root.join("volumes");
        fs::create_dir_all(&volumes).map_err(|e| Error::io(&volumes, e))?;
        agree(&self.root.join(PREPARATION), self.config)?;
        weights::remove_leftovers(&volumes).map(drop)
    }

    /// What is told of all volumes: `prepare.csv`, the published splits, and last the studies, with which a cache can be opened.
    fn write_lists(&self, mut rows: Vec<[String; 5]>, manifest: &str) -> Result<()> {
        for (outcome, listed) in [("left out", &self.dataset.left_out), ("unreadable row", &self.dataset.unreadable)] {
            rows.extend(listed.iter().map(|(name, why)| [name, outcome, "", why, ""].map(String::from)));
        }
        write_rows(&self.root.join("prepare.csv"), &rows)?;
        let splits = serde_json::to_string(&self.dataset.named).map_err(|e| Error::file(self.root, e.to_string()))?;
        weights::write_aside(&self.root.join(SPLITS), splits.as_bytes())?;
        weights::write_aside(&self.root.join(STUDIES), manifest.as_bytes())
    }

    /// The outcome of each of this rank's studies and its place among all. Plain threads: a worker that waits must not take up another scan
    /// meanwhile, as rayon's would.
    fn outcomes(&self, done: &(dyn Fn(usize) + Sync)) -> Vec<(usize, Outcome)> {
        let (studies, size) = (&self.dataset.studies, self.ranks.size());
        let (next, finished) = (AtomicUsize::new(self.ranks.rank()), AtomicUsize::new(0));
        let outcomes = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.workers.clamp(1, studies.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(size, Ordering::Relaxed);
                        let Some(study) = studies.get(index) else { break };
                        let outcome = self.guarded(study);
                        outcomes.lock().expect("no worker panics while it holds the list").push((index, outcome));
                        done(((finished.fetch_add(1, Ordering::Relaxed) + 1) * size).min(studies.len()));
                    }
                });
            }
        });
        outcomes.into_inner().expect("no worker panics while it holds the list")
    }

    /// A reader's panic is that volume's failure, not the run's.
    fn guarded(&self, study: &Study) -> Outcome {
        let outcome = ranks::catch(|| self.one(study))
            .unwrap_or_else(|said| Err(Error::Study { study: study.name.clone(), what: format!("reading it panicked: {said}") }));
        outcome.unwrap_or_else(|error| Outcome::Failed(chain(&error)))
    }

    fn one(&self, study: &Study) -> Result<Outcome> {
        let path = volume_path(self.root, &study.name);
        if path.is_file() {
            return Ok(Outcome::Kept(read_note(&path)?.verdict));
        }
        match self.supply.bring(study)? {
            Ok(scan) => self.prepare(study, &scan.path, &path).map(Outcome::Prepared),
            Err(why) => Ok(Outcome::NotBrought(why)),
        }
    }

    fn prepare(&self, study: &Study, scan: &Path, path: &Path) -> Result<Verdict> {
        let mut volume = match &study.grey {
            Some(grey) => read_grey(scan, grey)?,
            None => volume::read(scan)?,
        };
        let HuVerdict { decision, evidence } = apply_policy(&mut volume, study.rescale, self.config.hounsfield)?;
        let mut notices = [volume.notices.clone(), study.notices.clone()].concat();
        let chest = looks_like_chest(&volume);
        if !chest.is_chest {
            notices.push(format!("does not look like a chest: {:.1}% of the body has lung's density", 100.0 * chest.lung_share));
        }
        let volume = orient(volume, self.config.orientation);
        let Prepared { tensor, geometry } = volume::prepare(&volume, self.config, study.spacing_mm)?;
        let note = Note { geometry, verdict: Verdict { hounsfield: decision, evidence, notices } };
        let text = serde_json::to_string(&note).map_err(|e| Error::file(path, e.to_string()))?;
        let tensors = BTreeMap::from([("volume".to_string(), tensor.to_dtype(DType::F16)?)]);
        weights::write(path, &tensors, &HashMap::from([(NOTE.to_string(), text)]))?;
        Ok(note.verdict)
    }
}

impl PreparationReport {
    /// Counts an outcome and returns its row of `prepare.csv`.
    fn note(&mut self, study: &Study, outcome: Outcome) -> [String; 5] {
        let name = study.name.clone();
        let (word, verdict) = match outcome {
            Outcome::Kept(verdict) => {
                self.kept += 1;
                ("kept", verdict)
            }
            Outcome::Prepared(verdict) => {
                self.prepared += 1;
                self.warned.extend(verdict.notices.iter().map(|notice| (name.clone(), notice.clone())));
                ("prepared", verdict)
            }
            Outcome::NotBrought(why) => {
                self.not_brought.push((name.clone(), why.clone()));
                return [name, "not brought".to_string(), String::new(), why, String::new()];
            }
            Outcome::Failed(why) => {
                self.failed.push((name.clone(), why.clone()));
                return [name, "failed".to_string(), String::new(), why, study.notices.join("; ")];
            }
        };
        [name, word.to_string(), verdict.hounsfield, verdict.evidence, verdict.notices.join("; ")]
    }
}

/// `prepare.csv`: name, outcome, Hounsfield decision, evidence or reason, notices.
fn write_rows(path: &Path, rows: &[[String; 5]]) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let fault = |e: csv::Error| Error::file(path, e.to_string());
    writer.write_record(["volume", "outcome", "hounsfield", "evidence", "notices"]).map_err(fault)?;
    rows.iter().try_for_each(|row| writer.write_record(row)).map_err(fault)?;
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
