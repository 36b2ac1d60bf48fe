//! `ctscribe text audit|label`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::error::chain;
use crate::text::{FINDINGS, Labeller, Structures, audit_labels, audit_structures, read_labels, read_studies, unknown_labels};
use crate::weights::write_aside;
use crate::{Error, Result};

use super::run::{LabellerArgs, print_json};

/// Arguments of `text`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Which structures each sentence of a table speaks of: coverage, and agreement where the table has a column Anatomies.
    Audit {
        /// A CSV file with a column report_text, Findings_EN (and Impressions_EN) or Sentence (and Anatomies).
        #[arg(value_name = "CSV")]
        table: PathBuf,
        /// `ours`, `reference` or a rule file.
        #[arg(long, value_name = "RULES", default_value = "ours")]
        structures: String,
        /// Also write every assignment as one page.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Which of the 18 findings each report affirms, as CSV; with --against how that agrees with labels.
    Label {
        /// A CSV file with a column report_text or Findings_EN (and Impressions_EN).
        #[arg(value_name = "CSV")]
        table: PathBuf,
        /// Compare with the label columns of this CSV file (by VolumeName or AccessionNo), or of the table itself.
        #[arg(long, value_name = "CSV", num_args = 0..=1)]
        against: Option<Option<PathBuf>>,
        #[command(flatten)]
        labeller: LabellerArgs,
        /// One JSON object (with --against).
        #[arg(long, requires = "against")]
        json: bool,
    },
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Command::Audit { table, structures, html, json } => audit(&table, &structures, html.as_deref(), json),
            Command::Label { table, against: None, labeller, .. } => label(&table, &labeller.open()?),
            Command::Label { table, against: Some(labels), labeller, json } => compare(&table, labels.as_deref(), &labeller.open()?, json),
        }
    }
}

fn audit(table: &Path, structures: &str, html: Option<&Path>, json: bool) -> Result<()> {
    let rules = Structures::load(structures)?;
    let studies = read_studies(table)?;
    let unknown = unknown_labels(&rules, &studies);
    if !unknown.is_empty() {
        eprintln!("{}: labels that are no structures of {structures} are not compared: {}", table.display(), unknown.join(", "));
    }
    let audit = audit_structures(&rules, &studies);
    if let Some(file) = html {
        let name = table.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        write_aside(file, audit.page(&format!("{name}: sentences by structure ({structures})"))?.as_bytes())?;
    }
    if json {
        return print_json(&audit);
    }
    print!("{audit}");
    Ok(())
}

fn label(table: &Path, labeller: &Labeller) -> Result<()> {
    let mut writer = csv::Writer::from_writer(std::io::stdout().lock());
    let fault = |e: csv::Error| Error::Invalid(format!("the labels cannot be written: {}", chain(&e)));
    writer.write_record(["VolumeName"].iter().chain(&FINDINGS)).map_err(fault)?;
    eprintln!("{}: labelled by {}", table.display(), labeller.name());
    let studies = read_studies(table)?;
    let labels = labeller.label(&studies.iter().map(|study| study.text.as_str()).collect::<Vec<_>>())?;
    for (study, labels) in studies.iter().zip(labels) {
        let labels = labels.map(|label| u8::from(label).to_string());
        writer.write_record([study.name.clone()].iter().chain(&labels)).map_err(fault)?;
    }
    writer.flush().map_err(|e| Error::Invalid(format!("the labels cannot be written: {e}")))
}

fn compare(table: &Path, labels: Option<&Path>, labeller: &Labeller, json: bool) -> Result<()> {
    let mut studies = read_studies(table)?;
    if let Some(path) = labels {
        let labels = read_labels(path)?;
        studies.iter_mut().for_each(|study| study.labels = labels.get(&study.name).copied());
    }
    if studies.iter().all(|study| study.labels.is_none()) {
        return Err(Error::file(
            labels.unwrap_or(table),
            "has no labels of these reports: 18 columns named as the findings, and the same names",
        ));
    }
    let audit = audit_labels(&studies, labeller)?;
    if json {
        return print_json(&audit);
    }
    print!("{audit}");
    Ok(())
}
