//! The file between the stages: a study's visual tokens, where they come from, and its place in the contrast space.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::volume::Geometry;
use crate::weights;
use crate::{Error, Result};

/// One study, observed.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Visual tokens (V, h), f16.
    pub tokens: Tensor,
    /// For each structure the selected patches.
    pub indices: Vec<Vec<u32>>,
    /// The attention on each of them.
    pub mass: Vec<Vec<f32>>,
    /// Unit vectors (S, E), f16.
    pub contrast: Tensor,
    /// Where the prepared voxels lie in the scan.
    pub geometry: Geometry,
}

/// The folder of observations in a run folder.
pub fn folder(run: &Path) -> PathBuf {
    run.join("observations")
}

fn file(run: &Path, study: &str) -> PathBuf {
    folder(run).join(format!("{study}.safetensors"))
}

impl Observed {
    /// Writes the study's file; `model_sha256` says which stage one saw it.
    pub fn write(&self, run: &Path, study: &str, model_sha256: &str) -> Result<()> {
        let (s, k) = (self.indices.len(), self.indices.first().map_or(0, Vec::len));
        let tensors = BTreeMap::from([
            ("tokens".to_string(), self.tokens.to_dtype(DType::F16)?),
            ("indices".to_string(), Tensor::from_vec(self.indices.concat(), (s, k), &Device::Cpu)?),
            ("mass".to_string(), Tensor::from_vec(self.mass.concat(), (s, k), &Device::Cpu)?),
            ("contrast".to_string(), self.contrast.to_dtype(DType::F16)?),
        ]);
        let path = file(run, study);
        let geometry = serde_json::to_string(&self.geometry).map_err(|e| Error::file(&path, e.to_string()))?;
        let metadata = [("geometry", geometry), ("model_sha256", model_sha256.to_string())].map(|(key, value)| (key.to_string(), value));
        weights::write(&path, &tensors, &HashMap::from(metadata))
    }

    /// Reads a study's file.
    pub fn read(run: &Path, study: &str) -> Result<Self> {
        let path = file(run, study);
        if !path.is_file() {
            return Err(Error::file(&path, "no such file (see `ctscribe observe`)"));
        }
        let mut tensors = weights::open(&path)?;
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| Error::file(&path, format!("holds no tensor `{name}`")));
        let (tokens, indices, mass, contrast) = (take("tokens")?, take("indices")?, take("mass")?, take("contrast")?);
        let geometry = weights::metadata(&path)?.remove("geometry").ok_or_else(|| Error::file(&path, "holds no geometry"))?;
        let geometry = serde_json::from_str(&geometry).map_err(|e| Error::field(&path, "geometry", e.to_string()))?;
        Ok(Observed { tokens, indices: indices.to_vec2()?, mass: mass.to_vec2()?, contrast, geometry })
    }

    /// Which stage one saw a study; `None` where it was not observed.
    pub fn model_sha256(run: &Path, study: &str) -> Option<String> {
        weights::metadata(&file(run, study)).ok()?.remove("model_sha256")
    }
}

/// A study's visual tokens (V, h), f16: all that training reads.
pub fn read_tokens(run: &Path, study: &str) -> Result<Tensor> {
    let path = file(run, study);
    if !path.is_file() {
        return Err(Error::file(&path, "no such file (see `ctscribe observe`)"));
    }
    weights::open(&path)?.remove("tokens").ok_or_else(|| Error::file(&path, "holds no tensor `tokens`"))
}
