//! `ctscribe prepare`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::config::Config;
use crate::data::{Dataset, LocalFiles, Preparation, PreparationReport, default_workers};
use crate::data::{read_ct_rate, read_ctrg, read_listing, read_structure_texts};
use crate::ranks::Communicator;
use crate::text::Structures;
use crate::train::Progress;
use crate::{Error, Result};

use super::run::some_failed;

/// Arguments of `prepare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The dataset: CT-RATE's tree (v1 or v2), CTRG-Chest-548K's folder, or a CSV with the columns study, path, report[, patient, split].
    #[arg(value_name = "DATASET")]
    dataset: PathBuf,
    /// How the dataset is laid out.
    #[arg(long, default_value = "ct-rate")]
    source: SourceArg,
    #[command(flatten)]
    how: HowArgs,
}

/// How a dataset is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// CT-RATE's folders and CSV files.
    CtRate,
    /// CTRG-Chest-548K: a folder of slices or a NIfTI file a study, and a JSON of reports.
    Ctrg,
    /// A CSV that names NIfTI files, DICOM folders or folders of slices.
    Csv,
}

/// What `prepare` and `fetch` share.
#[derive(Debug, clap::Args)]
pub struct HowArgs {
    /// Where prepared volumes go; volumes prepared earlier are kept.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// A preset's name or a YAML file.
    #[arg(long, value_name = "NAME|FILE")]
    config: String,
    /// Overrides one key, in YAML.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One reconstruction of each scan, or all (data.reconstructions).
    #[arg(long)]
    reconstructions: Option<ReconstructionsArg>,
    /// Each structure's sentences ready-made, in place of the rules: a CSV with the columns Volumename, Anatomy, Sentence (RadGenome-ChestCT).
    #[arg(long, value_name = "CSV")]
    structure_text: Option<PathBuf>,
    /// Volumes at once (in each process, where several share the work); each takes a whole scan's memory. Default: the cores, at most 4.
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReconstructionsArg {
    /// The first of each scan.
    One,
    /// All.
    All,
}

impl HowArgs {
    /// The configuration.
    pub fn config(&self) -> Result<Config> {
        let mut set = self.set.clone();
        set.extend(self.reconstructions.map(|which| match which {
            ReconstructionsArg::One => "data.reconstructions=first".to_string(),
            ReconstructionsArg::All => "data.reconstructions=all".to_string(),
        }));
        Config::load(&self.config, &set)
    }

    /// Volumes at once.
    pub fn workers(&self) -> Result<usize> {
        match self.workers {
            Some(0) => Err(Error::Invalid("--workers 0: expected at least 1".to_string())),
            workers => Ok(workers.unwrap_or_else(default_workers)),
        }
    }

    /// Gives the studies their ready-made texts, where a table was named; what is to be said of it, line by line.
    pub fn attach_texts(&self, config: &Config, dataset: &mut Dataset) -> Result<Vec<String>> {
        let Some(path) = &self.structure_text else { return Ok(Vec::new()) };
        let names: Vec<String> = Structures::load(&config.text.structures)?.names().into_iter().map(String::from).collect();
        let texts = read_structure_texts(path, &names)?;
        let without = texts.attach(dataset);
        let unknown: Vec<String> = texts.unknown.iter().map(|(name, count)| format!("{name:?} ({count} sentences)")).collect();
        let mut said =
            vec![format!("{}: {} studies have texts, {without} are left to the rules", path.display(), dataset.studies.len() - without)];
        if !unknown.is_empty() {
            said.push(format!("{}: left aside, no structure in use: {}", path.display(), unknown.join(", ")));
        }
        dataset.unreadable.extend(texts.unreadable);
        Ok(said)
    }
}

impl Args {
    pub(super) fn run(self, ranks: &dyn Communicator) -> Result<()> {
        let config = self.how.config()?;
        let mut dataset = match self.source {
            SourceArg::CtRate => read_ct_rate(&self.dataset, &config.data, config.seed)?,
            SourceArg::Ctrg => read_ctrg(&self.dataset, &config.data)?,
            SourceArg::Csv => read_listing(&self.dataset, &config.data, config.seed)?,
        };
        let said = self.how.attach_texts(&config, &mut dataset)?;
        let (root, workers) = (self.how.out.as_path(), self.how.workers()?);
        let preparation = Preparation { dataset: &dataset, config: &config.volume, root, supply: &LocalFiles, workers, ranks };
        if !ranks.leads() {
            return preparation.run(&|_| {}).map(|_| ());
        }
        said.iter().for_each(|line| eprintln!("{line}"));
        carry_out(&preparation, "prepare")
    }
}

/// Warnings told one by one; the others are in prepare.csv.
const TOLD: usize = 20;

/// Prepares, and tells what became of each volume: the leader's part, where several share the work.
pub fn carry_out(preparation: &Preparation, label: &str) -> Result<()> {
    let dataset = preparation.dataset;
    let progress = Progress::new(label, dataset.studies.len() as u64);
    let report = preparation.run(&|done| progress.at(done as u64, ""))?;
    progress.finish("");
    report.warned.iter().take(TOLD).for_each(|(name, warning)| eprintln!("warning: {name}: {warning}"));
    if report.warned.len() > TOLD {
        eprintln!("and {} more warnings", report.warned.len() - TOLD);
    }
    println!("{}", summary(&report, dataset, preparation.root));
    for (named, list) in &dataset.named {
        println!("split {}: {} studies, sha256 {}", named.name(), list.studies, list.sha256);
    }
    let not_brought = report.not_brought.iter().cloned();
    let failed: Vec<(String, String)> = report.failed.iter().cloned().chain(not_brought).chain(dataset.unreadable.clone()).collect();
    some_failed(&failed, dataset.studies.len())
}

fn summary(report: &PreparationReport, dataset: &Dataset, root: &Path) -> String {
    let mut counts = vec![
        format!("{} prepared", report.prepared),
        format!("{} kept", report.kept),
        format!("{} failed", report.failed.len()),
        format!("{} left out", dataset.left_out.len()),
        format!("{} unreadable rows", dataset.unreadable.len()),
    ];
    if !report.not_brought.is_empty() {
        counts.push(format!("{} not brought", report.not_brought.len()));
    }
    format!("{}; every verdict is in {}", counts.join(", "), root.join("prepare.csv").display())
}
