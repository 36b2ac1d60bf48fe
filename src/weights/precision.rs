//! How weights of f32 are multiplied.

use ctscribe_ops::Precision;
use serde::{Deserialize, Serialize};

/// The numbers in which weights of f32 are multiplied, forward and backward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightPrecision {
    /// f32.
    #[default]
    F32,
    /// f32 in integers of 16 bits with exact sums ([`Precision::Int16`]): a product some 1e-4 of its size from f32's, in less time on a processor that
    /// multiplies such; on others, and on a GPU, f32.
    Int16,
}

impl From<WeightPrecision> for Precision {
    fn from(precision: WeightPrecision) -> Self {
        match precision {
            WeightPrecision::F32 => Precision::F32,
            WeightPrecision::Int16 => Precision::Int16,
        }
    }
}
