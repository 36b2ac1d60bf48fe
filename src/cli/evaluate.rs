//! `ctscribe evaluate`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::assess::{Question, evaluate_run_with};
use crate::config::Config;
use crate::data::{Cache, Subset};
use crate::evaluate::{Evaluation, Pair, evaluate_with};
use crate::generate::Visual;
use crate::train::Progress;
use crate::{Error, Result};

use super::run::{DecoderArg, LabellerArgs, print_json};

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run whose reports are written and scored.
    #[arg(long, value_name = "FOLDER", requires = "data", required_unless_present = "pairs", conflicts_with = "pairs")]
    run: Option<PathBuf>,
    /// The run's cache of prepared volumes.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Which decoder.
    #[arg(long, default_value = "llama")]
    decoder: DecoderArg,
    /// Which studies: train, validation, test, or a published split (ct-rate-valid-volumes, ct-rate-valid-scans,
    /// ct-rate-valid-500-characters, ctrg-test).
    #[arg(long, default_value = "test")]
    split: Subset,
    /// From the study's own visual tokens, or from another patient's.
    #[arg(long, default_value = "own")]
    visual: VisualArg,
    /// The first so many studies only.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Reports from elsewhere: a CSV with the columns study, generated, reference, or JSON lines with these keys.
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    #[command(flatten)]
    labeller: LabellerArgs,
    /// As JSON, every study's contribution included.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VisualArg {
    /// The study's.
    Own,
    /// Another patient's: what scores do not fall by was not read off the scan.
    Shuffled,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let evaluation = self.evaluation()?;
        if self.json {
            return print_json(&evaluation);
        }
        println!("{evaluation}");
        Ok(())
    }

    fn evaluation(&self) -> Result<Evaluation> {
        let labeller = self.labeller.open()?;
        if let Some(path) = &self.pairs {
            return evaluate_with(&path.display().to_string(), &read_pairs(path)?, &labeller);
        }
        let (Some(run), Some(data)) = (&self.run, &self.data) else {
            return Err(Error::Invalid("give --run and --data, or --pairs".to_string()));
        };
        let (config, cache) = (Config::of_run(run)?, Cache::open(data)?);
        let visual = match self.visual {
            VisualArg::Own => Visual::Own,
            VisualArg::Shuffled => Visual::Shuffled,
        };
        let question = Question { split: self.split, visual, limit: self.limit };
        let total = cache.subset(question.split)?.len().min(self.limit.unwrap_or(usize::MAX));
        let progress = Progress::new("write reports", total as u64);
        let decoder = (self.decoder.into(), &labeller);
        let found = evaluate_run_with((&config, &cache, run), decoder, question, None, &mut |done| progress.at(done as u64, ""))?;
        progress.finish("");
        Ok(found.0)
    }
}

#[derive(serde::Deserialize)]
struct Row {
    study: String,
    generated: String,
    reference: String,
}

/// Pairs of a CSV or of JSON lines; an unreadable row is named.
fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let pair = |row: Row| Pair { study: row.study, generated: row.generated, reference: row.reference, labels: None };
    let fault = |line: usize, what: String| Error::field(path, format!("row {line}"), what);
    if path.extension().is_some_and(|extension| extension == "csv") {
        let mut reader = csv::Reader::from_path(path).map_err(|e| Error::file(path, e.to_string()))?;
        return reader
            .deserialize::<Row>()
            .enumerate()
            .map(|(index, row)| Ok(pair(row.map_err(|e| fault(index + 2, e.to_string()))?)))
            .collect();
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| Ok(pair(serde_json::from_str(line).map_err(|e| fault(index + 1, e.to_string()))?))).collect()
}
