//! LLaMA of our own: trainable through, inputs as embeddings, grouped heads, LoRA on any projection, preallocated cache.

mod adapters;
mod cache;
mod config;
mod layer;
mod model;
mod prompt;

pub use adapters::{Fit, PROJECTOR, open_adapter};
pub use cache::KvCache;
pub use config::LlamaConfig;
pub use model::Llama;
pub use prompt::LlamaPrompt;
