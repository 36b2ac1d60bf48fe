//! config
mod training;
pub use training::{Decay, OptimizerConfig, Schedule, TrainingConfig};
