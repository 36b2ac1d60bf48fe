//! The authors' query module: post-norm BERT layers whose same weights update queries and patches (reference.md 1.3).

use candle_core::Tensor;
use ctscribe_ops::{self as ops, Attention};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::weights::{Init, Params};

use super::Observation;

/// Sizes of the reference's query module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceQueriesConfig {
    /// Structures S.
    pub structures: usize,
    /// Width C of the patches.
    pub patch_width: usize,
    /// Width h of observations and patch states.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub depth: usize,
    /// Hidden width of the feed-forward.
    pub ffn_width: usize,
    /// LayerNorm's epsilon.
    pub eps: f64,
    /// Dropout on attention probabilities and on projections.
    pub dropout: f64,
}

#[derive(Debug)]
struct MultiHead {
    q: [Tensor; 2],
    k: [Tensor; 2],
    v: [Tensor; 2],
    out: [Tensor; 2],
    norm: [Tensor; 2],
}

#[derive(Debug)]
struct Layer {
    self_attention: MultiHead,
    cross_attention: MultiHead,
    up: [Tensor; 2],
    down: [Tensor; 2],
    norm: [Tensor; 2],
}

/// One side of a layer: its state after the layer, and its two attention maps (B or 1, heads, rows, columns).
#[derive(Debug, Clone)]
pub struct ReferenceLayerMaps {
    /// The state after the layer: (B, rows, h).
    pub out: Tensor,
    /// Self-attention probabilities.
    pub self_attention: Tensor,
    /// Cross-attention probabilities.
    pub cross_attention: Tensor,
}

/// The authors' query module.
#[derive(Debug)]
pub struct ReferenceQueries {
    config: ReferenceQueriesConfig,
    token_proj: Tensor,
    queries: Tensor,
    layers: Vec<Layer>,
}

impl MultiHead {
    fn new(width: usize, params: &Params) -> Result<Self> {
        let linear = |name: &str| linear(&params.at(name), width, width);
        Ok(MultiHead { q: linear("q")?, k: linear("k")?, v: linear("v")?, out: linear("out")?, norm: norm(&params.at("norm"), width)? })
    }
}

fn linear(params: &Params, inputs: usize, outputs: usize) -> Result<[Tensor; 2]> {
    Ok([params.get("weight", &[outputs, inputs], Init::linear(inputs))?, params.get("bias", &[outputs], Init::linear(inputs))?])
}

fn norm(params: &Params, width: usize) -> Result<[Tensor; 2]> {
    Ok([params.get("weight", &[width], Init::Ones)?, params.get("bias", &[width], Init::Zeros)?])
}

fn apply([weight, bias]: &[Tensor; 2], x: &Tensor) -> Result<Tensor> {
    Ok(ops::linear(x, weight, Some(bias))?)
}

impl ReferenceQueries {
    /// The module of `config`; names as `layer.0.cross_attn.q.weight`.
    pub fn new(config: &ReferenceQueriesConfig, params: &Params) -> Result<Self> {
        let width = config.width;
        let layer = |index: usize| -> Result<Layer> {
            let params = params.at("layer").at(index);
            let ffn = params.at("ffn");
            Ok(Layer {
                self_attention: MultiHead::new(width, &params.at("self_attn"))?,
                cross_attention: MultiHead::new(width, &params.at("cross_attn"))?,
                up: linear(&ffn.at("up"), width, config.ffn_width)?,
                down: linear(&ffn.at("down"), config.ffn_width, width)?,
                norm: norm(&ffn.at("norm"), width)?,
            })
        };
        Ok(ReferenceQueries {
            token_proj: params.at("token_proj").get("weight", &[width, config.patch_width], Init::linear(config.patch_width))?,
            queries: params.get("queries", &[config.structures, width], Init::Normal(0.02))?,
            layers: (0..config.depth).map(layer).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// patches: (B, N, C). The attention is the last layer's, maximum over its heads; for each layer also the maps of both sides
    /// (queries, patches). The last layer updates the patches too: they become visual tokens.
    pub fn observe(&self, patches: &Tensor, mut dropout: Option<&mut ChaCha8Rng>) -> Result<(Observation, Vec<[ReferenceLayerMaps; 2]>)> {
        let b = patches.dim(0)?;
        let mut states = ops::linear(patches, &self.token_proj, None)?;
        let mut x = self.queries.unsqueeze(0)?;
        let mut maps = Vec::new();
        for layer in &self.layers {
            let queries = self.side(layer, &x, &states, dropout.as_deref_mut())?;
            let updated = self.side(layer, &states, &x, dropout.as_deref_mut())?;
            (x, states) = (queries.out.clone(), updated.out.clone());
            maps.push([queries, updated]);
        }
        let (s, width) = self.queries.dims2()?;
        let tokens = x.broadcast_as((b, s, width))?.contiguous()?;
        let attention = match maps.last() {
            Some([queries, _]) => queries.cross_attention.max(1)?,
            None => Tensor::zeros((b, s, states.dim(1)?), states.dtype(), states.device())?,
        };
        Ok((Observation { tokens, attention, patches: states }, maps))
    }

    /// FFN(Cross(Self(a), c)), each post-norm.
    fn side(&self, layer: &Layer, a: &Tensor, c: &Tensor, mut dropout: Option<&mut ChaCha8Rng>) -> Result<ReferenceLayerMaps> {
        let (a, self_attention) = self.attend(&layer.self_attention, a, a, dropout.as_deref_mut())?;
        let (a, cross_attention) = self.attend(&layer.cross_attention, &a, c, dropout.as_deref_mut())?;
        let hidden = apply(&layer.down, &ops::gelu(&apply(&layer.up, &a)?)?)?;
        let hidden = self.drop(hidden, dropout)?;
        let [weight, bias] = &layer.norm;
        let out = ops::layer_norm(&(a + hidden)?, weight, Some(bias), self.config.eps)?;
        Ok(ReferenceLayerMaps { out, self_attention, cross_attention })
    }

    /// LN(a + W_o MHA(a, c) + b_o) and the probabilities. a: (1 or B, rows, h), c: (1 or B, columns, h).
    fn attend(&self, attention: &MultiHead, a: &Tensor, c: &Tensor, mut dropout: Option<&mut ChaCha8Rng>) -> Result<(Tensor, Tensor)> {
        let heads = self.config.heads;
        let batch = a.dim(0)?.max(c.dim(0)?);
        let split = |y: Tensor| -> Result<Tensor> {
            let (b, n, width) = y.dims3()?;
            let y = y.reshape((b, n, heads, width / heads))?.transpose(1, 2)?;
            Ok(y.broadcast_as((batch, heads, n, width / heads))?.contiguous()?)
        };
        let (q, k, v) = (split(apply(&attention.q, a)?)?, split(apply(&attention.k, c)?)?, split(apply(&attention.v, c)?)?);
        let options = Attention::full(1.0 / ((self.config.width / heads) as f64).sqrt());
        let (mixed, weights) = ops::attention_with_weights(&q, &k, &v, &options)?;
        // the reference keeps the attention after dropout; the mixture uses the same draw
        let (mixed, weights) = match dropout.as_deref_mut() {
            Some(rng) if self.config.dropout > 0.0 => {
                let weights = ops::dropout(&weights, self.config.dropout, rng)?;
                (weights.matmul(&v)?, weights)
            }
            _ => (mixed, weights),
        };
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((batch, a.dim(1)?, self.config.width))?;
        let projected = self.drop(apply(&attention.out, &mixed)?, dropout)?;
        let [weight, bias] = &attention.norm;
        Ok((ops::layer_norm(&a.broadcast_add(&projected)?, weight, Some(bias), self.config.eps)?, weights))
    }

    fn drop(&self, x: Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        match dropout {
            Some(rng) => Ok(ops::dropout(&x, self.config.dropout, rng)?),
            None => Ok(x),
        }
    }
}
