//! `ctscribe prepare`.

use std::path::PathBuf;

use crate::Result;
use crate::config::Config;
use crate::data::{prepare, read_ct_rate};
use crate::train::Progress;

use super::run::some_failed;

/// Arguments of `prepare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A dataset in CT-RATE's layout (v1 or v2).
    #[arg(value_name = "DATASET")]
    dataset: PathBuf,
    /// Where prepared volumes go; volumes prepared earlier are kept.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// A preset's name or a YAML file.
    #[arg(long, value_name = "NAME|FILE")]
    config: String,
    /// Overrides one key, in YAML.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let config = Config::load(&self.config, &self.set)?;
        let dataset = read_ct_rate(&self.dataset, &config.data, config.seed)?;
        let progress = Progress::new("prepare", dataset.studies.len() as u64);
        let report = prepare(&dataset, &config.volume, &self.out, |done| {
            progress.at(done as u64, "");
        })?;
        progress.finish("");
        for (name, warning) in &report.warned {
            eprintln!("warning: {name}: {warning}");
        }
        println!(
            "{} prepared, {} kept, {} failed, {} left out, {} unreadable rows; every verdict is in {}",
            report.prepared,
            report.kept,
            report.failed.len(),
            dataset.left_out.len(),
            dataset.unreadable.len(),
            self.out.join("prepare.csv").display()
        );
        let failed: Vec<(String, String)> = report.failed.into_iter().chain(dataset.unreadable).collect();
        some_failed(&failed, dataset.studies.len())
    }
}
