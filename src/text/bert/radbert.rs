//! The RadBERT classifier of CT-CLIP: 18 findings of a report (peers.md d).

use candle_core::{DType, Tensor};

use crate::weights::{Init, Params};
use crate::{Error, Result};

use super::apply;
use super::encoder::{BertConfig, BertEncoder};
use super::frozen::Precision;

/// RoBERTa, its pooler, and a linear head.
#[derive(Debug)]
pub struct RadBert {
    encoder: BertEncoder,
    head: [Tensor; 2],
}

impl RadBert {
    /// With the checkpoint's names (`model.*`, `classifier.*`).
    pub fn new(config: &BertConfig, labels: usize, params: &Params) -> Result<Self> {
        let head = params.at("classifier");
        let width = config.hidden_size;
        Ok(RadBert {
            encoder: BertEncoder::new(config, Precision::F32, &params.at("model"))?,
            head: [head.get("weight", &[labels, width], Init::linear(width))?, head.get("bias", &[labels], Init::Zeros)?],
        })
    }

    /// ids and mask: (B, L) -> logits (B, labels).
    pub fn logits(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let pooled = self.encoder.pool(&self.encoder.forward(ids, mask)?)?;
        let pooled = pooled.ok_or_else(|| Error::Invalid("the RadBERT checkpoint has no pooler".to_string()))?;
        apply(&self.head, &pooled)
    }

    /// Whether each finding's probability is at least one half: (B, labels).
    pub fn labels(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        Ok(self.logits(ids, mask)?.ge(0.0)?.to_dtype(DType::U8)?)
    }
}
