//! `ctscribe retrieve`.

use crate::Result;
use crate::assess::retrieve;

use super::run::{RunArgs, SplitArg, open, print_json};

/// Arguments of `retrieve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Among these studies.
    #[arg(long, default_value = "test")]
    split: SplitArg,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let (config, cache) = open(&self.run)?;
        let scores = retrieve(&config, &cache, &self.run.run, self.split.into())?;
        if self.json {
            return print_json(&scores);
        }
        println!(
            "report-to-volume retrieval among {} volumes, {} of them with a report that others share",
            scores.volumes, scores.shared_reports
        );
        for (k, recall) in &scores.recall_at {
            let (same, chance) = (scores.recall_at_same_report[k], scores.chance_at[k]);
            println!("  R@{k:<4} {recall:.4}   any volume with the same report {same:.4}   (chance {chance:.4})");
        }
        Ok(())
    }
}
