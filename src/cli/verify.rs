//! `ctscribe verify`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::generate::DecoderKind;
use crate::verify::{VerifiedStage, VerifyResume};
use crate::{Error, Result};

use super::run::print_json;

/// Arguments of `verify`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Kills training at random moments, resumes it, and compares the end with an unbroken run's, byte for byte.
    Resume(Resume),
}

#[derive(Debug, clap::Args)]
struct Resume {
    /// The cache of prepared volumes.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// A preset's name or a YAML file; by default the run's own.
    #[arg(long, value_name = "NAME|FILE", required_unless_present = "run")]
    config: Option<String>,
    /// Overrides one key, in YAML.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// A run whose earlier stages are done (for stage two).
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Which stage.
    #[arg(long)]
    stage: StageArg,
    /// Steps of each run.
    #[arg(long, default_value_t = 12)]
    steps: u64,
    /// Kills in all.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Where the runs go; removed at the end if all is well.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Where the moments of the kills come from.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StageArg {
    /// Stage one.
    Structure,
    /// The language model of the run's own.
    Language,
    /// Stage two with LLaMA and LoRA.
    Llama,
    /// Stage two with the BERT decoder.
    Bert,
}

impl From<StageArg> for VerifiedStage {
    fn from(stage: StageArg) -> Self {
        match stage {
            StageArg::Structure => VerifiedStage::Structure,
            StageArg::Language => VerifiedStage::Language,
            StageArg::Llama => VerifiedStage::Report(DecoderKind::Llama),
            StageArg::Bert => VerifiedStage::Report(DecoderKind::Bert),
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let Action::Resume(resume) = self.action;
        resume.run()
    }
}

impl Resume {
    fn run(self) -> Result<()> {
        let config = match (&self.config, &self.run) {
            (Some(name), _) => Config::load(name, &self.set)?,
            (None, Some(run)) => Config::of_run(run)?,
            (None, None) => return Err(Error::Invalid("give --config or --run".to_string())),
        };
        let program = std::env::current_exe().map_err(|e| Error::Invalid(format!("the program cannot find itself: {e}")))?;
        let own = tempfile::tempdir().map_err(|e| Error::Invalid(format!("no folder for the runs: {e}")))?;
        let work = self.work.clone().unwrap_or_else(|| own.path().to_path_buf());
        let verify = VerifyResume {
            program: &program,
            data: &self.data,
            config,
            run: self.run.as_deref(),
            stage: self.stage.into(),
            steps: self.steps,
            kills: self.kills,
            work: &work,
            seed: self.seed,
        };
        let verdict = match verify.verify() {
            Ok(verdict) => verdict,
            Err(error) => {
                eprintln!("the runs are kept in {}", own.keep().display());
                return Err(error);
            }
        };
        if self.json {
            return print_json(&verdict);
        }
        println!(
            "{}: {} kills over {} runs of {} steps ({} after a checkpoint); equal to the unbroken run: {}",
            verdict.stage,
            verdict.kills,
            verdict.runs,
            verdict.steps,
            verdict.resumed_from_checkpoint,
            verdict.equal.join(", ")
        );
        Ok(())
    }
}
