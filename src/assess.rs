//! A run on a split: reports written and scored, retrieval measured.

use std::path::Path;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data::{Cache, CachedStudy, Subset};
use crate::decoder::GenerationConfig;
use crate::evaluate::{Evaluation, Pair, RetrievalScores, evaluate_with, retrieval};
use crate::generate::{DecoderKind, Observed, Observer, Visual, centre, encode_reports, open_decoder, stack_features, write_split};
use crate::structure::{LossConfig, RetrievalRule, report_to_volume_scores};
use crate::text::Labeller;
use crate::weights::write_aside;
use crate::{Error, Result};

/// What a run is asked on a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The studies.
    pub split: Subset,
    /// Own visual tokens, or another patient's.
    pub visual: Visual,
    /// At most so many studies, the first by name.
    pub limit: Option<usize>,
}

/// Writes and scores the reports of a split, findings read by the rules.
pub fn evaluate_run(
    place: (&Config, &Cache, &Path),
    kind: DecoderKind,
    question: Question,
    generation: Option<&GenerationConfig>,
    done: &mut dyn FnMut(usize),
) -> Result<(Evaluation, Vec<Pair>)> {
    evaluate_run_with(place, (kind, &Labeller::Rules), question, generation, done)
}

/// Writes and scores the reports of a split; `RUN/DECODER/reports/` keeps both, shuffled ones under their own name.
pub fn evaluate_run_with(
    (config, cache, run): (&Config, &Cache, &Path),
    (kind, labeller): (DecoderKind, &Labeller),
    question: Question,
    generation: Option<&GenerationConfig>,
    done: &mut dyn FnMut(usize),
) -> Result<(Evaluation, Vec<Pair>)> {
    let mut studies = cache.subset(question.split)?;
    studies.truncate(question.limit.unwrap_or(usize::MAX));
    let decoder = open_decoder(config, run, kind, None)?;
    let texts = write_split(&decoder, generation.unwrap_or(kind.generation(config)), run, &studies, question.visual, done)?;
    let pair = |(study, generated): (&&CachedStudy, String)| Pair {
        study: study.name.clone(),
        generated,
        reference: study.report.clone(),
        labels: study.labels,
    };
    let pairs: Vec<Pair> = studies.iter().zip(texts).map(pair).collect();
    let suffix = if question.visual == Visual::Shuffled { "-shuffled" } else { "" };
    let mut evaluation = evaluate_with(&format!("{}{suffix}", kind.name()), &pairs, labeller)?;
    evaluation.split = Some(cache.split_record(question.split, studies.len())?);
    save(&run.join(kind.name()).join("reports"), &format!("{}{suffix}", question.split), &evaluation, &pairs)?;
    Ok((evaluation, pairs))
}

/// Writes `NAME.json` (scores) and `NAME.jsonl` (pairs) in `folder`.
fn save(folder: &Path, name: &str, evaluation: &Evaluation, pairs: &[Pair]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let fault = |e: serde_json::Error| Error::file(folder, e.to_string());
    let lines = pairs.iter().map(|pair| Ok(serde_json::to_string(pair).map_err(fault)? + "\n")).collect::<Result<String>>()?;
    write_aside(&folder.join(format!("{name}.jsonl")), lines.as_bytes())?;
    write_aside(&folder.join(format!("{name}.json")), serde_json::to_string_pretty(evaluation).map_err(fault)?.as_bytes())
}

/// Reads the scores that [`evaluate_run`] wrote.
pub fn read_evaluation(path: &Path) -> Result<Evaluation> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not an evaluation: {e}")))
}

/// Report-to-volume retrieval among a split's observed studies.
pub fn retrieve(config: &Config, cache: &Cache, run: &Path, split: impl Into<Subset>) -> Result<RetrievalScores> {
    let studies = cache.subset(split.into())?;
    let observer = Observer::of_run(config, run)?;
    let visual: Vec<Tensor> =
        studies.iter().map(|study| Ok(Observed::read(run, &study.name)?.contrast.to_dtype(DType::F32)?)).collect::<Result<_>>()?;
    let (mut features, width) = encode_reports(config, &studies, Some(cache.root()))?;
    if matches!(config.structure.loss, LossConfig::Ours(_)) {
        centre(&mut features, observer.text_mean())?;
    }
    let (features, present) = stack_features(&features.iter().collect::<Vec<_>>(), width)?;
    let text = observer.head().text(&features)?.detach();
    let rule = match config.structure.loss {
        LossConfig::Ours(_) => RetrievalRule::MeanOfPresent,
        LossConfig::Reference(_) => RetrievalRule::SumOfAll,
    };
    Ok(retrieval(&report_to_volume_scores(&Tensor::stack(&visual, 0)?, &text, &present, rule)?))
}
