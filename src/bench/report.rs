//! Whole reports of a trained run, written plainly and with guesses.

use std::path::Path;

use candle_core::{DType, Tensor};
use serde::Serialize;

use super::{Measured, measure_in_turn};
use crate::config::Config;
use crate::data::{Cache, Subset};
use crate::decoder::{Drafting, Effort, GenerationConfig, ReportDecoder, Strategy};
use crate::generate::{DecoderKind, open_decoder, read_tokens};
use crate::{Error, Result};

/// Reports that are written one after the other.
#[derive(Debug, Clone, Copy)]
pub struct ReportOptions {
    /// The studies.
    pub split: Subset,
    /// The first so many of them.
    pub studies: usize,
    /// Tokens guessed ahead at most.
    pub drafts: usize,
    /// Runs on the clock.
    pub runs: usize,
}

/// The same reports in two ways.
#[derive(Debug, Serialize)]
pub struct ReportTimes {
    /// Reports.
    pub studies: usize,
    /// Tokens of all of them, ending ones among them.
    pub tokens: usize,
    /// Token by token.
    pub plain: Measured,
    /// With guesses.
    pub drafted: Measured,
    /// Times that guesses make it faster (medians).
    pub ratio: f64,
    /// How far guesses shortened it.
    pub drafting: Drafting,
}

/// Times the greedy reports of a run's LLaMA, one study at a time from visual tokens to text, with and without guesses in turn; texts
/// that differ are an error.
pub fn report(run: &Path, data: &Path, options: ReportOptions) -> Result<ReportTimes> {
    let (config, cache) = (Config::of_run(run)?, Cache::open(data)?);
    let mut studies = cache.subset(options.split)?;
    studies.truncate(options.studies);
    if studies.is_empty() {
        return Err(Error::file(cache.root(), format!("holds no study of the split {}", options.split)));
    }
    let read = |name: &str| -> Result<Tensor> { Ok(read_tokens(run, name)?.to_dtype(DType::F32)?) };
    let tokens: Vec<Tensor> = studies.iter().map(|study| read(&study.name)).collect::<Result<_>>()?;
    let tokens = Tensor::stack(&tokens, 0)?;
    let decoder = open_decoder(&config, run, DecoderKind::Llama, None)?;
    let own = GenerationConfig { strategy: Strategy::Greedy, batch: 1, ..config.llama.generation };
    let [plain, guessing] = [0, options.drafts].map(|drafts| GenerationConfig { drafts, ..own.clone() });
    let (expected, _) = write(&decoder, &tokens, &plain)?;
    let (found, effort) = write(&decoder, &tokens, &guessing)?;
    if let Some(at) = (0..studies.len()).find(|&at| found[at] != expected[at]) {
        return Err(Error::Study { study: studies[at].name.clone(), what: "guesses changed its report".to_string() });
    }
    let mut plainly = || write(&decoder, &tokens, &plain).map(|_| ());
    let mut ahead = || write(&decoder, &tokens, &guessing).map(|_| ());
    let [plain, drafted] = measure_in_turn(options.runs, [&mut plainly, &mut ahead])?;
    Ok(ReportTimes {
        studies: studies.len(),
        tokens: effort.tokens,
        ratio: plain.median_s / drafted.median_s,
        drafting: effort.drafting(decoder.draft_index_sha256()),
        plain,
        drafted,
    })
}

fn write(decoder: &ReportDecoder, tokens: &Tensor, generation: &GenerationConfig) -> Result<(Vec<Vec<u32>>, Effort)> {
    let (ids, effort) = decoder.write(tokens, generation, &mut |_, _| {})?;
    Ok((ids, effort.unwrap_or_default()))
}
