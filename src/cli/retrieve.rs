//! `ctscribe retrieve`.

use crate::Result;
use crate::assess::retrieve;
use crate::data::Subset;

use super::run::{RunArgs, open, print_json};

/// Arguments of `retrieve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Among these studies: train, validation, test, or a published split (ct-rate-valid-volumes, ct-rate-valid-scans,
    /// ct-rate-valid-500-characters, ctrg-test).
    #[arg(long, default_value = "test")]
    split: Subset,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let (config, cache) = open(&self.run)?;
        let scores = retrieve(&config, &cache, &self.run.run, self.split)?;
        if self.json {
            return print_json(&scores);
        }
        let split = cache.split_record(self.split, scores.volumes)?;
        println!("report-to-volume retrieval among {} volumes of {} (sha256 {})", scores.volumes, split.name, split.sha256);
        for (k, recall) in &scores.recall_at {
            println!("  R@{k:<4} {recall:.4}   (chance {:.4})", scores.chance_at[k]);
        }
        Ok(())
    }
}
