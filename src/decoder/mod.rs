//! Report decoders: LLaMA with LoRA, BERT with cross-attention; how visual tokens enter them; how text comes out.

mod beam;
pub mod bert;
mod drafts;
mod effort;
mod greedy;
mod labels;
pub mod llama;
mod processors;
mod projector;
mod report;
mod search;
mod step;

pub use drafts::DraftIndex;
pub use effort::{Drafting, Effort};
pub use greedy::{ReadRows, write_greedily};
pub use llama::{Fit, KvCache, Llama, LlamaConfig, LlamaPrompt, LlamaTexts, PROJECTOR, Run, open_adapter};
pub use projector::{Projector, ProjectorConfig, ProjectorKind, token_statistics};
pub use report::{Network, ReportDecoder, TargetReport, weigh_rare_tokens};
pub use search::{GenerationConfig, Strategy, generate};
pub use step::NextToken;
