//! Cosine vector quantisation with an exponential moving average (vector-quantize-pytorch 1.1.2 as CT-CLIP sets it).

use candle_core::{DType, Tensor};
use ctscribe_ops as ops;

use crate::Result;
use crate::weights::{Init, Params};

/// The codebook. It has no gradient: training moves it by [`Quantizer::update`].
#[derive(Debug)]
pub struct Quantizer {
    embed: Tensor,
    cluster_size: Tensor,
    decay: f64,
}

/// Quantised tokens.
#[derive(Debug)]
pub struct Quantized {
    /// The codebook's rows, raw (not re-normalised), of the tokens' shape; no gradient.
    pub codes: Tensor,
    /// The straight-through form: equal to `codes`, with the identity as gradient to the tokens (training only).
    pub straight_through: Tensor,
    /// The row of each token, u32, the tokens' shape without its last axis.
    pub indices: Tensor,
    /// mean((codes - tokens)^2); CT-CLIP computes and drops it.
    pub commitment: Tensor,
}

/// The codebook after a training step.
#[derive(Debug)]
pub struct CodebookUpdate {
    /// (1, codes, C).
    pub embed: Tensor,
    /// (1, codes).
    pub cluster_size: Tensor,
}

impl Quantizer {
    /// A codebook of `size` rows of width `dim`.
    pub fn new(dim: usize, size: usize, decay: f64, params: &Params) -> Result<Self> {
        // a fresh codebook is read through a cosine only, so its rows' lengths do not matter
        let embed = params.buffer("embed", &[1, size, dim], Init::Normal(1.0 / (dim as f64).sqrt()))?;
        Ok(Quantizer { embed, cluster_size: params.buffer("cluster_size", &[1, size], Init::Zeros)?, decay })
    }

    /// tokens: (..., C).
    pub fn quantize(&self, tokens: &Tensor) -> Result<Quantized> {
        let shape = tokens.dims();
        let (lead, dim) = (&shape[..shape.len() - 1], shape[shape.len() - 1]);
        let rows: usize = lead.iter().product();
        let flat = tokens.detach().reshape((rows, dim))?;
        let codebook = ops::l2_normalize(&self.embed.squeeze(0)?, 1e-12)?;
        let indices = ops::nearest_rows(&ops::l2_normalize(&flat, 1e-12)?, &codebook)?;
        let codes = self.embed.squeeze(0)?.index_select(&indices, 0)?.reshape(shape)?;
        let straight_through = (tokens + (&codes - tokens.detach())?)?;
        let commitment = (&codes - tokens.detach())?.sqr()?.mean_all()?;
        Ok(Quantized { codes, straight_through, indices: indices.reshape(lead)?, commitment })
    }

    /// The codebook after one training step on `tokens` (..., C), which were assigned to `indices` (peers.md a.7).
    pub fn update(&self, tokens: &Tensor, indices: &Tensor) -> Result<CodebookUpdate> {
        let (_, size, dim) = self.embed.dims3()?;
        let rows = indices.elem_count();
        let tokens = ops::l2_normalize(&tokens.detach().reshape((rows, dim))?, 1e-12)?;
        let indices = indices.flatten_all()?;
        let device = tokens.device();
        let counts = Tensor::zeros(size, DType::F32, device)?.index_add(&indices, &Tensor::ones(rows, DType::F32, device)?, 0)?;
        let sums = Tensor::zeros((size, dim), DType::F32, device)?.index_add(&indices, &tokens, 0)?;
        let mean = sums.broadcast_div(&counts.maximum(1.0)?.unsqueeze(1)?)?;
        let old = self.embed.squeeze(0)?;
        let assigned = counts.unsqueeze(1)?.gt(0.0)?.broadcast_as((size, dim))?;
        let target = assigned.where_cond(&ops::l2_normalize(&mean, 1e-12)?, &ops::l2_normalize(&old, 1e-12)?)?;
        let step = 1.0 - self.decay;
        let embed = (&old + ((target - &old)? * step)?)?.unsqueeze(0)?;
        let cluster_size = (&self.cluster_size + ((counts.unsqueeze(0)? - &self.cluster_size)? * step)?)?;
        Ok(CodebookUpdate { embed, cluster_size })
    }

    /// Takes the codebook of `update`.
    pub fn apply(&mut self, update: CodebookUpdate) {
        self.embed = update.embed;
        self.cluster_size = update.cluster_size;
    }
}
