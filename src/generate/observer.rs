//! The vision side as one: CT-ViT, structure queries, contrast space, patch selection.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use ctscribe_ops::transfers;
use rand_chacha::ChaCha8Rng;

use crate::config::Config;
use crate::structure::{Head, Observation, Selection, SelectionConfig, Standardiser, StructureQueries, select};
use crate::vision::CtVit;
use crate::weights::{self, Params};
use crate::{Error, Result};

/// The file of a finished stage one inside its run folder.
pub const MODEL: &str = "structure/model.safetensors";
const VISION: &str = "vision.";
const TEXT_MEAN: &str = "text.mean";

/// From a prepared volume to visual tokens.
#[derive(Debug)]
pub struct Observer {
    vision: CtVit,
    queries: StructureQueries,
    head: Head,
    standardiser: Option<Standardiser>,
    text_mean: Option<Tensor>,
    quantize: bool,
    selection: SelectionConfig,
    params: [Params; 2],
}

impl Observer {
    /// A fresh one on the configuration's device; CT-ViT from `vision.weights` where the configuration names a file, strictly.
    pub fn fresh(config: &Config, text_width: usize) -> Result<Self> {
        let device = config.device.open()?;
        let vision = match &config.vision.weights {
            None => Params::fresh(config.seed, &device),
            Some(path) => {
                let tensors = weights::part(weights::open(path)?, "visual_transformer.");
                Params::loaded(path.display().to_string(), tensors, &device)
            }
        };
        let observer = Observer::new(config, text_width, vision, Params::fresh(config.seed, &device))?;
        if config.vision.weights.is_some() {
            observer.params[0].finish()?;
        }
        Ok(observer)
    }

    /// The trained one of a run, frozen, on the configuration's device.
    pub fn of_run(config: &Config, run: &Path) -> Result<Self> {
        let path = run.join(MODEL);
        if !path.is_file() {
            return Err(Error::file(&path, "no such file: stage one has not been trained to its end (see `ctscribe train structure`)"));
        }
        let mut tensors = weights::open(&path)?;
        let source = path.display().to_string();
        let missing = |name: &str| Error::Tensor { source_name: source.clone(), tensor: name.to_string(), what: "missing".to_string() };
        let text = tensors.get("head.text_proj.weight").ok_or_else(|| missing("head.text_proj.weight"))?;
        let text_width = text.dims2()?.1;
        let text_mean = tensors.remove(TEXT_MEAN);
        let mut standardiser = standardiser(config, &config.device.open()?)?;
        if let Some(standardiser) = &mut standardiser {
            standardiser.restore(&source, &mut tensors)?;
        }
        let (own, rest): (HashMap<_, _>, HashMap<_, _>) = tensors.into_iter().partition(|(name, _)| name.starts_with(VISION));
        let own = own.into_iter().map(|(name, tensor)| (name[VISION.len()..].to_string(), tensor)).collect();
        let device = config.device.open()?;
        let loaded = |tensors| Params::loaded(source.clone(), tensors, &device).frozen();
        let mut observer = Observer::new(config, text_width, loaded(own), loaded(rest))?;
        for params in &observer.params {
            params.finish()?;
        }
        observer.standardiser = standardiser;
        observer.text_mean = text_mean;
        Ok(observer)
    }

    fn new(config: &Config, text_width: usize, vision: Params, rest: Params) -> Result<Self> {
        let structure = &config.structure;
        let mut ct_vit = CtVit::new(&config.vision.ct_vit, &vision)?;
        ct_vit.set_precision(config.vision.precision);
        Ok(Observer {
            vision: ct_vit,
            queries: StructureQueries::new(&structure.queries, &rest.at("queries"))?,
            head: Head::new(&structure.head, structure.queries.width(), text_width, &rest.at("head"))?,
            standardiser: standardiser(config, rest.device())?,
            text_mean: None,
            quantize: config.vision.quantize,
            selection: structure.selection,
            params: [vision, rest],
        })
    }

    /// Whether each of CT-ViT's layers is run again in the backward pass instead of keeping what it computed.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.vision.set_recompute(recompute);
    }

    /// Where the models lie.
    pub fn device(&self) -> &Device {
        self.params[1].device()
    }

    /// volumes: (B, 1, D, H, W) in the host's memory -> what the queries saw, on the observer's device. `dropout`: the generator of a training step.
    pub fn observe(&self, volumes: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Observation> {
        let tokens = self.vision.encode(&transfers::to_device(volumes, self.device())?)?;
        let (b, t, h, w, c) = tokens.dims5()?;
        let tokens = if self.quantize { self.vision.quantize(&tokens)?.codes } else { tokens };
        self.queries.observe(&tokens.reshape((b, t * h * w, c))?, dropout)
    }

    /// The selected visual tokens of observed volumes.
    pub fn select(&self, observation: &Observation) -> Result<Selection> {
        select(observation, &self.selection)
    }

    /// Observations (B, S, h) as unit vectors (B, S, E) of the contrast space, by the running statistics.
    pub fn contrast(&self, observations: &Tensor) -> Result<Tensor> {
        self.head.visual(&self.standardise(observations)?)
    }

    /// Observations (B, S, h) by the running statistics, where the configuration standardises them.
    pub fn standardise(&self, observations: &Tensor) -> Result<Tensor> {
        match &self.standardiser {
            Some(standardiser) => standardiser.evaluate(observations),
            None => Ok(observations.clone()),
        }
    }

    /// W_v, W_t and the temperature.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The statistics of observations, moved by training.
    pub fn standardiser_mut(&mut self) -> Option<&mut Standardiser> {
        self.standardiser.as_mut()
    }

    /// The mean text feature (S, C_text) that centring takes off, where it is configured.
    pub fn text_mean(&self) -> Option<&Tensor> {
        self.text_mean.as_ref()
    }

    /// Keeps the mean text feature with the model.
    pub fn set_text_mean(&mut self, mean: Option<Tensor>) {
        self.text_mean = mean;
    }

    /// The trained tensors by name.
    pub fn trainable(&self) -> Vec<(String, candle_core::Var)> {
        let [vision, rest] = &self.params;
        let vision = vision.trainable().into_iter().map(|(name, var)| (format!("{VISION}{name}"), var));
        vision.chain(rest.trainable()).collect()
    }

    /// What moves in training beside the trained tensors: running statistics.
    pub fn statistics(&self) -> BTreeMap<String, Tensor> {
        self.standardiser.as_ref().map(Standardiser::state).unwrap_or_default()
    }

    /// Everything by name: the file that [`Observer::of_run`] reads.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let [vision, rest] = &self.params;
        let vision = vision.tensors().into_iter().map(|(name, tensor)| (format!("{VISION}{name}"), tensor));
        let mean = self.text_mean.iter().map(|mean| (TEXT_MEAN.to_string(), mean.clone()));
        vision.chain(rest.tensors()).chain(self.statistics()).chain(mean).collect()
    }
}

fn standardiser(config: &Config, device: &Device) -> Result<Option<Standardiser>> {
    let queries = &config.structure.queries;
    queries.standardise_momentum().map(|momentum| Standardiser::new(queries.structures(), queries.width(), momentum, device)).transpose()
}
