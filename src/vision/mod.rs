//! CT-ViT: the volume encoder of CT-CLIP, forward and backward, before and after vector quantisation.

mod ct_vit;
mod position;
mod quantizer;
mod transformer;

pub use ct_vit::{CtVit, CtVitConfig, CtVitStages, PatchEmbedding, PositionEmbedding};
pub use quantizer::{CodebookUpdate, Quantized, Quantizer};
