//! `ctscribe adapter`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};

use crate::decoder::open_adapter;
use crate::generate::{adapter_logits, export_adapter, import_adapter, merge_adapter, verify_adapter};
use crate::weights::save;
use crate::{Error, Result};

/// Arguments of `adapter`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What an adapter's folder holds.
    Inspect {
        /// The adapter, in PEFT's format.
        #[arg(value_name = "ADAPTER")]
        adapter: PathBuf,
    },
    /// Whether an adapter fits a base, tensor by tensor.
    Verify {
        /// The adapter, in PEFT's format.
        #[arg(value_name = "ADAPTER")]
        adapter: PathBuf,
        /// The base's folder, in Hugging Face's layout.
        #[arg(long, value_name = "FOLDER")]
        base: PathBuf,
    },
    /// Adds an adapter into its base; the folder written is a plain LLaMA, compared with the adapter on its base before it is kept.
    Merge(Merge),
    /// Copies an adapter made elsewhere into a run, checked against the run's base.
    Import {
        /// The adapter, in PEFT's format.
        #[arg(value_name = "ADAPTER")]
        adapter: PathBuf,
        /// The run.
        #[arg(long, value_name = "RUN")]
        run: PathBuf,
        /// Puts it in the place of the adapter that the run has.
        #[arg(long)]
        replace: bool,
    },
    /// Copies a run's adapter and its projector to a folder that PEFT opens.
    Export {
        /// The run.
        #[arg(long, value_name = "RUN")]
        run: PathBuf,
        /// Where they go.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Writes a LLaMA's logits of given ids, with an adapter or without: `logits` (tokens, vocabulary).
    Logits {
        /// The base's folder, in Hugging Face's layout.
        #[arg(long, value_name = "FOLDER")]
        base: PathBuf,
        /// The adapter, in PEFT's format.
        #[arg(long, value_name = "ADAPTER")]
        adapter: Option<PathBuf>,
        /// The ids, separated by commas.
        #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
        ids: Vec<u32>,
        /// The file, .safetensors.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Debug, Parser)]
struct Merge {
    /// The adapter, in PEFT's format.
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// The base's folder, in Hugging Face's layout.
    #[arg(long, value_name = "FOLDER")]
    base: PathBuf,
    /// Where the merged model goes.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Keeps what was merged in f32 even if the base is in half precision.
    #[arg(long)]
    f32: bool,
    /// The largest difference of a logit that is accepted.
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-3)]
    tolerance: f32,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::Inspect { adapter } => inspect(&adapter),
            Action::Verify { adapter, base } => verify(&adapter, &base),
            Action::Merge(merge) => merge.run(),
            Action::Import { adapter, run, replace } => print_files(&import_adapter(&adapter, &run, replace)?),
            Action::Export { run, out } => print_files(&export_adapter(&run, &out)?),
            Action::Logits { base, adapter, ids, out } => {
                let logits = adapter_logits(&base, adapter.as_deref(), &ids)?;
                save(&out, &BTreeMap::from([("logits".to_string(), logits)]), &HashMap::new())?;
                print_files(&[out])
            }
        }
    }
}

fn print_files(files: &[PathBuf]) -> Result<()> {
    files.iter().for_each(|file| println!("{}", file.display()));
    Ok(())
}

fn inspect(folder: &Path) -> Result<()> {
    let adapter = open_adapter(folder)?;
    let config = &adapter.config;
    let or_none = |list: String| if list.is_empty() { "none".to_string() } else { list };
    let ranks: Vec<String> = config.rank_pattern.iter().map(|(key, rank)| format!("{key}: {rank}")).collect();
    let alphas: Vec<String> = config.alpha_pattern.iter().map(|(key, alpha)| format!("{key}: {alpha}")).collect();
    println!("base     {}", adapter.base);
    println!("rank     {}, by pattern {}", config.r, or_none(ranks.join(", ")));
    println!("alpha    {}, by pattern {}", config.alpha, or_none(alphas.join(", ")));
    println!("dropout  {}", config.dropout);
    println!("kind     {}{}", if config.rslora { "rank-stabilised " } else { "" }, if config.dora { "DoRA" } else { "LoRA" });
    println!("targets  {}", config.target_modules);
    if !config.layers_to_transform.is_empty() {
        println!("layers   {:?}", config.layers_to_transform);
    }
    println!("saved    {}", or_none(config.modules_to_save.join(", ")));
    println!("modules  {}, {} parameters", adapter.modules.len(), adapter.parameters());
    Ok(())
}

fn verify(adapter: &Path, base: &Path) -> Result<()> {
    let (_, fits) = verify_adapter(adapter, base)?;
    let shape = |shape: &Option<Vec<usize>>| shape.as_ref().map_or_else(|| "-".to_string(), |shape| format!("{shape:?}"));
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(["tensor", "state", "base needs", "adapter holds"]);
    for fit in &fits {
        table.add_row([fit.tensor.clone(), fit.state().to_string(), shape(&fit.expected), shape(&fit.found)]);
    }
    println!("{table}");
    let count = |state: &str| fits.iter().filter(|fit| fit.state() == state).count();
    let [loaded, missing, unexpected, other] = ["loaded", "missing", "unexpected", "shape"].map(count);
    println!("{loaded} loaded, {missing} missing, {unexpected} unexpected, {other} of another shape");
    if loaded < fits.len() || loaded == 0 {
        return Err(Error::file(adapter, format!("does not fit {}", base.display())));
    }
    // what a table of shapes cannot show is refused by name
    open_adapter(adapter).map(|_| ())
}

impl Merge {
    fn run(self) -> Result<()> {
        let outcome = merge_adapter(&self.adapter, &self.base, &self.out, self.f32, self.tolerance)?;
        println!("{} and {} merged into {}", self.base.display(), self.adapter.display(), self.out.display());
        println!(
            "largest difference of a logit over {} tokens: {:.3e} (largest logit {:.3e}, tolerance {:.1e})",
            outcome.tokens, outcome.largest, outcome.scale, self.tolerance
        );
        Ok(())
    }
}
