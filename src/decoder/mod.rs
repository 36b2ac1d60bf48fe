//! Report decoders: LLaMA with LoRA, BERT with cross-attention; how visual tokens enter them; how text comes out.

mod beam;
//BERT pub mod bert;
pub mod llama;
mod processors;
mod projector;
mod search;
mod step;

pub use llama::{KvCache, Llama, LlamaConfig, LlamaPrompt};
pub use projector::{Projector, ProjectorConfig, ProjectorKind, token_statistics};
pub use search::{GenerationConfig, Strategy, generate};
pub use step::NextToken;
