//! `manifest.json` of a run: what it was made with, so that its numbers can be made again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data::{Cache, Split};
use crate::evaluate::split_sha256;
use crate::weights::{sha256, write_aside};
use crate::{Error, Result};

/// What a run was made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The program's version.
    pub version: String,
    /// SHA-256 of the resolved configuration.
    pub config_sha256: String,
    /// Studies and SHA-256 of their sorted names, a split.
    pub splits: BTreeMap<String, (usize, String)>,
    /// The same of the published splits, whole, prepared or not.
    #[serde(default)]
    pub published_splits: BTreeMap<String, (usize, String)>,
    /// SHA-256 of external weights' files that stage one starts from.
    pub weights: BTreeMap<String, String>,
    /// Processor architecture, operating system, cores.
    pub machine: String,
    /// What holds for models trained on CT-RATE.
    pub licence: String,
}

const LICENCE: &str = "Models carry the licences of their data and weights: CT-RATE and weights trained on it CC-BY-NC-SA-4.0, LLaMA 2 its community licence; phantoms none.";

/// Writes the manifest of a run that begins; one that is there must name the same splits.
pub fn write_manifest(config: &Config, cache: &Cache, run: &Path) -> Result<()> {
    let path = run.join("manifest.json");
    let manifest = manifest(config, cache)?;
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let earlier: Manifest = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        if earlier.splits != manifest.splits {
            return Err(Error::field(&path, "splits", "the run began with other studies than --data holds; take another run folder"));
        }
        return Ok(());
    }
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::file(&path, e.to_string()))?;
    write_aside(&path, text.as_bytes())
}

fn manifest(config: &Config, cache: &Cache) -> Result<Manifest> {
    let split = |split: Split| {
        let studies = cache.split(split);
        (format!("{split:?}").to_lowercase(), (studies.len(), split_sha256(studies.iter().map(|study| study.name.as_str()))))
    };
    let weights = config.vision.weights.iter().map(|path| Ok((path.display().to_string(), sha256(path)?)));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Manifest {
        version: env!("CARGO_PKG_VERSION").to_string(),
        config_sha256: config.sha256()?,
        splits: [Split::Train, Split::Validation, Split::Test].map(split).into(),
        published_splits: cache.named.iter().map(|(named, list)| (named.name().to_string(), (list.studies, list.sha256.clone()))).collect(),
        weights: weights.collect::<Result<_>>()?,
        machine: format!("{} {}, {cores} cores", std::env::consts::ARCH, std::env::consts::OS),
        licence: LICENCE.to_string(),
    })
}
