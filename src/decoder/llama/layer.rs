//! One layer: attention and the gated feed-forward, each behind its norm.

use candle_core::{DType, Tensor};
use ctscribe_lora::{Adapted, FixedFactor};
use ctscribe_ops::{self as ops, AdaptedMatrix, Attention, AttentionBlock, Matrix};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::weights::{Init, Params};

use super::config::LlamaConfig;
use super::projection::Projection;

/// The seven projections of a layer, in PEFT's usual order.
pub(super) const PROJECTIONS: [&str; 7] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// What reading needs of each projection's adapter.
pub(super) type Factors = [FixedFactor; PROJECTIONS.len()];

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) input_norm: Tensor,
    pub(super) post_norm: Tensor,
    pub(super) projections: Vec<Adapted<Projection>>,
}

impl Layer {
    /// `dtype`: of what passes through it.
    pub(super) fn new(config: &LlamaConfig, dtype: DType, params: &Params) -> Result<Self> {
        let dim = config.hidden_size;
        let projection = |(name, size): (&&str, (usize, usize))| -> Result<Adapted<Projection>> {
            let init = Init::Normal(1.0 / (size.1 as f64).sqrt());
            Ok(Adapted::plain(Projection::new(&params.at(name), "weight", size, init)?))
        };
        let norm = |name: &str| params.at(name).with_dtype(dtype).get("weight", &[dim], Init::Ones);
        Ok(Layer {
            input_norm: norm("input_layernorm")?,
            post_norm: norm("post_attention_layernorm")?,
            projections: PROJECTIONS.iter().zip(config.projection_sizes()).map(projection).collect::<Result<_>>()?,
        })
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        config: &LlamaConfig,
        tables: (&Tensor, &Tensor),
        key_mask: Option<&Tensor>,
        (first, mut dropout): (usize, Option<&mut ChaCha8Rng>),
    ) -> Result<Tensor> {
        let x = self.attend(x, config, tables, key_mask, dropout.as_deref_mut())?;
        self.feed_forward(&x, config, (first, dropout), false)
    }

    /// x and what attention adds to it.
    pub(super) fn attend(
        &self,
        x: &Tensor,
        config: &LlamaConfig,
        (cos, sin): (&Tensor, &Tensor),
        key_mask: Option<&Tensor>,
        mut dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        if self.attends_in_place() {
            let projections = self.in_place([Q, K, V, O], x, dropout);
            let block = AttentionBlock { norm: &self.input_norm, eps: config.rms_norm_eps, projections, cos, sin, key_mask };
            return Ok(ops::attention_block(x, &block)?);
        }
        let mut project = |which: usize, x: &Tensor| self.projections[which].forward(x, dropout.as_deref_mut());
        let normed = ops::rms_norm(x, &self.input_norm, config.rms_norm_eps)?;
        let q = ops::rope(&split(&project(Q, &normed)?, config.num_attention_heads)?, cos, sin)?;
        let k = ops::rope(&split(&project(K, &normed)?, config.kv_heads())?, cos, sin)?;
        let v = split(&project(V, &normed)?, config.kv_heads())?;
        let options = Attention { scale: 1.0 / (config.head_width() as f64).sqrt(), causal: true, key_mask, bias: None };
        let mixed = join(&ops::attention(&q, &k, &v, &options)?)?;
        Ok((x + project(O, &mixed)?)?)
    }

    /// x and what the feed-forward block adds to it, of the positions from `first` on. `closing`: whether a checkpointed block ends with it.
    pub(super) fn feed_forward(
        &self,
        x: &Tensor,
        config: &LlamaConfig,
        (first, mut dropout): (usize, Option<&mut ChaCha8Rng>),
        closing: bool,
    ) -> Result<Tensor> {
        let x = &from(x, 1, first)?;
        if self.feeds_in_place() {
            let projections = self.in_place([GATE, UP, DOWN], x, dropout);
            let apply = if closing { ops::closing_feed_forward } else { ops::gated_feed_forward };
            return Ok(apply(x, &self.post_norm, config.rms_norm_eps, projections)?);
        }
        let mut project = |which: usize, x: &Tensor| self.projections[which].forward(x, dropout.as_deref_mut());
        let normed = ops::rms_norm(x, &self.post_norm, config.rms_norm_eps)?;
        let hidden = ops::swiglu(&project(GATE, &normed)?, &project(UP, &normed)?)?;
        Ok((x + project(DOWN, &hidden)?)?)
    }

    /// Whether attention is one operation, which keeps what its gradient needs by itself.
    pub(super) fn attends_in_place(&self) -> bool {
        !self.input_norm.track_op() && [Q, K, V, O].iter().all(|&which| self.projections[which].is_in_place())
    }

    /// Whether the feed-forward block is one operation, which keeps what its gradient needs by itself.
    pub(super) fn feeds_in_place(&self) -> bool {
        !self.post_norm.track_op() && [GATE, UP, DOWN].iter().all(|&which| self.projections[which].is_in_place())
    }

    /// Projections that are all in place with their adapters, which take rows of x or as many.
    fn in_place<const N: usize>(&self, which: [usize; N], x: &Tensor, mut dropout: Option<&mut ChaCha8Rng>) -> [AdaptedMatrix; N] {
        let rows = x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1);
        which.map(|which| self.projections[which].in_place(rows, dropout.as_deref_mut()).expect("the callers have asked whether it is"))
    }

    /// The frozen weight of a projection.
    fn matrix(&self, which: usize) -> Option<&Matrix> {
        match &self.projections[which].base {
            Projection::Frozen(matrix) => Some(matrix),
            Projection::Trained(_) => None,
        }
    }

    /// Projections that are all in place with their adapters, for what is read without a gradient.
    fn reading<const N: usize>(&self, which: [usize; N], factors: &Factors) -> Result<Option<[AdaptedMatrix; N]>> {
        let mut all = Vec::with_capacity(N);
        for which in which {
            match self.projections[which].for_reading(&factors[which])? {
                Some(own) => all.push(own),
                None => return Ok(None),
            }
        }
        Ok(all.try_into().ok())
    }

    /// What some projections with their adapters make of x, without gradients.
    fn project_detached<const N: usize>(&self, which: [usize; N], x: &Tensor, factors: &Factors) -> Result<[Tensor; N]> {
        if let Some(projections) = self.reading(which, factors)? {
            return Ok(ops::adapted_products(x, projections)?);
        }
        let in_place = |which: &usize| self.matrix(*which).filter(|matrix| matrix.in_place()).map(Matrix::for_reading);
        let matrices: Vec<Matrix> = which.iter().filter_map(in_place).collect();
        let ys = match <[Matrix; N]>::try_from(matrices) {
            Ok(matrices) => {
                let ys = Matrix::forward_each(matrices.each_ref(), x)?.into_iter().zip(which);
                ys.map(|(y, which)| self.projections[which].adapt_detached(y, x, &factors[which]))
                    .collect::<candle_core::Result<Vec<_>>>()?
            }
            Err(_) => which
                .iter()
                .map(|&which| self.projections[which].forward_detached(x, &factors[which]))
                .collect::<candle_core::Result<Vec<_>>>()?,
        };
        Ok(ys.try_into().expect("there is one of each projection"))
    }

    /// Without gradients. `last`: of the last position alone, (B, 1, D); keys and values are those of all.
    pub(super) fn forward_detached(
        &self,
        x: &Tensor,
        config: &LlamaConfig,
        [cos, sin]: &[Tensor; 2],
        (factors, last): (&Factors, bool),
        attend: &mut dyn FnMut([&Tensor; 3], f64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let normed = ops::rms_norm(x, &self.input_norm.detach(), config.rms_norm_eps)?;
        let skipped = if last { x.dim(1)?.saturating_sub(1) } else { 0 };
        let asked = |x: &Tensor, axis: usize| from(x, axis, skipped);
        let [q, k, v] = match skipped {
            0 => self.project_detached([Q, K, V], &normed, factors)?,
            _ => {
                let ([q], [k, v]) =
                    (self.project_detached([Q], &asked(&normed, 1)?, factors)?, self.project_detached([K, V], &normed, factors)?);
                [q, k, v]
            }
        };
        let q = ops::rope(&split(&q, config.num_attention_heads)?, &asked(cos, 0)?, &asked(sin, 0)?)?;
        let k = ops::rope(&split(&k, config.kv_heads())?, cos, sin)?;
        let v = split(&v, config.kv_heads())?;
        let mixed = join(&attend([&q, &k, &v], 1.0 / (config.head_width() as f64).sqrt())?)?;
        let [out] = self.project_detached([O], &mixed, factors)?;
        let x = (asked(x, 1)? + out)?;
        let norm = self.post_norm.detach();
        if let Some(projections) = self.reading([GATE, UP, DOWN], factors)? {
            return Ok(ops::gated_feed_forward(&x, &norm, config.rms_norm_eps, projections)?);
        }
        let normed = ops::rms_norm(&x, &norm, config.rms_norm_eps)?;
        let [gate, up] = self.project_detached([GATE, UP], &normed, factors)?;
        let [down] = self.project_detached([DOWN], &ops::swiglu(&gate, &up)?, factors)?;
        Ok((&x + down)?.detach())
    }
}

/// What x holds from place `first` of an axis on.
fn from(x: &Tensor, axis: usize, first: usize) -> candle_core::Result<Tensor> {
    x.narrow(axis, first, x.dim(axis)? - first)?.contiguous()
}

/// (B, L, H D) -> (B, H, L, D).
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, l, width) = x.dims3()?;
    Ok(x.reshape((b, l, heads, width / heads))?.transpose(1, 2)?.contiguous()?)
}

/// (B, H, L, D) -> (B, L, H D).
fn join(x: &Tensor) -> Result<Tensor> {
    let (b, h, l, d) = x.dims4()?;
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((b, l, h * d))?)
}
