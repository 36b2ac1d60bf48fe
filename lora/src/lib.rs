//! LoRA adapters on any candle module, in PEFT's file format.
//!
//! y = base(x) + scale B A x (Hu et al., 2021), scale = alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (Kalajdzievski, 2023).

mod config;
mod error;
mod layer;
mod peft;

pub use config::LoraConfig;
pub use error::Error;
pub use layer::{Adapted, Adapter};
pub use peft::{AdapterFile, PREFIX, read_adapter, write_adapter};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
