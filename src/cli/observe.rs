//! `ctscribe observe`.

use crate::Result;
use crate::generate::observe_shared;
use crate::ranks::Communicator;
use crate::train::Progress;

use super::run::{DeviceArg, RunArgs, open, some_failed};

/// Arguments of `observe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    device: DeviceArg,
}

impl Args {
    pub(super) fn run(self, ranks: &dyn Communicator) -> Result<()> {
        let (config, cache) = open(&self.run)?;
        let config = self.device.over(config)?;
        if !ranks.leads() {
            return observe_shared(&config, &cache, &self.run.run, ranks, |_| {}).map(|_| ());
        }
        let progress = Progress::new("observe", cache.studies.len() as u64);
        let report = observe_shared(&config, &cache, &self.run.run, ranks, |done| {
            progress.at(done as u64, "");
        })?;
        progress.finish("");
        println!("{} observed, {} kept, {} failed", report.observed, report.kept, report.failed.len());
        some_failed(&report.failed, cache.studies.len())
    }
}
