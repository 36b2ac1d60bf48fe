//! A run's configuration: every number of both stages, read from a preset, checked before anything starts.
//!
//! Each model's configuration lives beside the model; this module puts them together. No key has a default.

mod faults;
mod load;
mod stages;
mod training;
mod watching;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::DataConfig;
use crate::data::phantom::PhantomConfig;
use crate::device::DeviceName;
use crate::structure::{HeadConfig, LossConfig, QueriesConfig, QueueConfig, SelectionConfig};
use crate::text::EncoderConfig;
use crate::vision::CtVitConfig;
use crate::volume::PreparationConfig;
use crate::weights::WeightPrecision;

pub use stages::{BertStage, LanguageStage, LlamaStage, StructureStage};
pub use training::{Decay, OptimizerConfig, Schedule, TrainingConfig};
pub use watching::{BestConfig, Direction, EarlyStopConfig, LANGUAGE_MEASURES, REPORT_MEASURES, STRUCTURE_MEASURES, WatchConfig};

/// The version of the configuration's keys that this program reads.
pub const SCHEMA: u32 = 1;

/// A run, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Version of these keys.
    pub schema: u32,
    /// Where every random number comes from.
    pub seed: u64,
    /// Micro-batches at once.
    pub threads: usize,
    /// Where models lie and are computed. No part of [`Config::sha256`]: a run goes on on another device, and ends the same but for rounding.
    pub device: DeviceName,
    /// Whether, on a CUDA device, passes of LLaMA that come again while it writes are replayed as CUDA graphs. No part of the hash either.
    #[serde(default = "cuda_graphs")]
    pub cuda_graphs: bool,
    /// The synthetic dataset that `demo` and `phantom` draw; null: none.
    pub phantoms: Option<PhantomConfig>,
    /// Which studies, which text.
    pub data: DataConfig,
    /// From a scan to the model's input.
    pub volume: PreparationConfig,
    /// Structures and the frozen text encoder.
    pub text: TextConfig,
    /// CT-ViT.
    pub vision: VisionConfig,
    /// Queries, selection, contrast.
    pub structure: StructureConfig,
    /// How stage one is trained.
    pub train_structure: StructureStage,
    /// A small language model of one's own; null: LLaMA comes from a folder.
    pub language: Option<LanguageStage>,
    /// Stage two with LLaMA and LoRA.
    pub llama: LlamaStage,
    /// Stage two with the BERT decoder.
    pub bert: BertStage,
}

fn cuda_graphs() -> bool {
    true
}

/// The text side of stage one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// `ours`, `reference`, or the path of a rule file.
    pub structures: String,
    /// The frozen encoder.
    pub encoder: EncoderConfig,
}

/// The volume encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Its sizes.
    pub ct_vit: CtVitConfig,
    /// The numbers of its transformers' products with weights.
    #[serde(default)]
    pub precision: WeightPrecision,
    /// Whether the queries see tokens after vector quantisation (CT-CLIP's image features) or before (the method).
    pub quantize: bool,
    /// A checkpoint to start from (CT-CLIP's `.pt` or safetensors); null: fresh.
    pub weights: Option<PathBuf>,
}

/// The method's own parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StructureConfig {
    /// The structure queries.
    pub queries: QueriesConfig,
    /// Which patches become visual tokens.
    pub selection: SelectionConfig,
    /// The contrast space.
    pub head: HeadConfig,
    /// The loss.
    pub loss: LossConfig,
    /// The queue of negatives.
    pub queue: QueueConfig,
}

impl Config {
    /// Micro-batches at once: on a device one after the other, which keep it busy by themselves and share its memory.
    pub fn at_once(&self) -> usize {
        if self.device.is_cpu() { self.threads } else { 1 }
    }
}

impl StructureConfig {
    /// Visual tokens V a volume.
    pub fn visual_tokens(&self) -> usize {
        self.selection.visual_tokens(self.queries.structures())
    }
}
