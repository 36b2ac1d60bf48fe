//! `ctscribe retrieve`.

use serde::Serialize;

use crate::Result;
use crate::assess::retrieve;
use crate::data::{SplitRecord, Subset};
use crate::evaluate::RetrievalScores;

use super::run::{DeviceArg, RunArgs, open, print_json};

/// Arguments of `retrieve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    device: DeviceArg,
    /// Among these studies: train, validation, test, or a published split (ct-rate-valid-volumes, ct-rate-valid-scans,
    /// ct-rate-valid-500-characters, ctrg-test).
    #[arg(long, default_value = "test")]
    split: Subset,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Found {
    split: SplitRecord,
    #[serde(flatten)]
    scores: RetrievalScores,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let (config, cache) = open(&self.run)?;
        let config = self.device.over(config)?;
        let scores = retrieve(&config, &cache, &self.run.run, self.split)?;
        let split = cache.split_record(self.split, scores.volumes)?;
        if self.json {
            return print_json(&Found { split, scores });
        }
        println!(
            "report-to-volume retrieval among {} volumes of {} (sha256 {}), {} of them with a report that others share",
            scores.volumes, split.name, split.sha256, scores.shared_reports
        );
        for (k, recall) in &scores.recall_at {
            let (same, chance) = (scores.recall_at_same_report[k], scores.chance_at[k]);
            println!("  R@{k:<4} {recall:.4}   any volume with the same report {same:.4}   (chance {chance:.4})");
        }
        Ok(())
    }
}
