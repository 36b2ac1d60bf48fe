//! The keys of each training stage.

use std::path::PathBuf;

use ctscribe_lora::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::decoder::bert::BertDecoderConfig;
use crate::decoder::{GenerationConfig, LlamaConfig, ProjectorConfig};
use crate::weights::BasePrecision;

use super::TrainingConfig;

/// Stage one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StructureStage {
    /// The loop.
    pub training: TrainingConfig,
    /// Standard deviation of an offset added to all voxels of a volume in training (1.0 is half the window); 0: none.
    pub intensity_offset: f64,
}

/// A small LLaMA of one's own, trained on the training reports' text alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageStage {
    /// Tokens of the byte-pair vocabulary learned from the reports.
    pub vocabulary: usize,
    /// The model; `vocab_size` 0: the tokenizer's.
    pub model: LlamaConfig,
    /// The loop.
    pub training: TrainingConfig,
}

/// Stage two with LLaMA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaStage {
    /// Folder of the base in Hugging Face's layout; null: the run's own language model.
    pub base: Option<PathBuf>,
    /// The numbers of the products with its weights.
    #[serde(default)]
    pub precision: BasePrecision,
    /// `none`, `ours`, `reference`, or the path of a file with `before` and `after`.
    pub prompt: String,
    /// Whether the beginning token comes first and the ending token is learned (the reference has neither).
    pub begin_and_end: bool,
    /// From visual tokens to embeddings.
    pub projector: ProjectorConfig,
    /// The projector learns at this multiple of the rate.
    pub projector_lr_factor: f64,
    /// The adapters.
    pub lora: LoraConfig,
    /// Longer reports are cut.
    pub max_report_tokens: usize,
    /// The rarest tokens count this many times (phantom.md); 1: all alike.
    pub rare_token_weight: f64,
    /// The loop.
    pub training: TrainingConfig,
    /// How reports are decoded.
    pub generation: GenerationConfig,
}

/// Stage two with the BERT decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertStage {
    /// Folder of a tokenizer; null: the run's own language model's.
    pub tokenizer: Option<PathBuf>,
    /// A pretrained BERT to start from; null: fresh.
    pub weights: Option<PathBuf>,
    /// The decoder; `vocab_size` 0: the tokenizer's.
    pub model: BertDecoderConfig,
    /// From visual tokens to the decoder's width; null: they are as wide.
    pub projector: Option<ProjectorConfig>,
    /// Longer reports are cut.
    pub max_report_tokens: usize,
    /// The rarest tokens count this many times (phantom.md); 1: all alike.
    pub rare_token_weight: f64,
    /// The loop.
    pub training: TrainingConfig,
    /// How reports are decoded.
    pub generation: GenerationConfig,
}
