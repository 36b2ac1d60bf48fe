//! The encoder: embeddings, layers, pooler (CXR-BERT, BERT-base, MiniLM).

use std::path::Path;

use candle_core::Tensor;
use ctscribe_ops::BertBlock;
use ctscribe_ops::transfers::{self, host_values};
use serde::{Deserialize, Serialize};

use crate::weights::{Init, Params};
use crate::{Error, Result};

use super::frozen::{self, Precision};
use super::{STD, apply, apply_norm, linear, norm};

/// The part of a BERT `config.json` that decides what is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// Vocabulary.
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
    /// Token types.
    pub type_vocab_size: usize,
    /// Layer norm's epsilon.
    pub layer_norm_eps: f64,
    /// Padding's id; RoBERTa's positions count from it.
    #[serde(default)]
    pub pad_token_id: u32,
    /// Dropout in training; frozen encoders have none.
    #[serde(default)]
    pub hidden_dropout_prob: f64,
    /// `bert` or `roberta`.
    #[serde(default)]
    pub model_type: String,
}

impl BertConfig {
    /// Reads `config.json`; an activation or position embedding that is not computed here is refused by name.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let keys: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        for (key, allowed) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
            if let Some(value) = keys.get(key).and_then(|value| value.as_str()).filter(|value| *value != allowed) {
                return Err(Error::field(path, key, format!("{value} is not supported (expected {allowed})")));
            }
        }
        serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
    }
}

/// BERT's encoder, frozen, with Hugging Face's names (`embeddings.word_embeddings.weight`, ...).
#[derive(Debug)]
pub struct BertEncoder {
    config: BertConfig,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    norm: [Tensor; 2],
    layers: Vec<BertBlock>,
    pooler: Option<[Tensor; 2]>,
}

impl BertEncoder {
    /// A model of `config` whose layers multiply in `precision`, frozen whatever `params` are; the pooler is read where the checkpoint has one.
    pub fn new(config: &BertConfig, precision: Precision, params: &Params) -> Result<Self> {
        let (width, params) = (config.hidden_size, params.clone().frozen());
        let embeddings = params.at("embeddings");
        let table = |name: &str, rows: usize| embeddings.at(name).get("weight", &[rows, width], Init::Normal(STD));
        // an index that old versions of transformers wrote (peers.md a.9)
        embeddings.unused("position_ids");
        let pooler = params.at("pooler.dense");
        let layer = |index: usize| frozen::layer(config, precision, &params.at("encoder.layer").at(index));
        Ok(BertEncoder {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            types: table("token_type_embeddings", config.type_vocab_size)?,
            norm: norm(&embeddings.at("LayerNorm"), width)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            pooler: if pooler.contains("weight") { Some(linear(&pooler, width, width)?) } else { None },
            config: config.clone(),
        })
    }

    /// The sizes.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// ids: (B, L), mask: (B, L), 1 where a token is, both in the host's memory -> last hidden state (B, L, C). All tokens are of type 0.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        self.states(ids, mask, self.layers.len())
    }

    /// As [`Self::forward`], after the first `layers` layers only.
    pub fn states(&self, ids: &Tensor, mask: &Tensor, layers: usize) -> Result<Tensor> {
        let ((b, l), device) = (ids.dims2()?, self.words.device());
        let ids = host_values(ids)?;
        let places = transfers::upload([&ids[..], &self.position_ids(&ids, l)?].concat(), (2, b * l), device)?;
        let mask = transfers::to_device(mask, device)?;
        let gather = |table: &Tensor, row: usize| -> Result<Tensor> {
            Ok(table.index_select(&places.get(row)?, 0)?.reshape((b, l, self.config.hidden_size))?)
        };
        let sum = (gather(&self.words, 0)? + gather(&self.positions, 1)?)?.broadcast_add(&self.types.get(0)?)?;
        let mut x = apply_norm(&self.norm, &sum, self.config.layer_norm_eps)?;
        for layer in self.layers.iter().take(layers) {
            x = layer.forward(&x, &mask)?;
        }
        Ok(x)
    }

    /// tanh(W h + b) of the first token. hidden: (B, L, C) -> (B, C), or `None` where the checkpoint has no pooler.
    pub fn pool(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        let Some(pooler) = &self.pooler else { return Ok(None) };
        Ok(Some(apply(pooler, &hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?.tanh()?))
    }

    /// Positions of ids (B L) in texts of L. BERT counts from 0; RoBERTa from one past the padding's id over the tokens that are none, which
    /// stay at it (peers.md d).
    fn position_ids(&self, ids: &[u32], l: usize) -> Result<Vec<u32>> {
        if l > self.config.max_position_embeddings {
            let limit = self.config.max_position_embeddings;
            return Err(Error::Invalid(format!("a text of {l} tokens exceeds the encoder's {limit} (max_position_embeddings)")));
        }
        let pad = self.config.pad_token_id;
        let row = |row: &[u32]| -> Vec<u32> {
            if self.config.model_type != "roberta" {
                return (0..row.len() as u32).collect();
            }
            let mut at = pad;
            row.iter()
                .map(|id| {
                    if *id == pad {
                        pad
                    } else {
                        at += 1;
                        at
                    }
                })
                .collect()
        };
        Ok(ids.chunks(l.max(1)).flat_map(row).collect())
    }
}
