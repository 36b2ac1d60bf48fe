//! `ctscribe view`.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::Result;
use crate::data::Subset;
use crate::run_page::{Asked, Pick, run_page};
use crate::weights::write_aside;

use super::run::{RunArgs, open, some_failed};

/// Arguments of `view`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// The evaluated split (`ctscribe evaluate`).
    #[arg(long, default_value = "test")]
    split: Subset,
    /// At most so many studies with their volumes; more make each volume coarser.
    #[arg(long, default_value_t = 100, value_name = "N")]
    studies: usize,
    /// Which studies, where there are more.
    #[arg(long, default_value = "worst")]
    pick: PickArg,
    /// The page's title.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// The page.
    #[arg(long, default_value = "page.html", value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PickArg {
    /// Those with the most label errors.
    Worst,
    /// Evenly from the fewest label errors to the most.
    Spread,
    /// The first by name.
    First,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let (config, cache) = open(&self.run)?;
        let pick = match self.pick {
            PickArg::Worst => Pick::Worst,
            PickArg::Spread => Pick::Spread,
            PickArg::First => Pick::First,
        };
        let asked = Asked { split: self.split, studies: self.studies, pick };
        let own = || format!("ctscribe {}", self.run.run.file_name().unwrap_or_default().to_string_lossy());
        let (page, failed) = run_page((&config, &cache, &self.run.run), asked, &self.title.unwrap_or_else(own))?;
        write_aside(&self.out, page.render()?.as_bytes())?;
        println!("{}", self.out.display());
        some_failed(&failed, page.studies.len() + failed.len())
    }
}
