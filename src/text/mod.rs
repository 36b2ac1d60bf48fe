//! Reports as text: sections, sentences, structures, findings; tokenizers and frozen encoders.

pub mod bert;
mod encoder;
mod tokenizer;

pub use encoder::{EncoderConfig, Pooling, TextEncoder, padded};
pub use tokenizer::Tokenizer;
