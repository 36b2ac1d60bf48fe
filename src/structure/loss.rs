//! Our structure-observation contrast: per structure, both directions, with soft pseudo targets (method.md, stage one, 5-7).

use candle_core::{D, DType, Tensor};
use ctscribe_ops as ops;
use ctscribe_ops::transfers::{self, host_values};
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
    /// Rows (study and structure) that counted.
    pub rows: usize,
    /// Loss, contrastive part, divergence and temperature, then the entropy of each structure that counted.
    numbers: Tensor,
    /// The structures that counted, of all S.
    counted: Vec<usize>,
    structures: usize,
}

/// The numbers of a [`ContrastLoss`].
#[derive(Debug)]
pub struct ContrastNumbers {
    /// The loss.
    pub loss: f32,
    /// Mean cross-entropy to the own pair.
    pub contrastive: f32,
    /// Mean divergence from the soft targets.
    pub divergence: f32,
    /// What the similarities are divided by.
    pub temperature: f32,
    /// Mean entropy of the soft targets a structure; NaN where no report mentions it.
    pub target_entropy: Vec<f32>,
}

impl ContrastLoss {
    /// Reads its numbers, all at once.
    pub fn read(&self) -> Result<ContrastNumbers> {
        let numbers: Vec<f32> = transfers::read(&self.numbers)?;
        let mut target_entropy = vec![f32::NAN; self.structures];
        self.counted.iter().zip(&numbers[4..]).for_each(|(&s, entropy)| target_entropy[s] = *entropy);
        Ok(ContrastNumbers { loss: numbers[0], contrastive: numbers[1], divergence: numbers[2], temperature: numbers[3], target_entropy })
    }
}

/// Logits that a duplicate gets: no probability, no gradient.
const HIDDEN: f64 = -1e9;

/// L = (1 - alpha) L_itc + alpha KL(y || p), mean over the rows that have a text and at least one other candidate.
pub fn contrast(head: &Head, batch: &Contrast, config: &OursLossConfig) -> Result<ContrastLoss> {
    let temperature = head.temperature()?;
    let visual = head.visual(batch.observations)?;
    let structures = visual.dim(1)?;
    let own = |s: usize| (0..batch.present.len()).filter(move |&b| batch.present[b][s]).map(|b| b as u32);
    let queued = |s: usize| batch.queue.get(s).and_then(Option::as_ref);
    let candidates = |s: usize| own(s).count() + queued(s).map_or(0, |queue| queue.dims()[0]);
    let counted: Vec<usize> = (0..structures).filter(|&s| own(s).next().is_some() && candidates(s) >= 2).collect();
    let rows: usize = counted.iter().map(|&s| own(s).count()).sum();
    // one upload: the candidates' numbers, then each structure's studies
    let most = counted.iter().map(|&s| candidates(s)).max().unwrap_or(0);
    let indices: Vec<u32> = (0..most as u32).chain(counted.iter().flat_map(|&s| own(s))).collect();
    let count = indices.len();
    let indices = transfers::upload(indices, count, visual.device())?;
    let (mut parts, mut start) = (Vec::new(), most);
    for &s in &counted {
        let index = indices.narrow(0, start, own(s).count())?;
        start += own(s).count();
        let z = visual.narrow(1, s, 1)?.squeeze(1)?.contiguous()?.index_select(&index, 0)?;
        let texts = batch.features.narrow(1, s, 1)?.squeeze(1)?.contiguous()?.index_select(&index, 0)?;
        let texts = match queued(s) {
            Some(queue) => Tensor::cat(&[&texts, queue], 0)?,
            None => texts,
        };
        parts.push(structure_loss(head, (&z, &texts), &indices.narrow(0, 0, candidates(s))?, &temperature, config)?);
    }
    let (loss, [contrastive, divergence]) = total(&parts, rows, &visual, config.alpha)?;
    let numbers = [&loss, &contrastive, &divergence, &temperature].map(Tensor::detach);
    let numbers = Tensor::stack(&[&numbers[..], &parts.into_iter().map(|part| part.entropy).collect::<Vec<_>>()].concat(), 0)?;
    Ok(ContrastLoss { loss, rows, numbers, counted, structures })
}

/// The loss of the structures' sums over `rows` rows, and its two parts; zero where none counted.
fn total(parts: &[StructureLoss], rows: usize, visual: &Tensor, alpha: f64) -> Result<(Tensor, [Tensor; 2])> {
    if parts.is_empty() {
        let zero = (visual.sum_all()? * 0.0)?;
        return Ok((zero.clone(), [zero.clone(), zero]));
    }
    let mean = |part: fn(&StructureLoss) -> &Tensor| -> Result<Tensor> {
        Ok((Tensor::stack(&parts.iter().map(part).collect::<Vec<_>>(), 0)?.sum_all()? / rows as f64)?)
    };
    let (contrastive, divergence) = (mean(|part| &part.contrastive)?, mean(|part| &part.divergence)?);
    let loss = ((&contrastive * (1.0 - alpha))? + (&divergence * alpha)?)?;
    Ok((loss, [contrastive, divergence]))
}

struct StructureLoss {
    contrastive: Tensor,
    divergence: Tensor,
    /// Mean over the rows.
    entropy: Tensor,
}

/// z: (n, E) unit observations; candidates: (n + Q, C_text) unit frozen features, the n own ones first; numbers: (n + Q), from 0.
/// Sums over the n rows.
fn structure_loss(
    head: &Head,
    (z, candidates): (&Tensor, &Tensor),
    numbers: &Tensor,
    temperature: &Tensor,
    config: &OursLossConfig,
) -> Result<StructureLoss> {
    let n = z.dim(0)?;
    let similarity = candidates.narrow(0, 0, n)?.contiguous()?.matmul(&candidates.t()?.contiguous()?)?.detach();
    let t = head.text(candidates)?;
    let logits = z.matmul(&t.t()?.contiguous()?)?.broadcast_div(temperature)?;
    let back = t.narrow(0, 0, n)?.contiguous()?.matmul(&z.t()?.contiguous()?)?.broadcast_div(temperature)?;
    let hidden = duplicates(&similarity, numbers, config.duplicate_cosine)?;
    let own = numbers.narrow(0, 0, n)?;
    let ones = Tensor::ones(n, DType::F32, z.device())?;
    let forward = ops::cross_entropy(&(&logits + &hidden)?, &own, &ones)?;
    let backward = ops::cross_entropy(&(back + hidden.narrow(1, 0, n)?)?, &own, &ones)?;
    let contrastive = ((forward + backward)? * 0.5)?;
    let targets = ops::softmax(&(similarity / config.soft_temperature)?)?.detach();
    let entropy_rows = (&targets * (&targets + 1e-12)?.log()?)?.sum(D::Minus1)?.neg()?;
    let log_p = log_softmax(&logits)?;
    let divergence = ((&targets * log_p)?.sum_all()?.neg()? - entropy_rows.sum_all()?)?;
    Ok(StructureLoss { contrastive, divergence, entropy: entropy_rows.mean_all()? })
}

/// 0 where a candidate is a negative or the own text, a large negative number where it repeats the own text. similarity: (n, n + Q),
/// numbers: (n + Q), from 0.
fn duplicates(similarity: &Tensor, numbers: &Tensor, cosine: f64) -> Result<Tensor> {
    if !similarity.device().is_cpu() {
        return duplicates_there(similarity, numbers, cosine);
    }
    let columns = similarity.dims2()?.1;
    let mut values: Vec<f32> = host_values(similarity)?;
    for (i, row) in values.chunks_mut(columns).enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value = if i != j && f64::from(*value) >= cosine { HIDDEN as f32 } else { 0.0 };
        }
    }
    Ok(Tensor::from_vec(values, similarity.shape(), similarity.device())?)
}

/// As [`duplicates`], made where the similarities lie.
fn duplicates_there(similarity: &Tensor, numbers: &Tensor, cosine: f64) -> Result<Tensor> {
    let (n, columns) = similarity.dims2()?;
    let shape = (n, columns);
    let own = numbers.narrow(0, 0, n)?.unsqueeze(1)?.broadcast_as(shape)?;
    let other = own.ne(&numbers.unsqueeze(0)?.broadcast_as(shape)?)?;
    let alike = similarity.to_dtype(DType::F64)?.ge(cosine)?;
    let hidden = Tensor::full(HIDDEN as f32, shape, similarity.device())?;
    Ok((other * alike)?.where_cond(&hidden, &hidden.zeros_like()?)?)
}

pub(super) fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_candidate_as_near_as_the_cosine_is_hidden_unless_it_is_the_own_text() {
        // 0.95 in f32 is below 0.95
        let similarity = Tensor::new(&[[1.0f32, 0.95, 0.951, -1.0], [0.96, 1.0, 0.2, 0.9500001]], &Device::Cpu).unwrap();
        let numbers = Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu).unwrap();
        for make in [duplicates, duplicates_there] {
            let hidden = make(&similarity, &numbers, 0.95).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(hidden, [[0.0, 0.0, -1e9, 0.0], [-1e9, 0.0, 0.0, -1e9]]);
            assert!(hidden.iter().flatten().all(|value| value.to_bits() != (-0.0f32).to_bits()));
        }
    }
}
