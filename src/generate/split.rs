//! Reports for a whole split from its observations, with the own visual tokens or another study's.

use std::path::Path;

use candle_core::{DType, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::CachedStudy;
use crate::decoder::{GenerationConfig, ReportDecoder};
use crate::ranks::Communicator;
use crate::{Error, Result};

use super::observations::read_tokens;

/// Which visual tokens a report is written from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visual {
    /// The study's.
    Own,
    /// Another patient's: what scores do not fall by was not read off the scan.
    Shuffled,
    /// None: all zero.
    Zero,
    /// The mean over the studies.
    Mean,
}

impl Visual {
    /// What files and runs are called by it: nothing, `-shuffled`, `-zero`, `-mean`.
    pub fn suffix(self) -> &'static str {
        match self {
            Visual::Own => "",
            Visual::Shuffled => "-shuffled",
            Visual::Zero => "-zero",
            Visual::Mean => "-mean",
        }
    }
}

/// A report as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its text.
    pub text: String,
    /// Tokens written, the end included.
    pub tokens: usize,
}

/// What writes the reports of a split from its observations.
#[derive(Debug)]
pub struct SplitWriter<'a> {
    /// The decoder.
    pub decoder: &'a ReportDecoder,
    /// How it decodes, and how many reports at a time.
    pub generation: &'a GenerationConfig,
    /// The run that holds the observations.
    pub run: &'a Path,
    /// Who shares the studies; every rank gets all reports.
    pub ranks: &'a dyn Communicator,
}

impl SplitWriter<'_> {
    /// A report for each study, `generation.batch` at a time: the same batches however many ranks share them. `done` hears how many are
    /// written, as far as this rank can tell.
    pub fn write(&self, studies: &[&CachedStudy], visual: Visual, done: &mut dyn FnMut(usize)) -> Result<Vec<Written>> {
        let sources = match visual {
            Visual::Shuffled => other_patients(studies, self.generation.seed)?,
            Visual::Own | Visual::Zero | Visual::Mean => (0..studies.len()).collect(),
        };
        let read = |index: usize| -> Result<Tensor> { Ok(read_tokens(self.run, &studies[index].name)?.to_dtype(DType::F32)?) };
        let instead = match visual {
            Visual::Own | Visual::Shuffled => None,
            Visual::Zero => studies.first().map(|_| Ok::<_, Error>(read(0)?.zeros_like()?)).transpose()?,
            Visual::Mean => mean_tokens(studies.len(), read)?,
        };
        let chunks: Vec<&[usize]> = sources.chunks(self.generation.batch.max(1)).collect();
        let mut written = Vec::new();
        for chunk in &chunks[self.ranks.share(chunks.len())] {
            let own = |&index: &usize| instead.clone().map_or_else(|| read(index), Ok);
            let tokens: Vec<Tensor> = chunk.iter().map(own).collect::<Result<_>>()?;
            for ids in self.decoder.write(&Tensor::stack(&tokens, 0)?, self.generation, &mut |_, _| {})? {
                written.push(Written { text: self.decoder.tokenizer().decode(&ids)?.trim().to_string(), tokens: ids.len() });
            }
            done((written.len() * self.ranks.size()).min(studies.len()));
        }
        self.ranks.gather_values(&written)
    }
}

/// The mean of studies' visual tokens (V, h), place by place; `None` of none.
fn mean_tokens(studies: usize, read: impl Fn(usize) -> Result<Tensor>) -> Result<Option<Tensor>> {
    let mut sum: Option<Tensor> = None;
    for index in 0..studies {
        let own = read(index)?;
        sum = Some(match sum {
            Some(sum) => (sum + own)?,
            None => own,
        });
    }
    Ok(sum.map(|sum| sum.affine(1.0 / studies as f64, 0.0)).transpose()?)
}

/// For each study another one, of another patient.
fn other_patients(studies: &[&CachedStudy], seed: u64) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = (0..studies.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut sources = vec![0; studies.len()];
    for at in 0..order.len() {
        let own = order[at];
        let other =
            (1..order.len()).map(|step| order[(at + step) % order.len()]).find(|&other| studies[other].patient != studies[own].patient);
        sources[own] = other.ok_or_else(|| Error::Invalid("visual tokens cannot be shuffled: the split has one patient".to_string()))?;
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::data::Split;

    #[test]
    fn mean_tokens_are_the_mean_place_by_place() {
        let own = |index: usize| Ok(Tensor::new(&[[1f32, 2.0], [index as f32, 0.0]], &Device::Cpu)?);
        let mean = mean_tokens(3, own).unwrap().unwrap();
        assert_eq!(mean.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [1.0, 0.0]]);
        assert!(mean_tokens(0, own).unwrap().is_none());
    }

    #[test]
    fn shuffled_tokens_are_another_patients() {
        let study = |patient: &str, n: usize| CachedStudy {
            name: format!("{patient}_{n}"),
            patient: patient.to_string(),
            split: Split::Test,
            report: String::new(),
            labels: None,
            structure_texts: None,
        };
        let studies = [study("a", 1), study("a", 2), study("b", 1), study("c", 1)];
        let all: Vec<&CachedStudy> = studies.iter().collect();
        for (own, other) in other_patients(&all, 5).unwrap().into_iter().enumerate() {
            assert_ne!(studies[own].patient, studies[other].patient);
        }
        assert!(other_patients(&all[..2], 5).is_err());
    }
}
