//! Differentiable tensor operations for candle: those that candle lacks, or whose fast form cuts the gradient.
//!
//! Everything that is trained goes through this crate. Letters in shapes: B batch, H heads, L queries, M keys, D head width.

/// Returns with the CUDA kernels' result where they take what they are given; goes on otherwise.
macro_rules! or_cuda {
    ($call:expr) => {
        #[cfg(feature = "cuda")]
        {
            if let Some(y) = $call? {
                return Ok(y);
            }
        }
    };
}

mod activation;
mod attention;
mod attention_block;
mod awake;
mod bands;
mod bert_block;
mod checkpoint;
pub mod composed;
mod conv3d;
mod cpu;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod encoder_block;
mod feed_forward;
mod few;
mod gemm;
mod integers;
mod kept;
mod knots;
mod linear;
mod low_rank;
mod matrix;
mod memory;
mod nearest;
mod norm;
mod patches;
mod product;
mod replay;
mod residual;
mod rope;
mod simd;
mod softmax;
pub mod transfers;

pub use activation::{geglu, geglu_halves, gelu, swiglu};
pub use attention::{Attention, attend_cached, attend_few, attention, attention_with_weights, caches_on_device};
pub use attention_block::{AttentionBlock, attention_block};
pub use awake::{GRADIENT_STACK, awake};
pub use bert_block::BertBlock;
pub use checkpoint::{checkpoint, checkpoint_keeping_products, checkpoint_layers};
pub use conv3d::{ConvPadding, depthwise_conv3d};
pub use cross_entropy::{cross_entropy, linear_cross_entropy, normed_cross_entropy};
pub use dropout::{DropoutMask, dropout};
pub use encoder_block::{EncoderBlock, EncoderWeights};
pub use feed_forward::{closing_feed_forward, gated_feed_forward};
pub use few::FEW_ROWS;
pub use gemm::Precision;
pub use linear::{frozen_linear, linear, linear_in, linear_residual};
pub use low_rank::{AdaptedMatrix, LowRank, adapted_products};
pub use matrix::{Bytes, Format, Held, Matrix};
pub use memory::{keep_elementwise_work_on_its_thread, keep_heaps_beside, keep_one_heap, reuse_freed_memory};
pub use nearest::nearest_rows;
pub use norm::{l2_normalize, l2_normalize_scaled, layer_norm, rms_norm};
pub use patches::{patch_tokens, patches};
pub use replay::Replays;
pub use rope::{rope, rope_tables};
pub use softmax::softmax;
