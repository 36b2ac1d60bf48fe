//! Our structure-observation contrast: per structure, both directions, with soft pseudo targets (method.md, stage one, 5-7).

use candle_core::{D, DType, Device, Tensor};
use ctscribe_ops as ops;
use serde::{Deserialize, Serialize};

use crate::Result;

use super::head::Head;
use super::reference_loss::ReferenceLossConfig;

/// Which loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LossConfig {
    /// Per structure, both directions, convex sum with the soft targets' divergence.
    Ours(OursLossConfig),
    /// The authors' code.
    Reference(ReferenceLossConfig),
}

/// Our loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OursLossConfig {
    /// Share of the soft targets' divergence, 0.5 in the paper.
    pub alpha: f64,
    /// Temperature tau_s of the soft targets.
    pub soft_temperature: f64,
    /// A candidate whose frozen feature has at least this cosine with the own text is no negative of it; above 1: none is left out.
    pub duplicate_cosine: f64,
}

/// A batch's observations and texts.
#[derive(Debug)]
pub struct Contrast<'a> {
    /// Observations, standardised where that is configured: (B, S, h).
    pub observations: &'a Tensor,
    /// Frozen text features, centred and of unit length: (B, S, C_text). Rows of absent texts are not read.
    pub features: &'a Tensor,
    /// Whether study b's report mentions structure s.
    pub present: &'a [Vec<bool>],
    /// For each structure the queue's frozen features (Q_s, C_text), if any.
    pub queue: &'a [Option<Tensor>],
}

/// A loss and what it is made of.
#[derive(Debug)]
pub struct ContrastLoss {
    /// The scalar to minimise.
    pub loss: Tensor,
    /// Mean cross-entropy to the own pair.
    pub contrastive: f32,
    /// Mean divergence from the soft targets.
    pub divergence: f32,
    /// Mean entropy of the soft targets a structure; NaN where no report mentions it.
    pub target_entropy: Vec<f32>,
    /// Rows (study and structure) that counted.
    pub rows: usize,
}

/// Logits that a duplicate gets: no probability, no gradient.
const HIDDEN: f64 = -1e9;

/// L = (1 - alpha) L_itc + alpha KL(y || p), mean over the rows that have a text and at least one other candidate.
pub fn contrast(head: &Head, batch: &Contrast, config: &OursLossConfig) -> Result<ContrastLoss> {
    let temperature = head.temperature()?;
    let visual = head.visual(batch.observations)?;
    let structures = visual.dim(1)?;
    let mut sums: Vec<[Tensor; 2]> = Vec::new();
    let (mut rows, mut target_entropy) = (0, vec![f32::NAN; structures]);
    for (s, entropy) in target_entropy.iter_mut().enumerate() {
        let own: Vec<u32> = (0..batch.present.len()).filter(|&b| batch.present[b][s]).map(|b| b as u32).collect();
        let queued = batch.queue.get(s).and_then(Option::as_ref);
        if own.is_empty() || own.len() + queued.map_or(0, |queue| queue.dims()[0]) < 2 {
            continue;
        }
        let index = Tensor::from_slice(&own, own.len(), &Device::Cpu)?;
        let z = visual.narrow(1, s, 1)?.squeeze(1)?.contiguous()?.index_select(&index, 0)?;
        let texts = batch.features.narrow(1, s, 1)?.squeeze(1)?.contiguous()?.index_select(&index, 0)?;
        let candidates = match queued {
            Some(queue) => Tensor::cat(&[&texts, queue], 0)?,
            None => texts,
        };
        let part = structure_loss(head, &z, &candidates, &temperature, config)?;
        *entropy = part.entropy;
        rows += own.len();
        sums.push([part.contrastive, part.divergence]);
    }
    if sums.is_empty() {
        let zero = (visual.sum_all()? * 0.0)?;
        return Ok(ContrastLoss { loss: zero, contrastive: 0.0, divergence: 0.0, target_entropy, rows });
    }
    let total = |which: usize| -> Result<Tensor> {
        let parts: Vec<&Tensor> = sums.iter().map(|pair| &pair[which]).collect();
        Ok((Tensor::stack(&parts, 0)?.sum_all()? / rows as f64)?)
    };
    let (contrastive, divergence) = (total(0)?, total(1)?);
    let loss = ((&contrastive * (1.0 - config.alpha))? + (&divergence * config.alpha)?)?;
    Ok(ContrastLoss { loss, contrastive: contrastive.to_scalar()?, divergence: divergence.to_scalar()?, target_entropy, rows })
}

struct StructureLoss {
    contrastive: Tensor,
    divergence: Tensor,
    entropy: f32,
}

/// z: (n, E) unit observations; candidates: (n + Q, C_text) unit frozen features, the n own ones first. Sums over the n rows.
fn structure_loss(head: &Head, z: &Tensor, candidates: &Tensor, temperature: &Tensor, config: &OursLossConfig) -> Result<StructureLoss> {
    let n = z.dim(0)?;
    let similarity = candidates.narrow(0, 0, n)?.contiguous()?.matmul(&candidates.t()?.contiguous()?)?.detach();
    let t = head.text(candidates)?;
    let logits = z.matmul(&t.t()?.contiguous()?)?.broadcast_div(temperature)?;
    let back = t.narrow(0, 0, n)?.contiguous()?.matmul(&z.t()?.contiguous()?)?.broadcast_div(temperature)?;
    let hidden = duplicates(&similarity, config.duplicate_cosine)?;
    let own = Tensor::arange(0u32, n as u32, &Device::Cpu)?;
    let ones = Tensor::ones(n, DType::F32, &Device::Cpu)?;
    let forward = ops::cross_entropy(&(&logits + &hidden)?, &own, &ones)?;
    let backward = ops::cross_entropy(&(back + hidden.narrow(1, 0, n)?)?, &own, &ones)?;
    let contrastive = ((forward + backward)? * 0.5)?;
    let targets = ops::softmax(&(similarity / config.soft_temperature)?)?.detach();
    let entropy_rows = (&targets * (&targets + 1e-12)?.log()?)?.sum(D::Minus1)?.neg()?;
    let log_p = log_softmax(&logits)?;
    let divergence = ((&targets * log_p)?.sum_all()?.neg()? - entropy_rows.sum_all()?)?;
    Ok(StructureLoss { contrastive, divergence, entropy: entropy_rows.mean_all()?.to_scalar()? })
}

/// 0 where a candidate is a negative or the own text, a large negative number where it repeats the own text.
fn duplicates(similarity: &Tensor, cosine: f64) -> Result<Tensor> {
    let rows: Vec<Vec<f32>> = similarity.to_vec2()?;
    let (n, columns) = similarity.dims2()?;
    let shade = |(i, row): (usize, &Vec<f32>)| -> Vec<f32> {
        row.iter().enumerate().map(|(j, value)| if i != j && f64::from(*value) >= cosine { HIDDEN as f32 } else { 0.0 }).collect()
    };
    let values: Vec<f32> = rows.iter().enumerate().flat_map(shade).collect();
    Ok(Tensor::from_vec(values, (n, columns), &Device::Cpu)?)
}

pub(super) fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
