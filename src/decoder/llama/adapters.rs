//! LoRA on the model's projections: attach, read, write, merge.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use ctscribe_lora::{Adapted, Adapter, AdapterFile, BaseLinear, LoraConfig, PREFIX, read_adapter, write_adapter};
use ctscribe_ops::Matrix;

use crate::{Error, Result};

use super::Llama;
use super::layer::PROJECTIONS;
use super::projection::Projection;

/// Modules that PEFT would adapt and this model does not.
const NOT_ADAPTED: [&str; 2] = ["lm_head", "model.embed_tokens"];

/// What travels in an adapter's folder beside the adapter (`modules_to_save`).
pub const PROJECTOR: &str = "projector";

/// One tensor of an adapter beside the base that it is to be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// PEFT's name of the tensor.
    pub tensor: String,
    /// What the base needs, if it has the module.
    pub expected: Option<Vec<usize>>,
    /// What the adapter holds.
    pub found: Option<Vec<usize>>,
}

impl Fit {
    /// `loaded`, `missing`, `unexpected` or `shape`.
    pub fn state(&self) -> &'static str {
        match (&self.expected, &self.found) {
            (Some(expected), Some(found)) if expected == found => "loaded",
            (Some(_), Some(_)) => "shape",
            (Some(_), None) => "missing",
            (None, _) => "unexpected",
        }
    }
}

impl Llama {
    /// Fresh adapters on every projection that `config` targets; at first nothing changes.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<()> {
        check_targets(config).map_err(|what| Error::Invalid(format!("llama.lora.{what}")))?;
        let mut attached = Vec::new();
        for (layer, index) in self.positions() {
            let path = path(layer, index);
            if config.targets(&path) {
                let projection = &mut self.layers[layer].projections[index];
                let own_seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((layer * PROJECTIONS.len() + index) as u64);
                projection.adapter = Some(Adapter::fresh(&projection.base, &path, config, own_seed)?);
                attached.push(path);
            }
        }
        if attached.is_empty() {
            let targets = &config.target_modules;
            return Err(Error::Invalid(format!("llama.lora.target_modules: nothing of {targets} is a projection of this model")));
        }
        let unused = config.unused_patterns(&attached);
        match unused.first() {
            Some(key) => Err(Error::Invalid(format!("llama.lora.{key}: matches no adapted module"))),
            None => Ok(()),
        }
    }

    /// Takes the adapter in `folder` (PEFT's files). One made for another base is refused.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<LoraConfig> {
        let file = open_adapter(folder)?;
        if let Some(fit) = self.fits(&file.config, &file.shapes()).into_iter().find(|fit| fit.state() != "loaded") {
            let what = match (fit.expected, fit.found) {
                (Some(expected), Some(found)) => format!("made for another base: found {found:?}, this base needs {expected:?}"),
                (Some(_), None) => "the base has this module and the adapter lacks it".to_string(),
                _ => "the base has no such module, or target_modules does not name it".to_string(),
            };
            return Err(ctscribe_lora::Error::OtherBase { path: folder.to_path_buf(), tensor: fit.tensor, what }.into());
        }
        let AdapterFile { config, modules, .. } = file;
        for (layer, index) in self.positions() {
            let path = path(layer, index);
            if let Some(tensors) = modules.get(&path) {
                let projection = &mut self.layers[layer].projections[index];
                projection.adapter = Some(Adapter::new(&tensors.on(projection.base.device())?, &path, &config)?);
            }
        }
        Ok(config)
    }

    /// Each tensor that an adapter of `config` with tensors of `shapes` holds, or that this base needs of it.
    pub fn fits(&self, config: &LoraConfig, shapes: &BTreeMap<String, Vec<usize>>) -> Vec<Fit> {
        let mut fits: BTreeMap<String, Fit> = BTreeMap::new();
        for (path, projection) in self.projections().filter(|(path, _)| config.targets(path)) {
            let (rank, (outputs, inputs)) = (config.rank(&path), projection.base.size());
            let mut needed = vec![("lora_A.weight", vec![rank, inputs]), ("lora_B.weight", vec![outputs, rank])];
            needed.extend(config.dora.then(|| ("lora_magnitude_vector", vec![outputs])));
            for (name, shape) in needed {
                let tensor = format!("{PREFIX}{path}.{name}");
                fits.insert(tensor.clone(), Fit { tensor, expected: Some(shape), found: None });
            }
        }
        for (tensor, shape) in shapes {
            let fit = fits.entry(tensor.clone()).or_insert_with(|| Fit { tensor: tensor.clone(), expected: None, found: None });
            fit.found = Some(shape.clone());
        }
        fits.into_values().collect()
    }

    /// Writes the adapter as PEFT does; `base` names the model underneath.
    pub fn save_adapter(&self, folder: &Path, config: &LoraConfig, base: &str) -> Result<()> {
        let modules = self.adapters().map(|(path, adapter)| Ok((path, adapter.tensors().on(&Device::Cpu)?))).collect::<Result<_>>()?;
        Ok(write_adapter(folder, &AdapterFile { config: config.clone(), base: base.to_string(), modules })?)
    }

    /// The adapters' tensors by the names of PEFT's parameters.
    pub fn lora_vars(&self) -> Vec<(String, Var)> {
        let named = |(path, adapter): (String, &Adapter)| {
            adapter.vars().into_iter().map(move |(name, var)| (format!("{PREFIX}{path}.{name}"), var))
        };
        self.adapters().flat_map(named).collect()
    }

    /// Puts every adapter into a copy of its base's weight and drops it.
    pub fn merge_adapter(&mut self) -> Result<()> {
        for projection in self.layers.iter_mut().flat_map(|layer| &mut layer.projections) {
            if let Some(adapter) = projection.adapter.take() {
                projection.base = Projection::Frozen(Matrix::from_tensor(&adapter.merged(&projection.base)?)?);
            }
        }
        Ok(())
    }

    /// The projections' weights by Hugging Face's names, as they stand (merged or not), f32.
    pub fn projection_weights(&self) -> Result<BTreeMap<String, Tensor>> {
        self.projections().map(|(path, projection)| Ok((format!("{path}.weight"), projection.base.weight()?))).collect()
    }

    fn adapters(&self) -> impl Iterator<Item = (String, &Adapter)> {
        self.projections().filter_map(|(path, projection)| Some((path, projection.adapter.as_ref()?)))
    }

    fn projections(&self) -> impl Iterator<Item = (String, &Adapted<Projection>)> {
        self.positions().into_iter().map(|(layer, index)| (path(layer, index), &self.layers[layer].projections[index]))
    }

    fn positions(&self) -> Vec<(usize, usize)> {
        (0..self.layers.len()).flat_map(|layer| (0..PROJECTIONS.len()).map(move |index| (layer, index))).collect()
    }
}

/// Reads an adapter's folder; what this model would not compute as PEFT does is refused by name.
pub fn open_adapter(folder: &Path) -> Result<AdapterFile> {
    let file = read_adapter(folder)?;
    let path = folder.join(ctscribe_lora::CONFIG_FILE);
    check_targets(&file.config).map_err(|what| Error::file(&path, what))?;
    match file.config.modules_to_save.iter().find(|name| *name != PROJECTOR) {
        Some(name) => Err(Error::file(&path, format!("modules_to_save: {name} is not read (expected {PROJECTOR} or none)"))),
        None => Ok(file),
    }
}

fn check_targets(config: &LoraConfig) -> std::result::Result<(), String> {
    // all-linear leaves head and embedding out
    let meant = NOT_ADAPTED.iter().find(|path| !config.target_modules.is_all_linear() && config.targets(path));
    meant.map_or(Ok(()), |path| Err(format!("target_modules: {path} carries no adapter here (expected projections of the layers)")))
}

fn path(layer: usize, index: usize) -> String {
    format!("model.layers.{layer}.{}", PROJECTIONS[index])
}
