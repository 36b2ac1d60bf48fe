//! Structure learning: queries that observe the patches, the patches they select, the contrast with each structure's text.

mod head;
mod loss;
mod queries;
mod queue;
mod reference_loss;
mod reference_queries;
mod reference_queue;
mod retrieval;
mod selection;
mod standardise;

use candle_core::Tensor;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::weights::Params;

pub use head::{Head, HeadConfig, Temperature};
pub use loss::{Contrast, ContrastLoss, ContrastNumbers, LossConfig, OursLossConfig, contrast};
pub use queries::{OursQueries, OursQueriesConfig};
pub use queue::{DiversityQueue, Queue, QueueConfig};
pub use reference_loss::{ReferenceContrast, ReferenceLossConfig, reference_contrast};
pub use reference_queries::{ReferenceLayerMaps, ReferenceQueries, ReferenceQueriesConfig};
pub use reference_queue::ReferenceQueue;
pub use retrieval::{RetrievalRule, report_to_volume_scores};
pub use selection::{Selection, SelectionConfig, SelectionLayout, select};
pub use standardise::Standardiser;

/// What the queries saw of a batch.
#[derive(Debug, Clone)]
pub struct Observation {
    /// One token a structure: (B, S, h).
    pub tokens: Tensor,
    /// How each structure's attention spreads over the patches: (B, S, N).
    pub attention: Tensor,
    /// The patch states that the queries attended to: (B, N, h).
    pub patches: Tensor,
}

/// Which query module, and its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum QueriesConfig {
    /// Pre-norm cross-attention; no attention among queries, none among patches.
    Ours(OursQueriesConfig),
    /// The authors' code: post-norm BERT layers that also update the patches.
    Reference(ReferenceQueriesConfig),
}

impl QueriesConfig {
    /// Width h of observations and patch states.
    pub fn width(&self) -> usize {
        match self {
            QueriesConfig::Ours(config) => config.width,
            QueriesConfig::Reference(config) => config.width,
        }
    }

    /// Number of structures S.
    pub fn structures(&self) -> usize {
        match self {
            QueriesConfig::Ours(config) => config.structures,
            QueriesConfig::Reference(config) => config.structures,
        }
    }

    /// Width C of the patches.
    pub fn patch_width(&self) -> usize {
        match self {
            QueriesConfig::Ours(config) => config.patch_width,
            QueriesConfig::Reference(config) => config.patch_width,
        }
    }

    /// How far a batch moves the running statistics of the observations; `None`: they are not standardised.
    pub fn standardise_momentum(&self) -> Option<f64> {
        match self {
            QueriesConfig::Ours(config) => config.standardise_momentum,
            QueriesConfig::Reference(_) => None,
        }
    }
}

/// The learned structure queries.
#[derive(Debug)]
pub enum StructureQueries {
    /// See [`OursQueries`].
    Ours(OursQueries),
    /// See [`ReferenceQueries`].
    Reference(ReferenceQueries),
}

impl StructureQueries {
    /// The module of `config`.
    pub fn new(config: &QueriesConfig, params: &Params) -> Result<Self> {
        Ok(match config {
            QueriesConfig::Ours(config) => StructureQueries::Ours(OursQueries::new(config, params)?),
            QueriesConfig::Reference(config) => StructureQueries::Reference(ReferenceQueries::new(config, params)?),
        })
    }

    /// patches: (B, N, C). `dropout`: the generator of a training step; `None` in evaluation.
    pub fn observe(&self, patches: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Observation> {
        match self {
            StructureQueries::Ours(queries) => queries.observe(patches),
            StructureQueries::Reference(queries) => Ok(queries.observe(patches, dropout)?.0),
        }
    }
}
