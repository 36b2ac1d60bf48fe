//! The encoder: patch embedding, spatial transformer, temporal transformer.

use candle_core::{DType, Tensor};
use ctscribe_ops as ops;
use serde::{Deserialize, Serialize};

use crate::weights::{Init, Params, WeightPrecision};
use crate::{Error, Result};

use super::position::PositionBias;
use super::quantizer::{Quantized, Quantizer};
use super::transformer::Transformer;

/// LayerNorm's epsilon everywhere in CT-ViT (PyTorch's default).
pub(super) const EPS: f64 = 1e-5;

/// CT-ViT's sizes, in CT-CLIP's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CtVitConfig {
    /// Token width C.
    pub dim: usize,
    /// Entries of the codebook.
    pub codebook_size: usize,
    /// Prepared voxels (H, W) of a frame.
    pub image_size: [usize; 2],
    /// Voxels (H, W) of a patch.
    pub patch_size: [usize; 2],
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Layers of the spatial transformer.
    pub spatial_depth: usize,
    /// Layers of the temporal transformer.
    pub temporal_depth: usize,
    /// Width of a head.
    pub dim_head: usize,
    /// Heads.
    pub heads: usize,
    /// How much of the codebook a training step keeps (0.8 in CT-CLIP).
    pub codebook_decay: f64,
    /// How voxels become tokens; CT-CLIP's where the key is absent in a checkpoint's own configuration.
    #[serde(default)]
    pub patch_embedding: PatchEmbedding,
    /// What tells a token where it is, beside the convolution and the spatial bias; CT-CLIP has nothing more.
    #[serde(default)]
    pub position_embedding: PositionEmbedding,
}

/// How the voxels of a patch become a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchEmbedding {
    /// LayerNorm, Linear, LayerNorm (CT-CLIP): a patch's mean and contrast are normalised away.
    #[default]
    LayerNormLinear,
    /// Linear, GELU, Linear, LayerNorm: absolute Hounsfield units survive; learns sooner from scratch.
    Mlp,
}

/// Position embedding of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PositionEmbedding {
    /// None (CT-CLIP).
    #[default]
    None,
    /// A learned vector a token, added after the patch embedding, from a normal distribution.
    Learned {
        /// Patches along the frames.
        frames: usize,
        /// Standard deviation at the start.
        std: f64,
    },
}

impl CtVitConfig {
    /// The grid (T, Gh, Gw) of patches of a volume of `frames` frames.
    pub fn grid(&self, frames: usize) -> [usize; 3] {
        [frames / self.temporal_patch_size, self.image_size[0] / self.patch_size[0], self.image_size[1] / self.patch_size[1]]
    }

    /// Voxels of a patch along (d, h, w).
    pub fn patch_shape(&self) -> [usize; 3] {
        [self.temporal_patch_size, self.patch_size[0], self.patch_size[1]]
    }

    /// Voxels of a patch.
    pub fn patch_voxels(&self) -> usize {
        self.temporal_patch_size * self.patch_size[0] * self.patch_size[1]
    }

    /// Faults of these numbers for a prepared volume (D, H, W), named by `key`.
    pub fn faults(&self, key: &str, shape: [usize; 3]) -> Vec<String> {
        let mut faults = Vec::new();
        if shape[1..] != self.image_size {
            faults.push(format!("{key}.image_size: {:?} is not the prepared {:?}", self.image_size, &shape[1..]));
        }
        let patch = [self.temporal_patch_size, self.patch_size[0], self.patch_size[1]];
        for (axis, (size, patch)) in ["frames", "height", "width"].iter().zip(shape.iter().zip(patch)) {
            if patch == 0 || size % patch != 0 {
                faults.push(format!("{key}: {size} voxels of {axis} do not divide into patches of {patch}"));
            }
        }
        if let PositionEmbedding::Learned { frames, .. } = self.position_embedding
            && frames * self.temporal_patch_size != shape[0]
        {
            faults.push(format!("{key}.position_embedding.learned.frames: {frames} patches do not make {} frames", shape[0]));
        }
        faults
    }
}

#[derive(Debug)]
enum Embedding {
    LayerNormLinear { norm: [Tensor; 2], linear: [Tensor; 2] },
    Mlp { first: [Tensor; 2], second: [Tensor; 2] },
}

/// The encoder.
#[derive(Debug)]
pub struct CtVit {
    config: CtVitConfig,
    embedding: Embedding,
    embedding_norm: [Tensor; 2],
    positions: Option<Tensor>,
    bias: PositionBias,
    spatial: Transformer,
    temporal: Transformer,
    quantizer: Quantizer,
}

/// What each stage gives, (B, T, Gh, Gw, C).
#[derive(Debug)]
pub struct CtVitStages {
    /// After the patch embedding.
    pub patch_embedding: Tensor,
    /// After the spatial transformer.
    pub spatial: Tensor,
    /// After the temporal transformer: the tokens before vector quantisation.
    pub tokens: Tensor,
}

impl CtVit {
    /// A model of `config` with the checkpoint's tensor names (`to_patch_emb.1.weight`, ...).
    pub fn new(config: &CtVitConfig, params: &Params) -> Result<Self> {
        let dim = config.dim;
        let (embedding, embedding_norm) = embedding(config, &params.at("to_patch_emb"))?;
        let positions = match config.position_embedding {
            PositionEmbedding::None => None,
            PositionEmbedding::Learned { frames, std } => {
                let [_, gh, gw] = config.grid(0);
                Some(params.get("position_embedding", &[frames, gh, gw, dim], Init::Normal(std))?)
            }
        };
        declare_unused(params);
        Ok(CtVit {
            embedding,
            embedding_norm,
            positions,
            bias: PositionBias::new(dim, config.heads, &params.at("spatial_rel_pos_bias"))?,
            spatial: Transformer::new(config, config.spatial_depth, &params.at("enc_spatial_transformer"))?,
            temporal: Transformer::new(config, config.temporal_depth, &params.at("enc_temporal_transformer"))?,
            quantizer: Quantizer::new(dim, config.codebook_size, config.codebook_decay, &params.at("vq._codebook"))?,
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &CtVitConfig {
        &self.config
    }

    /// Whether each layer is run again in the backward pass instead of keeping what it computed; the gradients are the same bits.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.spatial.set_recompute(recompute);
        self.temporal.set_recompute(recompute);
    }

    /// Of the transformers' products with weights, forward and backward: f32 at first. Attention, norms and all else are in f32, and so is the patch
    /// embedding, whose error would stay in every token and be larger than that of all layers.
    pub fn set_precision(&mut self, precision: WeightPrecision) {
        self.spatial.set_precision(precision.into());
        self.temporal.set_precision(precision.into());
    }

    /// volumes: (B, 1, F, H, W) in [-1, 1] -> tokens before vector quantisation (B, T, Gh, Gw, C).
    pub fn encode(&self, volumes: &Tensor) -> Result<Tensor> {
        Ok(self.stages(volumes)?.tokens)
    }

    /// As [`CtVit::encode`], with what came before.
    pub fn stages(&self, volumes: &Tensor) -> Result<CtVitStages> {
        let patch_embedding = self.embed(volumes)?;
        let placed = match &self.positions {
            Some(positions) => patch_embedding.broadcast_add(positions)?,
            None => patch_embedding.clone(),
        };
        let (b, t, gh, gw, c) = placed.dims5()?;
        let grid = (b, t, gh, gw);
        let bias = self.bias.forward(gh, gw)?;
        let spatial = self.spatial.forward(&placed.reshape((b * t, gh * gw, c))?, grid, Some(&bias))?.reshape((b, t, gh, gw, c))?;
        let columns = spatial.permute((0, 2, 3, 1, 4))?.contiguous()?.reshape((b * gh * gw, t, c))?;
        let columns = self.temporal.forward(&columns, grid, None)?.reshape((b, gh, gw, t, c))?;
        let tokens = columns.permute((0, 3, 1, 2, 4))?.contiguous()?;
        Ok(CtVitStages { patch_embedding, spatial, tokens })
    }

    /// The spatial attention's bias on a (Gh, Gw) grid: (heads, Gh Gw, Gh Gw).
    pub fn spatial_bias(&self, gh: usize, gw: usize) -> Result<Tensor> {
        self.bias.forward(gh, gw)
    }

    /// Tokens (..., C) -> the nearest codebook rows, their indices and the commitment loss.
    pub fn quantize(&self, tokens: &Tensor) -> Result<Quantized> {
        self.quantizer.quantize(tokens)
    }

    /// The codebook.
    pub fn quantizer(&self) -> &Quantizer {
        &self.quantizer
    }

    fn embed(&self, volumes: &Tensor) -> Result<Tensor> {
        let (b, channels, frames, height, width) = volumes.dims5()?;
        let pt = self.config.temporal_patch_size;
        if channels != 1 || [height, width] != self.config.image_size || frames % pt != 0 {
            let want = self.config.image_size;
            let what = format!("volume {:?} is not (B, 1, a multiple of {pt}, {}, {})", volumes.dims(), want[0], want[1]);
            return Err(Error::Invalid(what));
        }
        let [t, gh, gw] = self.config.grid(frames);
        let volumes = volumes.squeeze(1)?;
        let grid = (b, t, gh, gw, self.config.dim);
        if volumes.track_op() || self.embedding_norm[0].track_op() {
            return Ok(self.embed_patches(&volumes)?.reshape(grid)?);
        }
        if let Embedding::LayerNormLinear { norm, linear } = &self.embedding
            && volumes.device().is_cpu()
            && [volumes.dtype(), linear[0].dtype()] == [DType::F32; 2]
        {
            let norms = [norm.each_ref(), self.embedding_norm.each_ref()];
            return Ok(ops::patch_tokens(&volumes, self.config.patch_shape(), norms, linear.each_ref(), EPS)?.reshape(grid)?);
        }
        // without gradients frame by frame: the patches are as large as the volume
        let shape = (b, 1, gh, gw, self.config.dim);
        let frame = |t: usize| -> Result<Tensor> { Ok(self.embed_patches(&volumes.narrow(1, t * pt, pt)?)?.reshape(shape)?) };
        let frames = (0..t).map(frame).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&frames, 1)?)
    }

    /// (B, F, H, W) -> (B T Gh Gw, C).
    fn embed_patches(&self, volumes: &Tensor) -> Result<Tensor> {
        // peers.md a.2: the order inside a patch is frame, row, column
        let patches = ops::patches(volumes, self.config.patch_shape())?;
        let tokens = match &self.embedding {
            Embedding::LayerNormLinear { norm: [gamma, beta], linear: [weight, bias] } if weight.track_op() && !patches.track_op() => {
                // patches take no gradient: with the norm's scale and shift in the weight nothing but the normed ones is kept for it
                let normed = ops::layer_norm(&patches, &gamma.detach().ones_like()?, None, EPS)?;
                let bias = (bias + weight.matmul(&beta.unsqueeze(1)?)?.squeeze(1)?)?;
                ops::linear(&normed, &weight.broadcast_mul(gamma)?, Some(&bias))?
            }
            Embedding::LayerNormLinear { norm: [gamma, beta], linear: [weight, bias] } => {
                ops::linear(&ops::layer_norm(&patches, gamma, Some(beta), EPS)?, weight, Some(bias))?
            }
            Embedding::Mlp { first: [w1, b1], second: [w2, b2] } => {
                ops::linear(&ops::gelu(&ops::linear(&patches, w1, Some(b1))?)?, w2, Some(b2))?
            }
        };
        let [gamma, beta] = &self.embedding_norm;
        Ok(ops::layer_norm(&tokens, gamma, Some(beta), EPS)?)
    }
}

/// The embedding's tensors under `to_patch_emb`, and its last norm.
fn embedding(config: &CtVitConfig, params: &Params) -> Result<(Embedding, [Tensor; 2])> {
    let (voxels, dim) = (config.patch_voxels(), config.dim);
    let norm = |name: &str, width: usize| -> Result<[Tensor; 2]> {
        let params = params.at(name);
        Ok([params.get("weight", &[width], Init::Ones)?, params.get("bias", &[width], Init::Zeros)?])
    };
    let linear = |name: &str, inputs: usize, outputs: usize| -> Result<[Tensor; 2]> {
        let params = params.at(name);
        Ok([params.get("weight", &[outputs, inputs], Init::linear(inputs))?, params.get("bias", &[outputs], Init::linear(inputs))?])
    };
    match config.patch_embedding {
        PatchEmbedding::LayerNormLinear => {
            let embedding = Embedding::LayerNormLinear { norm: norm("1", voxels)?, linear: linear("2", voxels, dim)? };
            Ok((embedding, norm("3", dim)?))
        }
        PatchEmbedding::Mlp => {
            let embedding = Embedding::Mlp { first: linear("first", voxels, dim)?, second: linear("second", dim, dim)? };
            Ok((embedding, norm("norm", dim)?))
        }
    }
}

/// Tensors that CT-CLIP's checkpoints hold and encoding does not use (peers.md a.8).
fn declare_unused(params: &Params) {
    for name in ["1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias"] {
        params.at("to_patch_emb_first_frame").unused(name);
    }
    for name in ["to_pixels_first_frame.0.weight", "to_pixels_first_frame.0.bias", "to_pixels.0.weight", "to_pixels.0.bias"] {
        params.unused(name);
    }
    params.unused("vq._codebook.initted");
}
