//! `ctscribe plan`.

use std::path::PathBuf;

use crate::Result;
use crate::config::Config;
use crate::data::{Cache, Split};
use crate::plan::{Machine, Studies, plan};

use super::run::print_json;

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A preset's name or a YAML file.
    #[arg(long, value_name = "NAME|FILE")]
    config: String,
    /// Overrides one key, in YAML: `--set llama.base=weights/llama-2-7b-q4`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Counts the studies of this cache; without it those of CT-RATE, or the phantoms that the preset draws.
    #[arg(long, value_name = "CACHE")]
    data: Option<PathBuf>,
    /// So many studies instead.
    #[arg(long, value_name = "N", conflicts_with = "data")]
    studies: Option<usize>,
    /// So many of them are written and scored.
    #[arg(long, value_name = "N", conflicts_with = "data")]
    test: Option<usize>,
    /// Tokens of a report, on average.
    #[arg(long, value_name = "N")]
    report_tokens: Option<usize>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let config = Config::load(&self.config, &self.set)?;
        let mut studies = Studies::of(&config);
        if let Some(cache) = self.data.as_deref().map(Cache::open).transpose()? {
            (studies.all, studies.test) = (cache.studies.len(), cache.split(Split::Test).len());
        }
        studies.all = self.studies.unwrap_or(studies.all);
        studies.test = self.test.unwrap_or(studies.test);
        studies.report_tokens = self.report_tokens.unwrap_or(studies.report_tokens);
        let plan = plan(&config, studies, Machine::measure()?)?;
        if self.json {
            return print_json(&plan);
        }
        println!("{plan}");
        Ok(())
    }
}
