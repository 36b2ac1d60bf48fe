//! The run folder: resolved configuration, manifest, metrics, checkpoints. Files are written aside and renamed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::weights::{self, write_aside};
use crate::{Error, Result};

/// What a checkpoint says of itself beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointState {
    /// Optimiser steps done.
    pub step: u64,
    /// What was being trained (`structure`, `report-llama`, ...).
    pub stage: String,
    /// SHA-256 of the resolved configuration that the run was started with.
    pub config_sha256: String,
    /// SHA-256 of the checkpoint's tensor files by name.
    pub files: BTreeMap<String, String>,
}

/// One checkpoint: the model's tensors, the optimiser's, and what they belong to.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says of itself.
    pub state: CheckpointState,
    /// The model's tensors by name.
    pub model: HashMap<String, Tensor>,
    /// The optimiser's moments, the queue and running statistics by name.
    pub optimizer: HashMap<String, Tensor>,
}

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// Makes the folder; an existing one is taken as it is.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|e| Error::io(&root, e))?;
        Ok(RunFolder { root })
    }

    /// An existing run folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if !root.join("config.yaml").is_file() {
            return Err(Error::file(&root, "not a run folder: it holds no config.yaml"));
        }
        Ok(RunFolder { root })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of `name` in the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Writes `text` to `name`, aside and renamed.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        write_aside(&self.path(name), text.as_bytes())
    }

    /// Appends one JSON line to `metrics.jsonl`.
    pub fn append_metrics(&self, line: &serde_json::Value) -> Result<()> {
        let path = self.path("metrics.jsonl");
        let open = fs::OpenOptions::new().create(true).append(true).open(&path);
        let mut file = open.map_err(|e| Error::io(&path, e))?;
        writeln!(file, "{line}").map_err(|e| Error::io(&path, e))
    }

    /// Cuts `metrics.jsonl` back to the steps before `step`: a resumed run writes the later ones again.
    pub fn cut_metrics(&self, step: u64) -> Result<()> {
        let path = self.path("metrics.jsonl");
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let earlier = |line: &&str| {
            let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
            value.and_then(|value| value.get("step")?.as_u64()).is_some_and(|at| at <= step)
        };
        let kept: String = text.lines().filter(earlier).flat_map(|line| [line, "\n"]).collect();
        write_aside(&path, kept.as_bytes())
    }

    /// The lines of `metrics.jsonl`; none where there is no such file.
    pub fn metrics(&self) -> Result<Vec<serde_json::Value>> {
        let path = self.path("metrics.jsonl");
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let line = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| Error::field(&path, format!("line {}", index + 1), e.to_string()))
        };
        text.lines().enumerate().map(line).collect()
    }

    /// Writes checkpoint `state.step`: aside, fsynced, read back and compared, renamed.
    pub fn save_checkpoint(&self, stage: &str, step: u64, config_sha256: &str, tensors: &CheckpointTensors) -> Result<PathBuf> {
        let folder = self.path("checkpoints");
        let (aside, path) = (folder.join(format!(".{step}.partial")), folder.join(format!("{step:08}")));
        let _ = fs::remove_dir_all(&aside);
        fs::create_dir_all(&aside).map_err(|e| Error::io(&aside, e))?;
        let mut files = BTreeMap::new();
        for (name, tensors) in [("model.safetensors", &tensors.model), ("optimizer.safetensors", &tensors.optimizer)] {
            let file = aside.join(name);
            weights::save(&file, tensors, &HashMap::new())?;
            verify_written(&file, tensors)?;
            files.insert(name.to_string(), weights::sha256(&file)?);
        }
        let state = CheckpointState { step, stage: stage.to_string(), config_sha256: config_sha256.to_string(), files };
        let text = serde_json::to_string_pretty(&state).map_err(|e| Error::file(&aside, e.to_string()))?;
        write_aside(&aside.join("state.json"), text.as_bytes())?;
        sync_folder(&aside)?;
        let _ = fs::remove_dir_all(&path);
        fs::rename(&aside, &path).map_err(|e| Error::io(&path, e))?;
        sync_folder(&folder)?;
        Ok(path)
    }

    /// The steps of whole checkpoints, oldest first.
    pub fn checkpoint_steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.path("checkpoints")).into_iter().flatten().flatten();
        let whole = entries.filter(|entry| entry.path().join("state.json").is_file());
        let mut steps: Vec<u64> = whole.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// The newest checkpoint whose files are what they say, or `None`.
    pub fn latest_checkpoint(&self) -> Result<Option<Checkpoint>> {
        self.checkpoint_steps().last().map(|step| self.checkpoint(*step)).transpose()
    }

    /// The checkpoint of `step`, its files checked against their checksums.
    pub fn checkpoint(&self, step: u64) -> Result<Checkpoint> {
        let path = self.path("checkpoints").join(format!("{step:08}"));
        let state_path = path.join("state.json");
        let text = fs::read_to_string(&state_path).map_err(|e| Error::io(&state_path, e))?;
        let state: CheckpointState = serde_json::from_str(&text).map_err(|e| Error::file(&state_path, e.to_string()))?;
        for (name, expected) in &state.files {
            let found = weights::sha256(&path.join(name))?;
            if found != *expected {
                return Err(Error::file(path.join(name), format!("damaged: SHA-256 {found}, expected {expected}")));
            }
        }
        let load = |name: &str| weights::open(&path.join(name));
        Ok(Checkpoint { model: load("model.safetensors")?, optimizer: load("optimizer.safetensors")?, state, path })
    }

    /// Removes all checkpoints but the `keep` newest and those of the steps `best`.
    pub fn prune(&self, keep: usize, best: &[u64]) -> Result<()> {
        let steps = self.checkpoint_steps();
        let folder = self.path("checkpoints");
        let older = &steps[..steps.len().saturating_sub(keep.max(1))];
        for step in older.iter().filter(|step| !best.contains(step)) {
            // renamed first: a checkpoint that is half removed must not look whole
            let (path, aside) = (folder.join(format!("{step:08}")), folder.join(format!(".{step}.old")));
            fs::rename(&path, &aside).map_err(|e| Error::io(&path, e))?;
        }
        let entries = fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?;
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with('.')) {
            fs::remove_dir_all(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
        Ok(())
    }
}

/// The tensors of a checkpoint to be written.
#[derive(Debug, Default)]
pub struct CheckpointTensors {
    /// The model's tensors by name.
    pub model: BTreeMap<String, Tensor>,
    /// Optimiser moments, queue, running statistics by name.
    pub optimizer: BTreeMap<String, Tensor>,
}

fn verify_written(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let read = candle_core::safetensors::load(path, &Device::Cpu)?;
    for (name, tensor) in tensors {
        let same = read.get(name).is_some_and(|back| back.dims() == tensor.dims() && same_bits(back, tensor).unwrap_or(false));
        if !same {
            return Err(Error::file(path, format!("tensor {name} does not read back as it was written")));
        }
    }
    Ok(())
}

fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dtype() != b.dtype() {
        return Ok(false);
    }
    let values = |t: &Tensor| -> Result<Vec<u64>> {
        Ok(t.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?.iter().map(|v| v.to_bits()).collect())
    };
    Ok(values(a)? == values(b)?)
}

fn sync_folder(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(path, e))
}

/// Peak resident memory of this process so far, in MiB (Linux; `None` elsewhere).
pub fn peak_memory_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn tensors(value: f32) -> CheckpointTensors {
        let tensor = (Tensor::ones(3, DType::F32, &Device::Cpu).unwrap() * f64::from(value)).unwrap();
        CheckpointTensors { model: BTreeMap::from([("w".into(), tensor.clone())]), optimizer: BTreeMap::from([("first.w".into(), tensor)]) }
    }

    #[test]
    fn only_the_newest_and_the_best_checkpoints_stay_and_the_last_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        for step in [5, 10, 15] {
            run.save_checkpoint("structure", step, "c", &tensors(step as f32)).unwrap();
        }
        run.prune(1, &[5]).unwrap();
        assert_eq!(run.checkpoint_steps(), [5, 15]);
        let last = run.latest_checkpoint().unwrap().unwrap();
        assert_eq!(last.state.step, 15);
        assert_eq!(last.model["w"].to_vec1::<f32>().unwrap(), [15.0; 3]);
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        let path = run.save_checkpoint("structure", 1, "c", &tensors(1.0)).unwrap().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let message = run.latest_checkpoint().unwrap_err().to_string();
        assert!(message.contains("model.safetensors: damaged"), "{message}");
    }

    #[test]
    fn an_unfinished_checkpoint_is_not_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        fs::create_dir_all(run.path("checkpoints/.7.partial")).unwrap();
        fs::create_dir_all(run.path("checkpoints/00000007")).unwrap();
        assert!(run.latest_checkpoint().unwrap().is_none());
    }

    #[test]
    fn metrics_after_the_resumed_step_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        for step in 1..=4 {
            run.append_metrics(&serde_json::json!({ "step": step })).unwrap();
        }
        run.cut_metrics(2).unwrap();
        assert_eq!(fs::read_to_string(run.path("metrics.jsonl")).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }
}
