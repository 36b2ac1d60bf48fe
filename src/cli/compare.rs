//! `ctscribe compare`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::assess::{read_evaluation, read_pairs};
use crate::compare::{Comparing, compare};
use crate::evaluate::{Evaluation, Instruments, References, evaluate, read_predictions};
use crate::{Error, Result};

use super::instruments::InstrumentArgs;
use super::run::print_json;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Runs (their decoders' test scores), decoders (`RUN/llama`), evaluations (JSON that `evaluate` wrote), or predictions from elsewhere:
    /// CSV, JSON, JSON lines, VLM3D submissions. The others are compared with the first.
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The references of predictions from elsewhere; else those of the first run that has its reports beside its scores.
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,
    /// Runs of different studies are compared on those that all have.
    #[arg(long)]
    allow_different_splits: bool,
    /// Test this score, too.
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// What is printed.
    #[arg(long, default_value = "table")]
    format: Format,
    /// Words above the HTML page.
    #[arg(long, default_value = "", value_name = "TEXT")]
    notice: String,
    /// Seed of bootstrap and permutations.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Bootstrap samples.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    draws: u32,
    /// Permutations of the paired test.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    permutations: u32,
    #[command(flatten)]
    instruments: InstrumentArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For a terminal.
    Table,
    /// Markdown.
    Markdown,
    /// LaTeX tables (booktabs).
    Latex,
    /// One HTML file that needs nothing else.
    Html,
    /// JSON.
    Json,
}

/// What an argument names.
enum Entry {
    Scored(Box<Evaluation>, PathBuf),
    Predicted(PathBuf),
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let entries: Vec<Entry> = self.runs.iter().map(|path| entries(path)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let runs = self.evaluations(entries)?;
        if runs.len() < 2 {
            return Err(Error::Invalid(format!("{}: there is one run only; give another to compare it with", self.runs[0].display())));
        }
        let comparing = Comparing {
            seed: self.seed,
            draws: self.draws as usize,
            permutations: self.permutations as usize,
            tested: self.metric.clone(),
            allow_different_splits: self.allow_different_splits,
        };
        let comparison = compare(&distinct(runs), &comparing)?;
        match self.format {
            Format::Table => println!("{comparison}"),
            Format::Markdown => println!("{}", comparison.markdown()),
            Format::Latex => println!("{}", comparison.latex()),
            Format::Html => println!("{}", comparison.html(&self.notice)?),
            Format::Json => print_json(&comparison)?,
        }
        Ok(())
    }

    /// All entries scored: predictions against the given references, or the first run's.
    fn evaluations(&self, entries: Vec<Entry>) -> Result<Vec<Evaluation>> {
        let outside = entries.iter().any(|entry| matches!(entry, Entry::Predicted(_)));
        let references = if outside { self.references(&entries)? } else { References::default() };
        let instruments = if outside { self.instruments.open()? } else { Instruments::default() };
        let evaluation = |entry: Entry| match entry {
            Entry::Scored(evaluation, _) => Ok(*evaluation),
            Entry::Predicted(path) => {
                let paired = references.pair(&read_predictions(&path)?);
                if !paired.unknown.is_empty() {
                    eprintln!("{}: {} predictions have no reference and are left out", path.display(), paired.unknown.len());
                }
                evaluate(&stem(&path), &paired.pairs, &instruments)
            }
        };
        entries.into_iter().map(evaluation).collect()
    }

    fn references(&self, entries: &[Entry]) -> Result<References> {
        if let Some(file) = &self.references {
            return References::read(file);
        }
        let beside = entries.iter().find_map(|entry| match entry {
            Entry::Scored(_, path) => Some(path.with_extension("jsonl")).filter(|path| path.is_file()),
            Entry::Predicted(_) => None,
        });
        // predictions may bring their references in a column of their own
        beside.map_or_else(|| Ok(References::default()), |path| Ok(References::of_pairs(&read_pairs(&path)?)))
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A decoder's test scores, those of all decoders of a run, an evaluation, or predictions.
fn entries(path: &Path) -> Result<Vec<Entry>> {
    let scored = |file: PathBuf| Ok(Entry::Scored(Box::new(read_evaluation(&file)?), file));
    if path.is_dir() {
        let places = ["", "llama", "bert"].map(|decoder| path.join(decoder).join("reports/test.json"));
        let found: Vec<PathBuf> = places.into_iter().filter(|file| file.is_file()).collect();
        if found.is_empty() {
            return Err(Error::file(
                path,
                "holds no scores (expected reports/test.json, here or in llama or bert; see `ctscribe evaluate`)",
            ));
        }
        return found.into_iter().map(scored).collect();
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let evaluation = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|document| document.get("per_study").is_some());
    Ok(vec![if evaluation { scored(path.to_path_buf())? } else { Entry::Predicted(path.to_path_buf()) }])
}

/// Runs of one name get a number.
fn distinct(mut runs: Vec<Evaluation>) -> Vec<Evaluation> {
    for at in 1..runs.len() {
        let name = runs[at].run.clone();
        let earlier = runs[..at].iter().filter(|run| run.run == name || run.run.starts_with(&format!("{name} ("))).count();
        if earlier > 0 {
            runs[at].run = format!("{name} ({})", earlier + 1);
        }
    }
    runs
}
