//! How weights are multiplied.

use ctscribe_ops::{Format, Matrix, Precision};
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

/// The numbers in which a frozen base's weights are multiplied, forward and backward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasePrecision {
    /// What the weights' own numbers allow: f32 in f32; of 16 bits or fewer in factors of 16 bits, whichever the processor multiplies fastest.
    #[default]
    Auto,
    /// f32 throughout: weights of 16 bits, as they lie, lose nothing, in twice the time. A few rows at a time are multiplied as always
    /// ([`Matrix`]). On a GPU the weights are f32 too.
    F32,
    /// Weights of f32 as [`WeightPrecision::Int16`] says, others as [`BasePrecision::Auto`].
    Int16,
}

impl BasePrecision {
    /// Whether a base whose weights are f32, or are of 16 bits or fewer, is multiplied in f32.
    pub fn is_exact(self, of_f32: bool) -> bool {
        self == BasePrecision::F32 || of_f32 && self == BasePrecision::Auto
    }

    /// A matrix that is multiplied so.
    pub fn of(self, matrix: Matrix) -> Matrix {
        match self {
            BasePrecision::F32 => matrix.with_precision(Precision::F32),
            BasePrecision::Int16 if matrix.format() == Format::F32 => matrix.with_precision(Precision::Int16),
            BasePrecision::Auto | BasePrecision::Int16 => matrix,
        }
    }
}

impl From<WeightPrecision> for Precision {
    fn from(precision: WeightPrecision) -> Self {
        match precision {
            WeightPrecision::F32 => Precision::F32,
            WeightPrecision::Int16 => Precision::Int16,
        }
    }
}
