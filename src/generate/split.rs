//! Reports for a whole split from its observations, with the own visual tokens or another study's.

use std::path::Path;

use candle_core::{DType, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::CachedStudy;
use crate::decoder::{GenerationConfig, ReportDecoder};
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
}

/// A report for each study, `generation.batch` at a time. `done` hears how many are written.
pub fn write_split(
    decoder: &ReportDecoder,
    generation: &GenerationConfig,
    run: &Path,
    studies: &[&CachedStudy],
    visual: Visual,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<String>> {
    let sources = match visual {
        Visual::Own => (0..studies.len()).collect(),
        Visual::Shuffled => other_patients(studies, generation.seed)?,
    };
    let mut texts = Vec::new();
    for chunk in sources.chunks(generation.batch.max(1)) {
        let tokens: Vec<Tensor> =
            chunk.iter().map(|&index| Ok(read_tokens(run, &studies[index].name)?.to_dtype(DType::F32)?)).collect::<Result<_>>()?;
        for ids in decoder.write(&Tensor::stack(&tokens, 0)?, generation, &mut |_, _| {})? {
            texts.push(decoder.tokenizer().decode(&ids)?.trim().to_string());
        }
        done(texts.len());
    }
    Ok(texts)
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
    use super::*;
    use crate::data::Split;

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
