//! How well a report fits a volume.

use candle_core::Tensor;
use ctscribe_ops::transfers;

use crate::Result;

/// How structures' similarities become one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetrievalRule {
    /// Mean over the structures that the report mentions (ours).
    MeanOfPresent,
    /// Sum over all structures (reference.md 1.8).
    SumOfAll,
}

/// visual: (M, S, E) and text: (N, S, E), unit vectors; `present`: N rows of S -> N rows of M scores.
pub fn report_to_volume_scores(visual: &Tensor, text: &Tensor, present: &[Vec<bool>], rule: RetrievalRule) -> Result<Vec<Vec<f32>>> {
    let (m, structures, _) = visual.dims3()?;
    let mut scores = vec![vec![0f32; m]; present.len()];
    let similar = |s: usize| -> Result<Tensor> {
        let own = visual.narrow(1, s, 1)?.squeeze(1)?.t()?.contiguous()?;
        Ok(text.narrow(1, s, 1)?.squeeze(1)?.contiguous()?.matmul(&own)?)
    };
    let similar = Tensor::stack(&(0..structures).map(similar).collect::<Result<Vec<_>>>()?, 0)?;
    let similar: Vec<f32> = transfers::read(&similar)?;
    for (s, similar) in similar.chunks((m * present.len()).max(1)).enumerate() {
        let similar = similar.chunks(m);
        for ((row, values), present) in scores.iter_mut().zip(similar).zip(present) {
            if rule == RetrievalRule::SumOfAll || present[s] {
                row.iter_mut().zip(values).for_each(|(score, value)| *score += value);
            }
        }
    }
    if rule == RetrievalRule::MeanOfPresent {
        for (row, present) in scores.iter_mut().zip(present) {
            let count = present.iter().filter(|present| **present).count().max(1) as f32;
            row.iter_mut().for_each(|score| *score /= count);
        }
    }
    Ok(scores)
}
