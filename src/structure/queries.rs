//! Our structure queries: cost S x N, each structure's observation stands alone (method.md, stage one, 2).

use candle_core::Tensor;
use ctscribe_ops::{self as ops, Attention};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::weights::{Init, Params};

use super::Observation;

const EPS: f64 = 1e-5;

/// Sizes of our query module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OursQueriesConfig {
    /// Structures S.
    pub structures: usize,
    /// Width C of the patches.
    pub patch_width: usize,
    /// Width h of observations and patch states.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks of cross-attention and MLP.
    pub depth: usize,
    /// Hidden width of the MLPs.
    pub ffn_width: usize,
    /// Standard deviation of the queries at the start.
    pub query_std: f64,
    /// W_q and W_k start this many times larger than PyTorch's default: sharper attention, sooner.
    pub qk_init_scale: f64,
    /// Observations are standardised over the batch; running statistics move by this share a step. Null: not standardised.
    pub standardise_momentum: Option<f64>,
}

#[derive(Debug)]
struct Block {
    query_norm: [Tensor; 2],
    q: [Tensor; 2],
    k: [Tensor; 2],
    v: [Tensor; 2],
    out: [Tensor; 2],
    ffn_norm: [Tensor; 2],
    up: [Tensor; 2],
    down: [Tensor; 2],
}

/// Learned queries that observe the patches by pre-norm cross-attention.
#[derive(Debug)]
pub struct OursQueries {
    config: OursQueriesConfig,
    project: [Tensor; 2],
    patch_norm: [Tensor; 2],
    queries: Tensor,
    blocks: Vec<Block>,
    out_norm: [Tensor; 2],
}

fn norm(params: &Params, width: usize) -> Result<[Tensor; 2]> {
    Ok([params.get("weight", &[width], Init::Ones)?, params.get("bias", &[width], Init::Zeros)?])
}

fn linear(params: &Params, inputs: usize, outputs: usize, scale: f64) -> Result<[Tensor; 2]> {
    let bound = scale / (inputs as f64).sqrt();
    Ok([params.get("weight", &[outputs, inputs], Init::Uniform(bound))?, params.get("bias", &[outputs], Init::linear(inputs))?])
}

fn apply([weight, bias]: &[Tensor; 2], x: &Tensor) -> Result<Tensor> {
    Ok(ops::linear(x, weight, Some(bias))?)
}

fn apply_norm([weight, bias]: &[Tensor; 2], x: &Tensor) -> Result<Tensor> {
    Ok(ops::layer_norm(x, weight, Some(bias), EPS)?)
}

impl OursQueries {
    /// The module of `config`.
    pub fn new(config: &OursQueriesConfig, params: &Params) -> Result<Self> {
        let width = config.width;
        let block = |index: usize| -> Result<Block> {
            let params = params.at("blocks").at(index);
            Ok(Block {
                query_norm: norm(&params.at("query_norm"), width)?,
                q: linear(&params.at("q"), width, width, config.qk_init_scale)?,
                k: linear(&params.at("k"), width, width, config.qk_init_scale)?,
                v: linear(&params.at("v"), width, width, 1.0)?,
                out: linear(&params.at("out"), width, width, 1.0)?,
                ffn_norm: norm(&params.at("ffn_norm"), width)?,
                up: linear(&params.at("up"), width, config.ffn_width, 1.0)?,
                down: linear(&params.at("down"), config.ffn_width, width, 1.0)?,
            })
        };
        Ok(OursQueries {
            project: linear(&params.at("project"), config.patch_width, width, 1.0)?,
            patch_norm: norm(&params.at("patch_norm"), width)?,
            queries: params.get("queries", &[config.structures, width], Init::Normal(config.query_std))?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            out_norm: norm(&params.at("out_norm"), width)?,
            config: config.clone(),
        })
    }

    /// patches: (B, N, C). The attention is the last block's, mean over its heads.
    pub fn observe(&self, patches: &Tensor) -> Result<Observation> {
        let (b, _, _) = patches.dims3()?;
        let states = apply_norm(&self.patch_norm, &apply(&self.project, patches)?)?;
        let (s, width) = self.queries.dims2()?;
        let mut x = self.queries.unsqueeze(0)?.broadcast_as((b, s, width))?.contiguous()?;
        let mut attention = Tensor::zeros((b, s, states.dim(1)?), states.dtype(), states.device())?;
        for (index, block) in self.blocks.iter().enumerate() {
            let last = index + 1 == self.blocks.len();
            let (observed, weights) = self.attend(block, &x, &states, last)?;
            x = (x + observed)?;
            let hidden = ops::gelu(&apply(&block.up, &apply_norm(&block.ffn_norm, &x)?)?)?;
            x = (x + apply(&block.down, &hidden)?)?;
            if let Some(weights) = weights {
                attention = weights.mean(1)?;
            }
        }
        Ok(Observation { tokens: apply_norm(&self.out_norm, &x)?, attention, patches: states })
    }

    fn attend(&self, block: &Block, x: &Tensor, states: &Tensor, keep_weights: bool) -> Result<(Tensor, Option<Tensor>)> {
        let heads = self.config.heads;
        let split = |y: Tensor| -> Result<Tensor> {
            let (b, n, width) = y.dims3()?;
            Ok(y.reshape((b, n, heads, width / heads))?.transpose(1, 2)?.contiguous()?)
        };
        let q = split(apply(&block.q, &apply_norm(&block.query_norm, x)?)?)?;
        let (k, v) = (split(apply(&block.k, states)?)?, split(apply(&block.v, states)?)?);
        let options = Attention::full(1.0 / ((self.config.width / heads) as f64).sqrt());
        let (mixed, weights) = if keep_weights {
            let (mixed, weights) = ops::attention_with_weights(&q, &k, &v, &options)?;
            (mixed, Some(weights))
        } else {
            (ops::attention(&q, &k, &v, &options)?, None)
        };
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape(x.shape())?;
        Ok((apply(&block.out, &mixed)?, weights))
    }
}
