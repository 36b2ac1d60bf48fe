//! The layers of both stages: position convolution, attention, feed-forward.

use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Tensor};
use ctscribe_ops::{self as ops, Attention, ConvPadding, Precision, transfers};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::weights::{Init, Params};

use super::ct_vit::{CtVitConfig, EPS};

/// CT-ViT's constant attention scale, in place of 1 / sqrt(width) (peers.md a.5).
const SCALE: f64 = 8.0;

/// Rows of a feed-forward without gradients: CT-CLIP's 2730 values each make 11 MB, which the allocator keeps for the next.
const FEED_ROWS: usize = 1024;

/// Sequences from which on a layer without gradients is one operation: a core takes whole ones.
const SEQUENCES: usize = 8;

/// A stack of layers with a norm at its end.
#[derive(Debug)]
pub struct Transformer {
    layers: Vec<Layer>,
    norm_out: ScaleNorm,
    recompute: bool,
}

/// Layer norm whose shift is a buffer (zero in real checkpoints, honoured all the same).
#[derive(Debug, Clone)]
struct ScaleNorm {
    gamma: Tensor,
    beta: Tensor,
}

#[derive(Debug, Clone)]
struct Layer {
    conv: [Tensor; 2],
    /// The kernel (1, 1, 3, 3, 3) that returns its input: added to the weight it is the residual. f32 only: narrower types would round
    /// the weight away beside a one.
    itself: Option<Tensor>,
    norm: ScaleNorm,
    to_q: Tensor,
    to_kv: Tensor,
    to_out: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    feed_norm: [Tensor; 2],
    feed_in: Tensor,
    feed_out: Tensor,
    heads: usize,
    dim_head: usize,
    precision: Precision,
    /// For reading, packed when it is first wanted.
    packed: OnceLock<Arc<ops::EncoderBlock>>,
}

impl ScaleNorm {
    fn new(dim: usize, params: &Params) -> Result<Self> {
        Ok(ScaleNorm { gamma: params.get("gamma", &[dim], Init::Ones)?, beta: params.buffer("beta", &[dim], Init::Zeros)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.gamma, Some(&self.beta), EPS)?)
    }
}

impl Transformer {
    /// `depth` layers.
    pub fn new(config: &CtVitConfig, depth: usize, params: &Params) -> Result<Self> {
        let layers = (0..depth).map(|index| Layer::new(config, &params.at("layers").at(index)));
        let norm_out = ScaleNorm::new(config.dim, &params.at("norm_out"))?;
        Ok(Transformer { layers: layers.collect::<Result<_>>()?, norm_out, recompute: false })
    }

    /// Whether each layer is run again in the backward pass instead of keeping what it computed.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Of the products with weights, forward and backward.
    pub fn set_precision(&mut self, precision: Precision) {
        for layer in &mut self.layers {
            layer.precision = precision;
            layer.packed = OnceLock::new();
        }
    }

    /// x: (n, m, C) of a grid (B, T, Gh, Gw), bias: (heads, m, m) -> (n, m, C).
    pub fn forward(&self, x: &Tensor, grid: (usize, usize, usize, usize), bias: Option<&Tensor>) -> Result<Tensor> {
        let mut x = x.clone();
        if self.recompute {
            let inputs: Vec<&Tensor> = [&x].into_iter().chain(bias).collect();
            let again = |layer: Layer| move |inputs: &[Tensor], _: Option<&mut ChaCha8Rng>| layer.forward(&inputs[0], grid, inputs.get(1));
            x = ops::checkpoint_layers(&inputs, None, self.layers.iter().cloned().map(again).collect())?;
        } else {
            for layer in &self.layers {
                x = layer.forward(&x, grid, bias)?;
            }
        }
        self.norm_out.forward(&x)
    }
}

/// The causal 3x3x3 kernel that returns its input: of the frames the last tap, of rows and columns the middle one.
fn identity(device: &Device) -> Result<Tensor> {
    let taps: Vec<f32> = (0..27).map(|tap| if tap == 2 * 9 + 3 + 1 { 1.0 } else { 0.0 }).collect();
    Ok(transfers::upload(taps, (1, 1, 3, 3, 3), device)?)
}

impl Layer {
    fn new(config: &CtVitConfig, params: &Params) -> Result<Self> {
        let (dim, inner) = (config.dim, config.heads * config.dim_head);
        // int(4 * (2 / 3) * dim), in doubles (peers.md a.5)
        let hidden = (4.0 * (2.0 / 3.0) * dim as f64) as usize;
        let (conv, attention, feed) = (params.at("0.dsconv"), params.at("1"), params.at("3"));
        attention.unused("null_kv");
        attention.at("context_norm").unused("gamma");
        attention.at("context_norm").unused("beta");
        let weight = |params: &Params, name: &str, outputs: usize, inputs: usize| {
            params.at(name).get("weight", &[outputs, inputs], Init::linear(inputs))
        };
        // 27 inputs a channel
        let conv = [conv.get("weight", &[dim, 1, 3, 3, 3], Init::linear(27))?, conv.get("bias", &[dim], Init::linear(27))?];
        Ok(Layer {
            itself: (conv[0].dtype() == DType::F32).then(|| identity(conv[0].device())).transpose()?,
            conv,
            norm: ScaleNorm::new(dim, &attention.at("norm"))?,
            to_q: weight(&attention, "to_q", inner, dim)?,
            to_kv: weight(&attention, "to_kv", 2 * inner, dim)?,
            to_out: weight(&attention, "to_out", dim, inner)?,
            q_scale: attention.get("q_scale", &[config.dim_head], Init::Ones)?,
            k_scale: attention.get("k_scale", &[config.dim_head], Init::Ones)?,
            feed_norm: [feed.at("0").get("weight", &[dim], Init::Ones)?, feed.at("0").get("bias", &[dim], Init::Zeros)?],
            feed_in: weight(&feed, "1", 2 * hidden, dim)?,
            feed_out: weight(&feed, "4", dim, hidden)?,
            heads: config.heads,
            dim_head: config.dim_head,
            precision: Precision::F32,
            packed: OnceLock::new(),
        })
    }

    /// x: (n, m, C) of a grid (B, T, Gh, Gw), bias: (heads, m, m) -> (n, m, C).
    fn forward(&self, x: &Tensor, grid: (usize, usize, usize, usize), bias: Option<&Tensor>) -> Result<Tensor> {
        let x = self.position(x, grid)?;
        if self.reads(&x, bias)? {
            return Ok(self.packed()?.forward(&x, bias)?);
        }
        self.feed(&self.attend(&x, bias)?)
    }

    /// Whether the layer is run for reading, by sequences enough for every core.
    fn reads(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<bool> {
        let of = self.weights();
        let weights = [of.to_q, of.to_kv, of.to_out, of.feed_in, of.feed_out];
        let mut tensors = weights.into_iter().chain(of.norm).chain(of.unit_scales).chain(of.feed_norm).chain(bias).chain([x]);
        let here = tensors.all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32 && !tensor.track_op());
        Ok(here && x.dim(0)? >= SEQUENCES)
    }

    /// The layer's block; its weights are no variables, so it stays what they are.
    fn packed(&self) -> Result<&ops::EncoderBlock> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let packed = Arc::new(ops::EncoderBlock::new(&self.weights())?);
        Ok(self.packed.get_or_init(|| packed))
    }

    fn weights(&self) -> ops::EncoderWeights<'_> {
        ops::EncoderWeights {
            norm: [&self.norm.gamma, &self.norm.beta],
            to_q: &self.to_q,
            to_kv: &self.to_kv,
            to_out: &self.to_out,
            unit_scales: [&self.q_scale, &self.k_scale],
            scale: SCALE,
            feed_norm: self.feed_norm.each_ref(),
            feed_in: &self.feed_in,
            feed_out: &self.feed_out,
            eps: EPS,
            precision: self.precision,
        }
    }

    /// x and its position convolution. The flat layout of both stages is reshaped, not permuted, to (B, T, Gh, Gw, C): in the temporal
    /// stage that scrambles the grid, and the public weights were trained so (peers.md a.5).
    fn position(&self, x: &Tensor, (b, t, gh, gw): (usize, usize, usize, usize)) -> Result<Tensor> {
        let c = x.dim(D::Minus1)?;
        let on_grid = x.reshape((b, t, gh, gw, c))?;
        let [weight, bias] = &self.conv;
        let convolve = |weight: &Tensor| -> Result<Tensor> {
            Ok(ops::depthwise_conv3d(&on_grid, weight, bias, ConvPadding::Causal)?.reshape(x.shape())?)
        };
        match &self.itself {
            Some(itself) => convolve(&weight.broadcast_add(itself)?),
            None => Ok((convolve(weight)? + x)?),
        }
    }

    /// x and its attention: queries from the normalised input, keys and values from the input itself (peers.md a.5).
    fn attend(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (n, m, _) = x.dims3()?;
        let inner = self.heads * self.dim_head;
        let heads = |x: &Tensor, weight: &Tensor| -> Result<Tensor> {
            Ok(ops::linear_in(self.precision, x, weight, None)?.reshape((n, m, self.heads, self.dim_head))?)
        };
        let unit = |x: Tensor, scale: &Tensor| -> Result<Tensor> { Ok(ops::l2_normalize_scaled(&x, scale, 1e-12)?.transpose(1, 2)?) };
        let q = unit(heads(&self.norm.forward(x)?, &self.to_q)?, &self.q_scale)?;
        let k = unit(heads(x, &self.to_kv.narrow(0, 0, inner)?)?, &self.k_scale)?;
        let v = heads(x, &self.to_kv.narrow(0, inner, inner)?)?.transpose(1, 2)?;
        let options = Attention { bias, ..Attention::full(SCALE) };
        let mixed = ops::attention(&q, &k, &v, &options)?.transpose(1, 2)?.contiguous()?.reshape((n, m, inner))?;
        Ok(ops::linear_residual(self.precision, &mixed, &self.to_out, x)?)
    }

    /// x and its feed-forward. Without gradients a part of the rows at a time: the wide values between the two products stay small.
    fn feed(&self, x: &Tensor) -> Result<Tensor> {
        if x.track_op() || self.feed_in.track_op() {
            return self.feed_rows(x);
        }
        let (n, m, c) = x.dims3()?;
        let rows = x.reshape((n * m, c))?;
        let parts = (0..n * m).step_by(FEED_ROWS).map(|start| self.feed_rows(&rows.narrow(0, start, FEED_ROWS.min(n * m - start))?));
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?.reshape((n, m, c))?)
    }

    fn feed_rows(&self, x: &Tensor) -> Result<Tensor> {
        let [gamma, beta] = &self.feed_norm;
        let both = ops::linear_in(self.precision, &ops::layer_norm(x, gamma, Some(beta), EPS)?, &self.feed_in, None)?;
        Ok(ops::linear_residual(self.precision, &ops::geglu_halves(&both)?, &self.feed_out, x)?)
    }
}
