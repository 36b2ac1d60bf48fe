//! `ctscribe compare`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::Result;
use crate::assess::read_evaluation;
use crate::compare::compare;

use super::run::print_json;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Evaluations (JSON files that `evaluate` wrote), or folders of decoders (`RUN/llama`), whose test scores are taken.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// What is printed.
    #[arg(long, default_value = "table")]
    format: Format,
    /// Seed of the bootstrap.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For a terminal.
    Table,
    /// Markdown.
    Markdown,
    /// JSON.
    Json,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let file = |path: &PathBuf| if path.is_dir() { path.join("reports/test.json") } else { path.clone() };
        let runs = self.runs.iter().map(|path| read_evaluation(Path::new(&file(path)))).collect::<Result<Vec<_>>>()?;
        let comparison = compare(&runs, self.seed)?;
        match self.format {
            Format::Table => println!("{comparison}"),
            Format::Markdown => println!("{}", comparison.markdown()),
            Format::Json => print_json(&comparison)?,
        }
        Ok(())
    }
}
