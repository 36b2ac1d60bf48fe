//! A run on a split: reports written and scored, retrieval measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use ctscribe_ops::transfers;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data::{Cache, CachedStudy, Subset};
use crate::evaluate::{Evaluation, Instruments, Pair, RetrievalScores, Writing, evaluate, references_sha256, retrieval};
use crate::generate::{DecoderKind, Observed, Observer, SplitWriter, Visual, Written};
use crate::generate::{centre, decoder_files, encode_reports, open_decoder, stack_features};
use crate::ranks::{Alone, Communicator};
use crate::structure::{LossConfig, RetrievalRule, report_to_volume_scores};
use crate::weights::{sha256, write_aside};
use crate::{Error, Result};

/// What a run is asked on a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The studies.
    pub split: Subset,
    /// Own visual tokens, another patient's, none, or the mean.
    pub visual: Visual,
    /// At most so many studies, the first by name.
    pub limit: Option<usize>,
}

impl Question {
    fn studies<'a>(&self, cache: &'a Cache) -> Result<Vec<&'a CachedStudy>> {
        let mut studies = cache.subset(self.split)?;
        studies.truncate(self.limit.unwrap_or(usize::MAX));
        if studies.is_empty() {
            return Err(Error::file(cache.root(), format!("holds no study of the split {}", self.split)));
        }
        Ok(studies)
    }

    /// What its files are called: `test`, `test-shuffled`.
    fn name(&self) -> String {
        format!("{}{}", self.split, self.visual.suffix())
    }
}

/// Writes and scores the reports of a split; `RUN/DECODER/reports/` keeps both, those from other visual tokens under their own name.
pub fn evaluate_run(
    whole: (&Config, &Cache, &Path),
    kind: DecoderKind,
    question: Question,
    instruments: &Instruments,
    done: &mut dyn FnMut(usize),
) -> Result<(Evaluation, Vec<Pair>)> {
    evaluate_run_shared(whole, kind, question, (instruments, &Alone), done)
}

/// As [`evaluate_run`], the studies shared among ranks; the leader scores and keeps, all get both.
pub fn evaluate_run_shared(
    (config, cache, run): (&Config, &Cache, &Path),
    kind: DecoderKind,
    question: Question,
    (instruments, ranks): (&Instruments, &dyn Communicator),
    done: &mut dyn FnMut(usize),
) -> Result<(Evaluation, Vec<Pair>)> {
    let studies = question.studies(cache)?;
    let decoder = open_decoder(config, run, kind, None)?;
    let writer = SplitWriter { decoder: &decoder, generation: kind.generation(config), run, ranks };
    let (written, writing) = watched(|| writer.write(&studies, question.visual, done))?;
    let pair = |(study, written): (&&CachedStudy, Written)| Pair {
        study: study.name.clone(),
        generated: written.text,
        reference: study.report.clone(),
        labels: study.labels,
    };
    let pairs: Vec<Pair> = studies.iter().zip(written).map(pair).collect();
    let evaluation = ranks.from_leader(|| {
        let scores = evaluate(&format!("{}{}", kind.name(), question.visual.suffix()), &pairs, instruments)?;
        let split = Some(cache.split_record(question.split, studies.len())?);
        let evaluation = Evaluation { split, weights: weights_of(config, run, kind)?, writing: Some(writing), ..scores };
        save(&run.join(kind.name()).join("reports"), &question.name(), &evaluation, &pairs)?;
        Ok(evaluation)
    })?;
    Ok((evaluation, pairs))
}

/// The evaluation that [`evaluate_run`] left for this question, if the same weights and instruments answered it for the same studies.
pub fn earlier_evaluation(
    (config, cache, run): (&Config, &Cache, &Path),
    kind: DecoderKind,
    question: Question,
    instruments: &Instruments,
) -> Result<Option<Evaluation>> {
    let path = run.join(kind.name()).join("reports").join(question.name() + ".json");
    // one of an older version is not read, but made again
    let Ok(earlier) = read_evaluation(&path) else { return Ok(None) };
    let studies = question.studies(cache)?;
    let same = earlier.references_sha256 == references_sha256(studies.iter().map(|study| (study.name.as_str(), study.report.as_str())))
        && earlier.labeller == instruments.labeller.name()
        && earlier.instruments == instruments.names()
        && earlier.weights == weights_of(config, run, kind)?;
    Ok(same.then_some(earlier))
}

/// SHA-256 of the files that the run itself holds of a decoder, by their place in it; external bases are in the run's manifest.
fn weights_of(config: &Config, run: &Path, kind: DecoderKind) -> Result<BTreeMap<String, String>> {
    let mut files = decoder_files(run, kind, None)?;
    if kind == DecoderKind::Llama && config.llama.base.is_none() {
        files.push(run.join("language/model.safetensors"));
    }
    let named = |path: &PathBuf| Ok((path.strip_prefix(run).unwrap_or(path).display().to_string(), sha256(path)?));
    files.iter().filter(|path| path.is_file()).map(named).collect()
}

/// Does what writes reports and watches its time and memory.
fn watched(write: impl FnOnce() -> Result<(Vec<Written>, Option<crate::decoder::Drafting>)>) -> Result<(Vec<Written>, Writing)> {
    let (over, started) = (AtomicBool::new(false), Instant::now());
    let (written, peak) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = resident_mib();
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(SAMPLED);
                peak = peak.max(resident_mib());
            }
            peak
        });
        let written = write();
        over.store(true, Ordering::Relaxed);
        (written, watcher.join().unwrap_or(None))
    });
    let ((written, drafting), seconds) = (written?, started.elapsed().as_secs_f64());
    let tokens = written.iter().map(|written| written.tokens).sum();
    Ok((written, Writing { tokens, seconds, tokens_per_second: tokens as f64 / seconds, peak_memory_mib: peak, drafting }))
}

/// How often memory is looked at.
const SAMPLED: Duration = Duration::from_millis(20);

/// Resident memory of this process now, in MiB (Linux).
fn resident_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
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
    serde_json::from_str(&text)
        .map_err(|e| Error::file(path, format!("not an evaluation of this version ({e}); make it again with `ctscribe evaluate`")))
}

/// Reads the pairs that [`evaluate_run`] wrote beside them.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let pair = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Error::field(path, format!("row {}", index + 1), e.to_string()))
    };
    lines.map(pair).collect()
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
    let reports: Vec<&str> = studies.iter().map(|study| study.report.as_str()).collect();
    let (features, present) = stack_features(&features.iter().collect::<Vec<_>>(), width)?;
    let features = transfers::to_device(&features, observer.device())?;
    let text = observer.head().text(&features)?.detach();
    let visual = transfers::to_device(&Tensor::stack(&visual, 0)?, observer.device())?;
    let rule = match config.structure.loss {
        LossConfig::Ours(_) => RetrievalRule::MeanOfPresent,
        LossConfig::Reference(_) => RetrievalRule::SumOfAll,
    };
    Ok(retrieval(&report_to_volume_scores(&visual, &text, &present, rule)?, &reports))
}
