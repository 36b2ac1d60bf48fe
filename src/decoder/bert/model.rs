//! The network (BertLMHeadModel with cross-attention; reference.md 4.2).

use candle_core::{Device, Tensor};
use ctscribe_ops::{self as ops, transfers};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::text::bert::{BertLayer, NormPlace, apply, apply_norm, layer_sizes, linear, norm};
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// The decoder's sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertDecoderConfig {
    /// Vocabulary; 0 in a preset: the tokenizer's.
    pub vocab_size: usize,
    /// Width C.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Token types; 0: no such embedding (BLIP's decoder).
    pub type_vocab_size: usize,
    /// Layer norm's epsilon.
    pub layer_norm_eps: f64,
    /// Dropout on embeddings and on every sub-layer's output, in training.
    pub dropout: f64,
    /// Where the norms stand: `post` is BERT.
    pub norm: NormPlace,
}

/// The decoder with Hugging Face's names (`bert.*`, `cls.predictions.*`); the head is the word embedding.
#[derive(Debug)]
pub struct BertDecoder {
    config: BertDecoderConfig,
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    norm: [Tensor; 2],
    pub(super) layers: Vec<BertLayer>,
    transform: [Tensor; 2],
    transform_norm: [Tensor; 2],
    bias: Tensor,
    recompute: bool,
}

impl BertDecoder {
    /// A model of `config`.
    pub fn new(config: &BertDecoderConfig, params: &Params) -> Result<Self> {
        let width = config.hidden_size;
        let embeddings = params.at("bert.embeddings");
        let std = 0.02; // BERT's
        let table = |name: &str, rows: usize| embeddings.at(name).get("weight", &[rows, width], Init::Normal(std));
        embeddings.unused("position_ids");
        let predictions = params.at("cls.predictions");
        // tied to the word embeddings and to `bias`; some files hold copies
        predictions.at("decoder").unused("weight");
        predictions.at("decoder").unused("bias");
        let sizes = layer_sizes(
            (width, config.num_attention_heads, config.intermediate_size),
            (config.layer_norm_eps, config.dropout, config.norm),
        );
        let layer = |index: usize| BertLayer::new(sizes, true, &params.at("bert.encoder.layer").at(index));
        Ok(BertDecoder {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            types: match config.type_vocab_size {
                0 => None,
                rows => Some(table("token_type_embeddings", rows)?),
            },
            norm: norm(&embeddings.at("LayerNorm"), width)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            transform: linear(&predictions.at("transform.dense"), width, width)?,
            transform_norm: norm(&predictions.at("transform.LayerNorm"), width)?,
            bias: predictions.get("bias", &[config.vocab_size], Init::Zeros)?,
            recompute: false,
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &BertDecoderConfig {
        &self.config
    }

    /// Whether each layer is run again in the backward pass instead of keeping what it computed; the gradients are the same bits.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        self.words.device()
    }

    /// ids: (B, L) at positions `start..`, in the host's memory -> (B, L, C).
    pub(super) fn embed(&self, ids: &Tensor, start: usize, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let (b, l) = ids.dims2()?;
        if start + l > self.config.max_position_embeddings {
            let limit = self.config.max_position_embeddings;
            return Err(Error::Invalid(format!(
                "a report of {} tokens exceeds the decoder's {limit} (max_position_embeddings)",
                start + l
            )));
        }
        let ids = transfers::to_device(&ids.flatten_all()?, self.device())?;
        let words = self.words.index_select(&ids, 0)?.reshape((b, l, self.config.hidden_size))?;
        let mut sum = words.broadcast_add(&self.positions.narrow(0, start, l)?)?;
        if let Some(types) = &self.types {
            sum = sum.broadcast_add(&types.narrow(0, 0, 1)?.squeeze(0)?)?;
        }
        let x = apply_norm(&self.norm, &sum, self.config.layer_norm_eps)?;
        match dropout {
            Some(rng) => Ok(ops::dropout(&x, self.config.dropout, rng)?),
            None => Ok(x),
        }
    }

    /// ids: (B, L) in the host's memory, mask: (B, L); visual: (B, M, C), visual_mask: (B, M) -> hidden (B, L, C).
    pub fn forward(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        (visual, visual_mask): (&Tensor, Option<&Tensor>),
        mut dropout: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids, 0, dropout.as_deref_mut())?;
        if self.recompute {
            let again = |layer: BertLayer| {
                let (mask, visual_mask) = (mask.cloned(), visual_mask.cloned());
                move |inputs: &[Tensor], dropout: Option<&mut ChaCha8Rng>| {
                    layer.forward(&inputs[0], (true, mask.as_ref()), Some((&inputs[1], visual_mask.as_ref())), dropout)
                }
            };
            return ops::checkpoint_layers(&[&x, visual], dropout, self.layers.iter().cloned().map(again).collect());
        }
        for layer in &self.layers {
            // a view a layer: its two gradients are added first, as those of a layer that is recomputed
            let visual = visual.reshape(visual.shape())?;
            x = layer.forward(&x, (true, mask), Some((&visual, visual_mask)), dropout.as_deref_mut())?;
        }
        Ok(x)
    }

    /// hidden: (..., C) -> logits (..., vocabulary).
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let transformed = ops::gelu(&apply(&self.transform, hidden)?)?;
        let transformed = apply_norm(&self.transform_norm, &transformed, self.config.layer_norm_eps)?;
        apply(&[self.words.clone(), self.bias.clone()], &transformed)
    }

    /// Next-token loss, as [`crate::decoder::Llama::loss_sum`]. hidden: (B, L, C) -> the weighted sum.
    pub fn loss_sum(&self, hidden: &Tensor, targets: &[Vec<u32>], weights: &[Vec<f32>]) -> Result<Tensor> {
        let (_, _, width) = hidden.dims3()?;
        let labelled = crate::decoder::labels::labelled(targets, weights)?;
        let [rows, ids, values] = labelled.upload(hidden.device())?;
        let rows = hidden.contiguous()?.reshape(((), width))?.index_select(&rows, 0)?;
        Ok(ops::cross_entropy(&self.logits(&rows)?, &ids, &values)?)
    }
}
