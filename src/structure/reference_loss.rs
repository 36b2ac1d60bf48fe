//! The authors' loss: image to text only, all structures in every denominator (reference.md 1.5).

use candle_core::{DType, Tensor};
use ctscribe_ops::{self as ops, transfers};
use serde::{Deserialize, Serialize};

use crate::Result;

use super::loss::log_softmax;

/// The reference's loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceLossConfig {
    /// Share of the soft targets, 0.2.
    pub alpha: f64,
    /// Temperature tau of logits and soft targets, 0.07.
    pub temperature: f64,
    /// What target terms of other structures are multiplied by, 0.1.
    pub other_structure_weight: f64,
}

/// The loss and its parts; R = B S rows, volume-major; N = R + S Q candidates.
#[derive(Debug)]
pub struct ReferenceContrast {
    /// Mean over rows.
    pub loss: Tensor,
    /// (R).
    pub row_loss: Tensor,
    /// z C^T / tau: (R, N).
    pub image_text: Tensor,
    /// t C^T / tau: (R, N).
    pub text_text: Tensor,
    /// softmax of `text_text`: (R, N).
    pub soft: Tensor,
    /// Mixed targets before the structure weight: (R, N).
    pub targets: Tensor,
    /// 1 within a structure, else `other_structure_weight`: (R, N).
    pub mask: Tensor,
}

/// visual and text: (R, E), not normalised; queue: (E, S Q) with column s Q + j. Only `visual` gets a gradient.
pub fn reference_contrast(
    visual: &Tensor,
    text: &Tensor,
    queue: &Tensor,
    structures: usize,
    config: &ReferenceLossConfig,
) -> Result<ReferenceContrast> {
    let rows = visual.dim(0)?;
    let length = queue.dim(1)? / structures;
    let z = ops::l2_normalize(visual, 1e-12)?;
    let t = ops::l2_normalize(&text.detach(), 1e-12)?;
    let candidates = Tensor::cat(&[&t.t()?, &queue.detach()], 1)?.contiguous()?;
    let image_text = (z.matmul(&candidates)? / config.temperature)?;
    let text_text = (t.matmul(&candidates)? / config.temperature)?.detach();
    let soft = ops::softmax(&text_text)?.detach();
    let columns = rows + structures * length;
    let structure_of = |column: usize| if column < rows { column % structures } else { (column - rows) / length };
    let mut own = vec![0f32; rows * columns];
    let mut mask = vec![config.other_structure_weight as f32; rows * columns];
    for row in 0..rows {
        own[row * columns + row] = 1.0;
        for column in (0..columns).filter(|&column| structure_of(column) == row % structures) {
            mask[row * columns + column] = 1.0;
        }
    }
    let upload = |values| transfers::upload(values, (rows, columns), visual.device());
    let (own, mask) = (upload(own)?, upload(mask)?);
    let targets = ((&soft * config.alpha)? + (own * (1.0 - config.alpha))?)?;
    let row_loss = ((&targets * &mask)?.to_dtype(DType::F32)? * log_softmax(&image_text)?)?.sum(1)?.neg()?;
    Ok(ReferenceContrast { loss: row_loss.mean_all()?, row_loss, image_text, text_text, soft, targets, mask })
}
