//! LoRA on the model's projections: attach, read, write, merge.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Tensor, Var};
use ctscribe_lora::{Adapter, AdapterFile, LoraConfig, PREFIX, read_adapter, write_adapter};

use crate::{Error, Result};

use super::Llama;
use super::model::PROJECTIONS;

impl Llama {
    /// Fresh adapters on every projection that `config` targets; B is zero, so that nothing changes at first.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<()> {
        let device = self.device().clone();
        let mut attached = 0;
        for (layer, index) in self.positions() {
            let path = path(layer, index);
            if config.targets(&path) {
                let projection = &mut self.layers[layer].projections[index];
                let (outputs, inputs) = projection.base.weight.dims2()?;
                let own_seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((layer * PROJECTIONS.len() + index) as u64);
                projection.adapter = Some(Adapter::fresh(inputs, outputs, config, own_seed, &device)?);
                attached += 1;
            }
        }
        if attached == 0 {
            return Err(Error::Invalid(format!(
                "llama.lora.target_modules: none of {:?} is a projection of this model",
                config.target_modules
            )));
        }
        Ok(())
    }

    /// Takes the adapter in `folder` (PEFT's files). One made for another base is refused.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<LoraConfig> {
        let AdapterFile { config, mut modules, .. } = read_adapter(folder)?;
        let refuse =
            |tensor: &str, what: String| ctscribe_lora::Error::OtherBase { path: folder.to_path_buf(), tensor: tensor.to_string(), what };
        for (layer, index) in self.positions() {
            let path = path(layer, index);
            let Some([a, b]) = modules.remove(&path) else {
                if config.targets(&path) {
                    return Err(refuse(&path, "the base has this module and the adapter lacks it".to_string()).into());
                }
                continue;
            };
            let projection = &mut self.layers[layer].projections[index];
            let (outputs, inputs) = projection.base.weight.dims2()?;
            if a.dims()[1] != inputs || b.dims()[0] != outputs {
                let what = format!("made for a base of {} -> {}, this base has {inputs} -> {outputs}", a.dims()[1], b.dims()[0]);
                return Err(refuse(&path, what).into());
            }
            projection.adapter = Some(Adapter::new(a, b, &config)?);
        }
        match modules.keys().next() {
            Some(path) => Err(refuse(path, "the base has no such module".to_string()).into()),
            None => Ok(config),
        }
    }

    /// Writes the adapter as PEFT does; `base` names the model underneath.
    pub fn save_adapter(&self, folder: &Path, config: &LoraConfig, base: &str) -> Result<()> {
        let mut modules = BTreeMap::new();
        for (path, adapter) in self.adapters() {
            modules.insert(path, [adapter.a.as_detached_tensor(), adapter.b.as_detached_tensor()]);
        }
        Ok(write_adapter(folder, &AdapterFile { config: config.clone(), base: base.to_string(), modules })?)
    }

    /// The adapters' tensors by PEFT's names.
    pub fn lora_vars(&self) -> Vec<(String, Var)> {
        let pair = |(path, adapter): (String, &Adapter)| {
            [(format!("{PREFIX}{path}.lora_A.weight"), adapter.a.clone()), (format!("{PREFIX}{path}.lora_B.weight"), adapter.b.clone())]
        };
        self.adapters().flat_map(pair).collect()
    }

    /// Adds every adapter into a copy of its base's weight and drops it.
    pub fn merge_adapter(&mut self) -> Result<()> {
        for projection in self.layers.iter_mut().flat_map(|layer| &mut layer.projections) {
            if let Some(adapter) = projection.adapter.take() {
                projection.base.weight = (&projection.base.weight + adapter.weight_delta()?)?.detach();
            }
        }
        Ok(())
    }

    /// The projections' weights by Hugging Face's names, as they stand (merged or not).
    pub fn projection_weights(&self) -> BTreeMap<String, Tensor> {
        let positions = self.positions().into_iter();
        positions
            .map(|(layer, index)| (format!("{}.weight", path(layer, index)), self.layers[layer].projections[index].base.weight.clone()))
            .collect()
    }

    fn adapters(&self) -> impl Iterator<Item = (String, &Adapter)> {
        let positions = self.positions().into_iter();
        positions.filter_map(|(layer, index)| Some((path(layer, index), self.layers[layer].projections[index].adapter.as_ref()?)))
    }

    fn positions(&self) -> Vec<(usize, usize)> {
        (0..self.layers.len()).flat_map(|layer| (0..PROJECTIONS.len()).map(move |index| (layer, index))).collect()
    }
}

fn path(layer: usize, index: usize) -> String {
    format!("model.layers.{layer}.{}", PROJECTIONS[index])
}
