//! An adapter's configuration.

use serde::{Deserialize, Serialize};

/// Rank, scale, dropout and targets of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r.
    pub r: usize,
    /// The scale is `alpha / r`, or `alpha / sqrt(r)` if rank-stabilised.
    pub alpha: f64,
    /// Dropout on the adapter's input in training.
    pub dropout: f64,
    /// Names of the adapted modules (the last part of their path: `q_proj`).
    pub target_modules: Vec<String>,
    /// Rank-stabilised scale.
    pub rslora: bool,
}

impl LoraConfig {
    /// What B A x is multiplied by.
    pub fn scale(&self) -> f64 {
        if self.rslora { self.alpha / (self.r as f64).sqrt() } else { self.alpha / self.r as f64 }
    }

    /// Whether the module at `path` (`model.layers.0.self_attn.q_proj`) is adapted.
    pub fn targets(&self, path: &str) -> bool {
        self.target_modules.iter().any(|target| path == target || path.ends_with(&format!(".{target}")))
    }
}
