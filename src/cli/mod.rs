//! The command line: a file a subcommand; each reads its arguments, makes one library call and prints.
//! Results go to stdout, everything else to stderr.

mod adapter;
mod bench;
mod compare;
mod config;
mod demo;
mod evaluate;
mod fetch;
mod generate;
mod inspect;
mod instruments;
mod observe;
mod phantom;
mod plan;
mod prepare;
mod retrieve;
mod run;
mod text;
mod train;
mod verify;
mod view;
mod weights;

use clap::{Parser, Subcommand};

use crate::error::chain;
use crate::ranks::{self, Communicator};
use crate::{Error, Result};

/// Reads a chest CT and writes the radiology report; trains the model that does so. Drafts, not for diagnosis.
#[derive(Debug, Parser)]
#[command(name = "ctscribe", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job on an embedded default: phantoms, both stages, both decoders, scores, a page.
    Demo(demo::Args),
    /// Write a report for each scan: NIfTI files, DICOM folders, or a tree of them.
    Generate(generate::Args),
    /// Say what a scan is and how its Hounsfield units were decided.
    Inspect(inspect::Args),
    /// Stream CT-RATE from the Hugging Face hub: fetch each volume, prepare it, delete it, within a disk budget.
    Fetch(fetch::Args),
    /// Prepare a dataset's volumes into a cache, with a verdict for each.
    Prepare(prepare::Args),
    /// Train stage one (structure) or stage two (report).
    Train(train::Args),
    /// Select the visual tokens of a dataset with a trained stage one.
    Observe(observe::Args),
    /// Score generated reports against their references.
    Evaluate(evaluate::Args),
    /// Report-to-volume retrieval with a trained stage one.
    Retrieve(retrieve::Args),
    /// Compare two or more evaluated runs.
    Compare(compare::Args),
    /// One HTML page of an evaluated run: scores with intervals, curves, studies by error.
    View(view::Args),
    /// LoRA adapters in PEFT's format.
    Adapter(adapter::Args),
    /// External weights: what they are, where they come from, whether a file is whole.
    Weights(weights::Args),
    /// Presets and their checks.
    Config(config::Args),
    /// What the text rules make of a table of reports.
    Text(text::Args),
    /// Disk, memory and hours of a run, before it begins.
    Plan(plan::Args),
    /// Write synthetic chests in CT-RATE's layout.
    Phantom(phantom::Args),
    /// Time one piece of work: a training step, decoding, encoding, preparation.
    Bench(bench::Args),
    /// Prove on your own configuration what is promised: that a killed run resumes byte for byte.
    Verify(verify::Args),
}

impl Cli {
    /// Whether its work is on many small texts, not on tensors.
    pub fn is_of_texts(&self) -> bool {
        matches!(self.command, Command::Evaluate(_) | Command::Compare(_) | Command::Text(_))
    }

    /// Runs the subcommand, on all the ranks that this process was started among. An error of one rank ends the others.
    pub fn run(self) -> Result<()> {
        let ranks = ranks::open()?;
        let done = self.command.run(&*ranks);
        match done {
            // scans or studies failed, told by the leader when all ranks were done
            Err(error) if ranks.size() > 1 && !matches!(error, Error::SomeFailed { .. }) => {
                eprintln!("error: rank {} of {}: {}", ranks.rank(), ranks.size(), chain(&error));
                ranks.abort(error.exit_code())
            }
            done => done,
        }
    }
}

impl Command {
    /// Whether ranks share this work; what they do not share, each would do whole, into the same files.
    fn is_shared(&self) -> bool {
        use Command::{Evaluate, Generate, Observe, Prepare, Train};
        matches!(self, Prepare(_) | Train(_) | Observe(_) | Generate(_) | Evaluate(_))
    }

    fn run(self, ranks: &dyn Communicator) -> Result<()> {
        if ranks.size() > 1 && !self.is_shared() {
            let what = match self {
                Command::Fetch(_) => "fetch keeps to one disk budget and brings several volumes at once (--workers): start one process",
                _ => "only prepare, train, observe, generate and evaluate share their work among processes: start one process",
            };
            return Err(Error::Invalid(what.to_string()));
        }
        match self {
            Command::Demo(args) => args.run(),
            Command::Generate(args) => args.run(ranks),
            Command::Inspect(args) => args.run(),
            Command::Fetch(args) => args.run(),
            Command::Prepare(args) => args.run(ranks),
            Command::Train(args) => args.run(ranks),
            Command::Observe(args) => args.run(ranks),
            Command::Evaluate(args) => args.run(ranks),
            Command::Retrieve(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::View(args) => args.run(),
            Command::Adapter(args) => args.run(),
            Command::Weights(args) => args.run(),
            Command::Config(args) => args.run(),
            Command::Text(args) => args.run(),
            Command::Plan(args) => args.run(),
            Command::Phantom(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Verify(args) => args.run(),
        }
    }
}
