//! The BERT decoder: causal self-attention, cross-attention over the visual tokens, tied head.

mod model;
mod prompt;

pub use model::{BertDecoder, BertDecoderConfig};
pub use prompt::BertPrompt;
