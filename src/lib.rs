//! ctscribe reads a chest CT and writes the radiology report, and trains the model that does so.
//!
//! It implements "Structure Observation Driven Image-Text Contrastive Learning for Computed Tomography Report
//! Generation" (arXiv 2603.04878). Letters in shapes: B batch, S structures (10), N patches, K patches a structure,
//! V visual tokens (S + S K), C CT-ViT width, E contrast width, Q queue length, L text tokens.
//!
//! ```text
//! chest.nii.gz / DICOM folder
//!   volume::read    -> Volume in Hounsfield units, with spacing and affine
//!   volume::prepare -> (1, D, H, W) in [-1, 1]
//!   vision          -> patches (B, N, C)
//!   structure       -> observations (B, S, h), attention (B, S, N); V selected tokens
//! report text
//!   text            -> S x optional sentences -> features (B, S, C_text)
//! both -> contrast with the queue                               [train structure]
//! selected tokens (V, h) -> decoder::projector -> LLaMA + LoRA or BERT -> report   [train report, generate]
//! reports -> evaluate -> scores; compare -> runs side by side
//! ```
//!
//! Modules stand on floors and use lower floors only (kept by `tests/floors.rs`).

pub mod error;

pub mod device;
pub mod ranks;
pub mod text;
pub mod volume;
pub mod weights;

pub mod data;
pub mod decoder;
pub mod structure;
pub mod vision;

pub mod config;

pub mod evaluate;
pub mod generate;

pub mod assess;
pub mod compare;
pub mod document;
pub mod plan;
pub mod train;
pub mod viewer;

pub mod run_page;

pub mod bench;
pub mod demo;
pub mod verify;

pub mod cli;

pub use error::{Error, Result};
