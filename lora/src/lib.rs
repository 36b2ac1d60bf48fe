//! LoRA adapters on any candle module, in PEFT's file format.

/// What can go wrong with an adapter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensors(#[from] candle_core::Error),
}
