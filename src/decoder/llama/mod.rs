//! LLaMA of our own: trainable through, inputs as embeddings, grouped heads, LoRA on any projection, preallocated cache.

mod adapters;
#[cfg(test)]
mod away;
mod cache;
mod config;
mod layer;
mod model;
mod projection;
mod prompt;
mod texts;

pub use adapters::{Fit, PROJECTOR, open_adapter};
pub use cache::{KvCache, Run};
pub use config::LlamaConfig;
pub use model::Llama;
pub use prompt::LlamaPrompt;
pub use texts::LlamaTexts;
