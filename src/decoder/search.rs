//! Greedy decoding and sampling, many sequences at once; beams are in `beam`.

use candle_core::Tensor;
use ctscribe_ops::FEW_ROWS;
use ctscribe_ops::transfers::read_rows;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

use super::beam;
use super::processors::{process, warp};
use super::step::NextToken;

/// How reports are decoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Greedy, sampling or beams.
    pub strategy: Strategy,
    /// Most tokens a report.
    pub max_new_tokens: usize,
    /// No end before so many tokens.
    pub min_new_tokens: usize,
    /// 1: none.
    pub repetition_penalty: f64,
    /// No n-gram of this length twice; 0: allowed.
    pub no_repeat_ngram: usize,
    /// Ids that end a report; set from the tokenizer.
    #[serde(skip)]
    pub eos: Vec<u32>,
    /// Reports decoded together.
    pub batch: usize,
    /// Tokens guessed ahead at most and checked in one pass, greedy LLaMA only; the text is the same; 0: none.
    pub drafts: usize,
    /// Where sampling's random numbers come from.
    pub seed: u64,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// The most likely one.
    Greedy,
    /// Drawn.
    Sample {
        /// Divides the logits.
        temperature: f64,
        /// Only so many of the most likely; null: all.
        top_k: Option<usize>,
        /// Only the most likely that together reach this probability.
        top_p: f64,
    },
    /// Beam search (Hugging Face's, early stopping off).
    Beam {
        /// Beams.
        width: usize,
        /// A hypothesis's score is divided by its length to this power.
        length_penalty: f64,
    },
}

impl GenerationConfig {
    /// Faults of these numbers, named by `key`.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.max_new_tokens == 0 || self.min_new_tokens > self.max_new_tokens {
            faults
                .push(format!("{key}: min_new_tokens {} and max_new_tokens {} leave no length", self.min_new_tokens, self.max_new_tokens));
        }
        if self.batch == 0 {
            faults.push(format!("{key}.batch: must be at least 1"));
        }
        if self.drafts >= FEW_ROWS {
            faults.push(format!("{key}.drafts: {} exceed the {} that one pass checks without a change of bits", self.drafts, FEW_ROWS - 1));
        }
        if self.repetition_penalty.is_nan() || self.repetition_penalty <= 0.0 {
            faults.push(format!("{key}.repetition_penalty: must be positive (1: none)"));
        }
        match self.strategy {
            Strategy::Sample { temperature, top_p, .. } if !(temperature > 0.0 && top_p > 0.0 && top_p <= 1.0) => {
                faults.push(format!("{key}.strategy.sample: temperature must be positive and top_p in (0, 1]"));
            }
            Strategy::Beam { width: 0, .. } => faults.push(format!("{key}.strategy.beam.width: must be at least 1")),
            _ => {}
        }
        faults
    }
}

/// Decodes sequences that begin with `first` (rows of one length, possibly empty rows behind a prefix). `on_token` hears each new
/// id of each sequence as it comes (beams: only at the end). Returns the new ids, the ending one left out.
pub fn generate(
    decoder: &mut dyn NextToken,
    first: &[Vec<u32>],
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<Vec<u32>>> {
    if let Strategy::Beam { width, length_penalty } = config.strategy {
        if first.len() != 1 {
            return Err(Error::Invalid("beams decode one sequence at a time".to_string()));
        }
        let ids = beam::search(decoder, &first[0], width, length_penalty, config)?;
        ids.iter().for_each(|id| on_token(0, *id));
        return Ok(vec![ids]);
    }
    let mut rngs: Vec<ChaCha8Rng> = (0..first.len()).map(|row| ChaCha8Rng::seed_from_u64(config.seed.wrapping_add(row as u64))).collect();
    let mut sequences = vec![Vec::new(); first.len()];
    // rows of the decoder, by sequence; a finished sequence leaves
    let mut running: Vec<usize> = (0..first.len()).collect();
    let mut logits = rows(&decoder.next(first)?)?;
    for step in 0..config.max_new_tokens {
        let mut chosen = Vec::new();
        for (row, &sequence) in running.iter().enumerate() {
            let history: Vec<u32> = first[sequence].iter().chain(&sequences[sequence]).copied().collect();
            process(&mut logits[row], &history, step, config);
            chosen.push(choose(&logits[row], &config.strategy, &mut rngs[sequence]));
        }
        let kept: Vec<usize> = (0..running.len()).filter(|&row| !config.eos.contains(&chosen[row])).collect();
        for &row in &kept {
            sequences[running[row]].push(chosen[row]);
            on_token(running[row], chosen[row]);
        }
        if kept.is_empty() || step + 1 == config.max_new_tokens {
            break;
        }
        if kept.len() < running.len() {
            decoder.reorder(&kept)?;
        }
        running = kept.iter().map(|&row| running[row]).collect();
        let next: Vec<Vec<u32>> = kept.iter().map(|&row| vec![chosen[row]]).collect();
        logits = rows(&decoder.next(&next)?)?;
    }
    Ok(sequences)
}

/// The rows of logits (n, vocabulary): what a pass reads back.
pub(super) fn rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(read_rows(&logits.to_dtype(candle_core::DType::F32)?)?)
}

fn choose(logits: &[f32], strategy: &Strategy, rng: &mut ChaCha8Rng) -> u32 {
    match strategy {
        Strategy::Sample { temperature, top_k, top_p } => {
            let candidates = warp(logits, *temperature, *top_k, *top_p);
            let mut left = rng.random::<f32>();
            for (id, probability) in &candidates {
                left -= probability;
                if left < 0.0 {
                    return *id;
                }
            }
            candidates[candidates.len() - 1].0
        }
        _ => argmax(logits),
    }
}

/// The first of the largest.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}
