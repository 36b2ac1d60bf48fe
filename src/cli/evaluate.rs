//! `ctscribe evaluate`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use crate::assess::{Question, earlier_evaluation, evaluate_run_shared};
use crate::compare::{Comparing, Comparison, Difference, compare};
use crate::config::Config;
use crate::data::{Cache, Subset};
use crate::evaluate::{Evaluation, Instruments, Pair, References, evaluate, read_predictions, write_submission};
use crate::generate::{DecoderKind, Visual};
use crate::ranks::Communicator;
use crate::train::Progress;
use crate::{Error, Result};

use super::instruments::InstrumentArgs;
use super::run::{DecoderArg, DeviceArg, print_json, some_failed};

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run whose reports are written and scored.
    #[arg(long, value_name = "FOLDER", requires = "data", required_unless_present = "pairs", conflicts_with = "pairs")]
    run: Option<PathBuf>,
    /// The run's cache of prepared volumes; beside --pairs, the references.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Which decoder.
    #[arg(long, default_value = "llama")]
    decoder: DecoderArg,
    /// Which studies: train, validation, test, or a published split (ct-rate-valid-volumes, ct-rate-valid-scans,
    /// ct-rate-valid-500-characters, ctrg-test).
    #[arg(long, default_value = "test")]
    split: Subset,
    /// From the study's own visual tokens, or from others: then the drop of the scores is told, too.
    #[arg(long, default_value = "own")]
    visual: VisualArg,
    /// The first so many studies only.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Reports from elsewhere: CSV, JSON, JSON lines or a VLM3D submission, with study and report (docs/metrics.md).
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// The references of --pairs, in the same formats, where it holds none (column `reference`) and --data is not given.
    #[arg(long, value_name = "FILE", requires = "pairs", conflicts_with = "data")]
    references: Option<PathBuf>,
    /// Also writes the generated reports as VLM3D's predictions.json.
    #[arg(long, value_name = "FILE")]
    submission: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    instruments: InstrumentArgs,
    /// As JSON, every study's contribution included.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VisualArg {
    /// The study's.
    Own,
    /// Another patient's: what scores do not fall by was not read off the scan.
    #[value(alias = "shuffled")]
    Shuffle,
    /// None: zeros.
    Zero,
    /// The mean over the studies.
    Mean,
}

impl From<VisualArg> for Visual {
    fn from(visual: VisualArg) -> Self {
        match visual {
            VisualArg::Own => Visual::Own,
            VisualArg::Shuffle => Visual::Shuffled,
            VisualArg::Zero => Visual::Zero,
            VisualArg::Mean => Visual::Mean,
        }
    }
}

/// What other visual tokens cost.
#[derive(Serialize)]
struct Grounding<'a> {
    evaluation: &'a Evaluation,
    /// Scores from these tokens minus those from the studies' own.
    drop: &'a [Difference],
}

impl Args {
    pub(super) fn run(self, ranks: &dyn Communicator) -> Result<()> {
        let instruments = self.instruments.open()?;
        let Some(path) = &self.pairs else { return self.evaluate_run(&instruments, ranks) };
        if ranks.size() > 1 {
            return Err(Error::Invalid("--pairs leaves no reports to write and nothing to share: start one process".to_string()));
        }
        let references = match (&self.references, &self.data) {
            (Some(file), _) => References::read(file)?,
            (None, Some(data)) => self.references_of(data)?,
            (None, None) => References::default(),
        };
        let paired = references.pair(&read_predictions(path)?);
        let why = |why: &'static str| move |study: &String| (study.clone(), why.to_string());
        let missing = paired.missing.iter().map(why("has no prediction and was not scored"));
        let failed: Vec<(String, String)> = missing.chain(paired.unknown.iter().map(why("has no reference and was not scored"))).collect();
        let name = path.file_stem().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let evaluation = evaluate(&name, &paired.pairs, &instruments)?;
        self.finish(&evaluation, &paired.pairs, None)?;
        some_failed(&failed, failed.len() + paired.pairs.len())
    }

    fn references_of(&self, data: &Path) -> Result<References> {
        let cache = Cache::open(data)?;
        let pair = |study: &&crate::data::CachedStudy| Pair {
            study: study.name.clone(),
            generated: String::new(),
            reference: study.report.clone(),
            labels: study.labels,
        };
        Ok(References::of_pairs(&cache.subset(self.split)?.iter().map(pair).collect::<Vec<_>>()))
    }

    fn evaluate_run(&self, instruments: &Instruments, ranks: &dyn Communicator) -> Result<()> {
        let (Some(run), Some(data)) = (&self.run, &self.data) else {
            return Err(Error::Invalid("give --run and --data, or --pairs".to_string()));
        };
        let (config, cache) = (self.device.over(Config::of_run(run)?)?, Cache::open(data)?);
        let (kind, whole) = (DecoderKind::from(self.decoder), (&config, &cache, run.as_path()));
        let question = |visual: Visual| Question { split: self.split, visual, limit: self.limit };
        let ask = |visual: Visual| {
            let total = cache.subset(self.split)?.len().min(self.limit.unwrap_or(usize::MAX));
            let progress = ranks.leads().then(|| Progress::new(format!("write reports{}", visual.suffix()), total as u64));
            let mut told = |done| progress.iter().for_each(|progress| progress.at(done as u64, ""));
            let found = evaluate_run_shared(whole, kind, question(visual), (instruments, ranks), &mut told)?;
            progress.into_iter().for_each(|progress| progress.finish(""));
            Ok::<_, Error>(found)
        };
        let visual = Visual::from(self.visual);
        if visual == Visual::Own {
            let (evaluation, pairs) = ask(visual)?;
            return if ranks.leads() { self.finish(&evaluation, &pairs, None) } else { Ok(()) };
        }
        let earlier = ranks.from_leader(|| earlier_evaluation(whole, kind, question(Visual::Own), instruments))?;
        let own = earlier.map_or_else(|| Ok(ask(Visual::Own)?.0), Ok::<_, Error>)?;
        let (evaluation, pairs) = ask(visual)?;
        if !ranks.leads() {
            return Ok(());
        }
        let comparison = compare(&[own, evaluation.clone()], &Comparing::seeded(config.seed))?;
        self.finish(&evaluation, &pairs, Some(&comparison))
    }

    fn finish(&self, evaluation: &Evaluation, pairs: &[Pair], drop: Option<&Comparison>) -> Result<()> {
        if let Some(path) = &self.submission {
            write_submission(path, pairs)?;
        }
        match (self.json, drop) {
            (true, None) => print_json(evaluation),
            (true, Some(comparison)) => print_json(&Grounding { evaluation, drop: &comparison.differences }),
            (false, None) => {
                println!("{evaluation}");
                Ok(())
            }
            (false, Some(comparison)) => {
                println!("{evaluation}\n{}", comparison.drop_table());
                Ok(())
            }
        }
    }
}
