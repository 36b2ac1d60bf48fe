//! One BERT layer: self-attention, cross-attention where it decodes, feed-forward.

use candle_core::Tensor;
use ctscribe_ops::{self as ops, Attention};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::weights::Params;

use super::{apply, apply_norm, linear, norm};

/// Where the layer norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// After each residual sum (BERT).
    Post,
    /// Before each sub-layer: small decoders learn sooner from scratch.
    Pre,
}

/// Sizes that every sub-layer shares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub width: usize,
    pub heads: usize,
    pub ffn: usize,
    pub eps: f64,
    pub dropout: f64,
    pub place: NormPlace,
}

/// Sizes of width, heads and feed-forward; epsilon, dropout and place of the norms.
pub(crate) fn layer_sizes((width, heads, ffn): (usize, usize, usize), (eps, dropout, place): (f64, f64, NormPlace)) -> Sizes {
    Sizes { width, heads, ffn, eps, dropout, place }
}

/// Multi-head attention with BERT's names (`self.query`, `output.dense`, ...).
#[derive(Debug, Clone)]
pub struct BertAttention {
    query: [Tensor; 2],
    key: [Tensor; 2],
    value: [Tensor; 2],
    out: [Tensor; 2],
    norm: [Tensor; 2],
    sizes: Sizes,
}

/// A layer with BERT's names.
#[derive(Debug, Clone)]
pub struct BertLayer {
    pub(crate) attention: BertAttention,
    pub(crate) cross: Option<BertAttention>,
    up: [Tensor; 2],
    down: [Tensor; 2],
    norm: [Tensor; 2],
    sizes: Sizes,
}

fn drop(x: Tensor, p: f64, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
    match dropout {
        Some(rng) if p > 0.0 => Ok(ops::dropout(&x, p, rng)?),
        _ => Ok(x),
    }
}

impl BertAttention {
    pub(crate) fn new(sizes: Sizes, params: &Params) -> Result<Self> {
        let width = sizes.width;
        let (own, output) = (params.at("self"), params.at("output"));
        Ok(BertAttention {
            query: linear(&own.at("query"), width, width)?,
            key: linear(&own.at("key"), width, width)?,
            value: linear(&own.at("value"), width, width)?,
            out: linear(&output.at("dense"), width, width)?,
            norm: norm(&output.at("LayerNorm"), width)?,
            sizes,
        })
    }

    /// (B, L, C) -> (B, H, L, C / H).
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        Ok(x.reshape((b, l, self.sizes.heads, self.sizes.width / self.sizes.heads))?.transpose(1, 2)?.contiguous()?)
    }

    /// Keys and values of a context (B, M, C): two (B, H, M, C / H).
    pub(crate) fn keys_values(&self, context: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.split(&apply(&self.key, context)?)?, self.split(&apply(&self.value, context)?)?])
    }

    /// Queries of x (B, L, C), normalised first where norms stand first: (B, H, L, C / H).
    pub(crate) fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.split(&apply(&self.query, x)?)
    }

    /// What the sub-layer reads: x itself, or its norm.
    pub(crate) fn input(&self, x: &Tensor) -> Result<Tensor> {
        match self.sizes.place {
            NormPlace::Post => Ok(x.clone()),
            NormPlace::Pre => apply_norm(&self.norm, x, self.sizes.eps),
        }
    }

    /// The logits' scale.
    pub(crate) fn scale(&self) -> f64 {
        1.0 / ((self.sizes.width / self.sizes.heads) as f64).sqrt()
    }

    /// The residual sum after attention. x: (B, L, C), mixed: (B, H, L, C / H) -> (B, L, C).
    pub(crate) fn output(&self, x: &Tensor, mixed: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape(x.shape())?;
        let sum = (x + drop(apply(&self.out, &mixed)?, self.sizes.dropout, dropout)?)?;
        match self.sizes.place {
            NormPlace::Post => apply_norm(&self.norm, &sum, self.sizes.eps),
            NormPlace::Pre => Ok(sum),
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        context: Option<&Tensor>,
        mask: (bool, Option<&Tensor>),
        dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let input = self.input(x)?;
        let [k, v] = self.keys_values(context.unwrap_or(&input))?;
        let options = Attention { scale: self.scale(), causal: mask.0, key_mask: mask.1, bias: None };
        let mixed = ops::attention(&self.queries(&input)?, &k, &v, &options)?;
        self.output(x, &mixed, dropout)
    }
}

impl BertLayer {
    pub(crate) fn new(sizes: Sizes, cross: bool, params: &Params) -> Result<Self> {
        let (width, ffn) = (sizes.width, sizes.ffn);
        Ok(BertLayer {
            attention: BertAttention::new(sizes, &params.at("attention"))?,
            cross: cross.then(|| BertAttention::new(sizes, &params.at("crossattention"))).transpose()?,
            up: linear(&params.at("intermediate.dense"), width, ffn)?,
            down: linear(&params.at("output.dense"), ffn, width)?,
            norm: norm(&params.at("output.LayerNorm"), width)?,
            sizes,
        })
    }

    /// x: (B, L, C); mask: whether causal, and (B, L); context: (B, M, C) and (B, M) for cross-attention -> (B, L, C).
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        mask: (bool, Option<&Tensor>),
        context: Option<(&Tensor, Option<&Tensor>)>,
        mut dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let mut x = self.attention.forward(x, None, mask, dropout.as_deref_mut())?;
        if let (Some(cross), Some((context, context_mask))) = (&self.cross, context) {
            x = cross.forward(&x, Some(context), (false, context_mask), dropout.as_deref_mut())?;
        }
        self.feed(&x, dropout)
    }

    /// The feed-forward with its residual sum.
    pub(crate) fn feed(&self, x: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let input = match self.sizes.place {
            NormPlace::Post => x.clone(),
            NormPlace::Pre => apply_norm(&self.norm, x, self.sizes.eps)?,
        };
        let hidden = apply(&self.down, &ops::gelu(&apply(&self.up, &input)?)?)?;
        let sum = (x + drop(hidden, self.sizes.dropout, dropout)?)?;
        match self.sizes.place {
            NormPlace::Post => apply_norm(&self.norm, &sum, self.sizes.eps),
            NormPlace::Pre => Ok(sum),
        }
    }
}
