//! The two stages as plain loops; optimiser, schedule, checkpoints, run folder, progress.

mod optimizer;

pub use optimizer::{AdamW, AdamWConfig, Gradients};
