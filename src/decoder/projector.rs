//! Visual tokens into a decoder's embedding space.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ctscribe_ops as ops;
use ctscribe_ops::transfers::{self, host_values};
use serde::{Deserialize, Serialize};

use crate::weights::{Init, Params};
use crate::{Error, Result};

/// The projector's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// One linear layer (ours).
    Linear,
    /// Linear, ReLU, Linear (reference.md 4.1).
    Mlp,
}

/// The projector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectorConfig {
    /// Its form.
    pub kind: ProjectorKind,
    /// Whether tokens are standardised by the training set's mean and deviation, position by position (phantom.md).
    pub standardise: bool,
    /// Whether a learned vector a visual position is added.
    pub positions: bool,
}

/// (B, V, h) -> (B, V, hidden).
#[derive(Debug)]
pub struct Projector {
    layers: Vec<[Tensor; 2]>,
    positions: Option<Tensor>,
    /// Mean and deviation (V, h) of the training set's tokens.
    statistics: Option<[Tensor; 2]>,
}

const EPS: f64 = 1e-5;

impl Projector {
    /// Of V tokens of width `input` into width `output`; at first its output has about the deviation `output_std`.
    pub fn new(config: &ProjectorConfig, (tokens, input): (usize, usize), output: usize, output_std: f64, params: &Params) -> Result<Self> {
        let weight_std = output_std / (input as f64).sqrt();
        let layer = |name: &str, inputs: usize, outputs: usize, init: Init| -> Result<[Tensor; 2]> {
            let params = params.at(name);
            Ok([params.get("weight", &[outputs, inputs], init)?, params.get("bias", &[outputs], Init::Zeros)?])
        };
        let layers = match config.kind {
            ProjectorKind::Linear => vec![layer("linear", input, output, Init::Normal(weight_std))?],
            // N(0, .02) in the reference (reference.md 4.1)
            ProjectorKind::Mlp => vec![layer("0", input, input, Init::Normal(0.02))?, layer("2", input, output, Init::Normal(0.02))?],
        };
        let positions = match config.positions {
            true => Some(params.get("positions", &[tokens, output], Init::Normal(output_std))?),
            false => None,
        };
        let statistics = match config.standardise {
            true => {
                Some([params.buffer("mean", &[tokens, input], Init::Zeros)?, params.buffer("deviation", &[tokens, input], Init::Ones)?])
            }
            false => None,
        };
        Ok(Projector { layers, positions, statistics })
    }

    /// Whether tokens are standardised.
    pub fn standardises(&self) -> bool {
        self.statistics.is_some()
    }

    /// Takes mean and deviation of the training set's tokens, each (V, h); nothing where tokens are not standardised.
    pub fn set_statistics(&mut self, mean: &Tensor, deviation: &Tensor) -> Result<()> {
        if let Some(own) = &mut self.statistics {
            *own = [transfers::to_device(mean, own[0].device())?, transfers::to_device(deviation, own[1].device())?];
        }
        Ok(())
    }

    /// The training statistics by name, for a checkpoint.
    pub fn statistics(&self) -> BTreeMap<String, Tensor> {
        let pairs = self.statistics.iter().flat_map(|[mean, deviation]| [("mean", mean), ("deviation", deviation)]);
        pairs.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
    }

    /// tokens: (B, V, h) -> (B, V, hidden).
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let mut x = match &self.statistics {
            Some([mean, deviation]) => tokens.broadcast_sub(mean)?.broadcast_div(deviation)?,
            None => tokens.clone(),
        };
        for (index, [weight, bias]) in self.layers.iter().enumerate() {
            if index > 0 {
                x = x.relu()?;
            }
            x = ops::linear(&x, weight, Some(bias))?;
        }
        match &self.positions {
            Some(positions) => Ok(x.broadcast_add(positions)?),
            None => Ok(x),
        }
    }
}

/// Mean and deviation (V, h) of studies' tokens (V, h), taken one after the other. Patches of one structure share theirs; `structures`
/// divides V as the selection lays it out (an observation, then its patches).
pub fn token_statistics(studies: impl Iterator<Item = Result<Tensor>>, structures: usize) -> Result<(Tensor, Tensor)> {
    let (mut sum, mut squares, mut count) = (Vec::<f64>::new(), Vec::<f64>::new(), 0usize);
    let mut shape = (0, 0);
    for tokens in studies {
        let tokens = tokens?.to_dtype(DType::F32)?;
        shape = tokens.dims2()?;
        let values: Vec<f32> = host_values(&tokens)?;
        sum.resize(values.len(), 0.0);
        squares.resize(values.len(), 0.0);
        for (index, value) in values.iter().enumerate() {
            sum[index] += f64::from(*value);
            squares[index] += f64::from(*value).powi(2);
        }
        count += 1;
    }
    let (tokens, width) = shape;
    if count == 0 || structures == 0 || tokens % structures != 0 {
        return Err(Error::Invalid(format!(
            "the statistics of visual tokens need studies of {structures} structures; found {count} of {tokens} tokens"
        )));
    }
    let group = tokens / structures;
    let (mut mean, mut deviation) = (vec![0f32; tokens * width], vec![1f32; tokens * width]);
    for s in 0..structures {
        for members in [s * group..s * group + 1, s * group + 1..(s + 1) * group] {
            for c in 0..width {
                let total = (members.len() * count).max(1) as f64;
                let m = members.clone().map(|row| sum[row * width + c]).sum::<f64>() / total;
                let square = members.clone().map(|row| squares[row * width + c]).sum::<f64>() / total;
                let std = (square - m * m).max(0.0).sqrt() + EPS;
                for row in members.clone() {
                    (mean[row * width + c], deviation[row * width + c]) = (m as f32, std as f32);
                }
            }
        }
    }
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, (tokens, width), &Device::Cpu);
    Ok((tensor(mean)?, tensor(deviation)?))
}
