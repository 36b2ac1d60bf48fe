//! `ctscribe train`.

use clap::{Parser, Subcommand};

use crate::Result;
use crate::data::Cache;
use crate::ranks::Communicator;
use crate::train::{Call, Ended, train_language_for, train_report_for, train_structure_for, write_manifest};

use super::run::{ConfigArgs, DecoderArg, DeviceArg, RunArgs, run_config};

/// Arguments of `train`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Debug, Subcommand)]
enum Stage {
    /// Stage one: CT-ViT and structure queries against each structure's text.
    Structure(Common),
    /// A small LLaMA on the training reports' text, where the configuration has one.
    Language(Common),
    /// Stage two: a decoder on the observed visual tokens.
    Report {
        #[command(flatten)]
        common: Common,
        /// Which decoder.
        #[arg(long)]
        decoder: DecoderArg,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    device: DeviceArg,
    /// Goes on after the newest checkpoint.
    #[arg(long)]
    resume: bool,
}

impl Args {
    pub(super) fn run(self, ranks: &dyn Communicator) -> Result<()> {
        let (Stage::Structure(common) | Stage::Language(common) | Stage::Report { common, .. }) = &self.stage;
        let run = &common.run.run;
        let cache = Cache::open(&common.run.data)?;
        let config = ranks.leader_first(|| {
            let config = run_config(run, &common.config)?;
            write_manifest(&config, &cache, run)?;
            Ok(config)
        })?;
        let config = common.device.over(config)?;
        let call = Call { resume: common.resume, stop_after: None, ranks };
        let said = match &self.stage {
            Stage::Structure(_) => {
                let outcome = train_structure_for(&config, &cache, run, call)?;
                let [learned, watched] = outcome.studies;
                format!("structure: {} on {learned} studies ({watched} watched)", ending(&outcome.ended))
            }
            Stage::Language(_) => format!("language: {}", ending(&train_language_for(&config, &cache, run, call)?)),
            Stage::Report { decoder, .. } => {
                let outcome = train_report_for(&config, &cache, run, (*decoder).into(), call)?;
                if outcome.cut > 0 && ranks.leads() {
                    eprintln!("warning: {} of {} reports exceed max_report_tokens and were cut", outcome.cut, outcome.studies[0]);
                }
                let [learned, watched] = outcome.studies;
                format!("report: {} on {learned} studies ({watched} watched)", ending(&outcome.ended))
            }
        };
        if ranks.leads() {
            println!("{said}");
        }
        Ok(())
    }
}

/// Steps, and what is special about the end.
fn ending(ended: &Ended) -> String {
    let early = ended.stopped_early.as_ref().map_or(String::new(), |why| format!(" (stopped early: {why})"));
    let best = if ended.model_of_step == ended.steps { String::new() } else { format!(" (the model is step {}'s)", ended.model_of_step) };
    format!("{} steps{early}{best}", ended.steps)
}
