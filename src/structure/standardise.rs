//! Observations standardised over the batch, without an affine: at the start they hardly vary between volumes (phantom.md).

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use ctscribe_ops::transfers;

use crate::{Error, Result};

const EPS: f64 = 1e-5;

/// Batch statistics in training, running ones in evaluation, one a structure and channel.
#[derive(Debug, Clone)]
pub struct Standardiser {
    mean: Tensor,
    variance: Tensor,
    momentum: f64,
}

impl Standardiser {
    /// For S structures of width h, with statistics on `device`.
    pub fn new(structures: usize, width: usize, momentum: f64, device: &Device) -> Result<Self> {
        let shape = (1, structures, width);
        let (mean, variance) = (Tensor::zeros(shape, DType::F32, device)?, Tensor::ones(shape, DType::F32, device)?);
        Ok(Standardiser { mean, variance, momentum })
    }

    /// tokens: (B, S, h), B at least 2 -> the same by the batch's own statistics, which move the running ones.
    pub fn train(&mut self, tokens: &Tensor) -> Result<Tensor> {
        let b = tokens.dim(0)?;
        if b < 2 {
            return Err(Error::Invalid(
                "observations are standardised over the batch: train_structure.training.batch must be at least 2".to_string(),
            ));
        }
        let mean = tokens.mean_keepdim(0)?;
        let centred = tokens.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim(0)?;
        let keep = 1.0 - self.momentum;
        // the unbiased variance runs, as in PyTorch's batch norm
        let unbiased = (variance.detach() * (b as f64 / (b as f64 - 1.0)))?;
        self.mean = ((&self.mean * keep)? + (mean.detach() * self.momentum)?)?;
        self.variance = ((&self.variance * keep)? + (unbiased * self.momentum)?)?;
        Ok(centred.broadcast_div(&(variance + EPS)?.sqrt()?)?)
    }

    /// tokens: (B, S, h) -> the same by the running statistics.
    pub fn evaluate(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(tokens.broadcast_sub(&self.mean)?.broadcast_div(&(&self.variance + EPS)?.sqrt()?)?)
    }

    /// The running statistics by name.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        BTreeMap::from([("standardiser.mean".to_string(), self.mean.clone()), ("standardiser.variance".to_string(), self.variance.clone())])
    }

    /// Takes the running statistics of [`Standardiser::state`] out of `tensors`.
    pub fn restore(&mut self, source: &str, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        for (name, slot) in [("standardiser.mean", &mut self.mean), ("standardiser.variance", &mut self.variance)] {
            let fault = |what: String| Error::Tensor { source_name: source.to_string(), tensor: name.to_string(), what };
            let tensor = tensors.remove(name).ok_or_else(|| fault("missing".to_string()))?;
            if tensor.dims() != slot.dims() {
                return Err(fault(format!("expected {:?}, found {:?}", slot.dims(), tensor.dims())));
            }
            *slot = transfers::to_device(&tensor, slot.device())?;
        }
        Ok(())
    }
}
