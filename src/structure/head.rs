//! From observations and text features into the contrast space.

use candle_core::Tensor;
use ctscribe_ops as ops;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::weights::{Init, Params};

/// The contrast space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Width E of the contrast space.
    pub width: usize,
    /// Whether W_t is trained; the reference's is frozen.
    pub train_text: bool,
    /// What the similarities are divided by.
    pub temperature: Temperature,
    /// Whether each structure's training mean is taken off text features (phantom.md).
    pub centre_text: bool,
}

/// The temperature of the contrast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Temperature {
    /// Constant.
    Fixed(f64),
    /// Learned, within bounds.
    Learned {
        /// At the start.
        start: f64,
        /// Lower bound.
        min: f64,
        /// Upper bound.
        max: f64,
    },
}

/// W_v, W_t and the temperature.
#[derive(Debug)]
pub struct Head {
    visual: Tensor,
    text: Tensor,
    log_temperature: Option<Tensor>,
    temperature: Temperature,
}

impl Head {
    /// Observations of width `visual_width` and text features of width `text_width` into the contrast space.
    pub fn new(config: &HeadConfig, visual_width: usize, text_width: usize, params: &Params) -> Result<Self> {
        let text_params = if config.train_text { params.at("text_proj") } else { params.at("text_proj").frozen() };
        let log_temperature = match config.temperature {
            Temperature::Fixed(_) => None,
            Temperature::Learned { start, .. } => Some(params.get("log_temperature", &[], Init::Constant(start.ln()))?),
        };
        Ok(Head {
            visual: params.at("visual_proj").get("weight", &[config.width, visual_width], Init::linear(visual_width))?,
            text: text_params.get("weight", &[config.width, text_width], Init::linear(text_width))?,
            log_temperature,
            temperature: config.temperature,
        })
    }

    /// observations: (..., h) -> W_v observation (..., E), not normalised.
    pub fn visual_raw(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(observations, &self.visual, None)?)
    }

    /// observations: (..., h) -> unit vectors (..., E).
    pub fn visual(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(ops::l2_normalize(&self.visual_raw(observations)?, 1e-12)?)
    }

    /// features: (..., C_text) -> unit vectors (..., E).
    pub fn text(&self, features: &Tensor) -> Result<Tensor> {
        Ok(ops::l2_normalize(&ops::linear(features, &self.text, None)?, 1e-12)?)
    }

    /// The temperature, a scalar with a gradient where it is learned.
    pub fn temperature(&self) -> Result<Tensor> {
        match (&self.log_temperature, self.temperature) {
            (Some(log), Temperature::Learned { min, max, .. }) => Ok(log.exp()?.clamp(min, max)?),
            (_, Temperature::Fixed(value) | Temperature::Learned { start: value, .. }) => {
                Ok(Tensor::full(value as f32, (), self.visual.device())?)
            }
        }
    }
}
