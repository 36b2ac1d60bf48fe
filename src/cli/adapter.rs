//! `ctscribe adapter`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::generate::open_llama;
use crate::weights::{self, save};
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
    /// Adds an adapter into its base; the folder written is a plain LLaMA.
    Merge {
        /// The adapter, in PEFT's format.
        #[arg(value_name = "ADAPTER")]
        adapter: PathBuf,
        /// The base's folder, in Hugging Face's layout.
        #[arg(long, value_name = "FOLDER")]
        base: PathBuf,
        /// Where the merged model goes.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::Inspect { adapter } => inspect(&adapter),
            Action::Merge { adapter, base, out } => merge(&adapter, &base, &out),
        }
    }
}

fn inspect(folder: &Path) -> Result<()> {
    let adapter = ctscribe_lora::read_adapter(folder)?;
    let config = &adapter.config;
    println!("base     {}", adapter.base);
    println!(
        "rank     {}, alpha {}, scale {:.4}, dropout {}, rank-stabilised {}",
        config.r,
        config.alpha,
        config.scale(),
        config.dropout,
        config.rslora
    );
    println!("targets  {}", config.target_modules.join(", "));
    let parameters: usize = adapter.modules.values().flatten().map(candle_core::Tensor::elem_count).sum();
    println!("modules  {}, {parameters} parameters", adapter.modules.len());
    Ok(())
}

fn merge(adapter: &Path, base: &Path, out: &Path) -> Result<()> {
    let mut model = open_llama(base)?;
    model.load_adapter(adapter)?;
    model.merge_adapter()?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let mut tensors = weights::open(base)?;
    tensors.extend(model.projection_weights());
    save(&out.join("model.safetensors"), &tensors.into_iter().collect(), &HashMap::from([("format".to_string(), "pt".to_string())]))?;
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"] {
        if base.join(name).is_file() {
            std::fs::copy(base.join(name), out.join(name)).map_err(|e| Error::io(out.join(name), e))?;
        }
    }
    println!("{} and {} merged into {}", base.display(), adapter.display(), out.display());
    Ok(())
}
