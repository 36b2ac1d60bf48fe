//! LoRA adapters on any candle module, in PEFT's file format.
//!
//! y = base(x) + scale B A x (Hu et al., 2021), scale = alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (Kalajdzievski, 2023).
//! DoRA (Liu et al., 2024) scales every row of W + scale B A to a learned length. Everything as PEFT 0.13.2 computes it; what it computes
//! and this crate does not is refused by name.

mod config;
mod dora;
mod error;
mod layer;
mod peft;
mod peft_config;
mod targets;

pub use config::LoraConfig;
pub use error::Error;
pub use layer::{Adapted, Adapter, AdapterTensors, BaseLinear, FixedFactor};
pub use peft::{AdapterFile, CONFIG_FILE, PREFIX, TENSOR_FILE, adapter_shapes, read_adapter, write_adapter};
pub use targets::Targets;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
