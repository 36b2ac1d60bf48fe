//! `ctscribe weights`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};

use crate::Result;
use crate::weights::{catalogue, open, sha256};

use super::run::print_json;

/// Arguments of `weights`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The external weights that presets name: where they lie, under which licence.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// The tensors of a checkpoint (.safetensors, .pt, .pth, .bin, or a folder), and a file's SHA-256.
    Inspect {
        /// The checkpoint.
        #[arg(value_name = "CHECKPOINT")]
        path: PathBuf,
    },
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::List { json: true } => print_json(&catalogue()?),
            Action::List { json: false } => {
                let mut table = Table::new();
                table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(["name", "repository", "licence", "gated", "for"]);
                for (name, entry) in catalogue()? {
                    table.add_row([
                        name,
                        entry.repository,
                        entry.licence,
                        if entry.gated { "yes" } else { "no" }.to_string(),
                        entry.purpose,
                    ]);
                }
                println!("{table}");
                Ok(())
            }
            Action::Inspect { path } => {
                let tensors: std::collections::BTreeMap<_, _> = open(&path)?.into_iter().collect();
                let values: usize = tensors.values().map(candle_core::Tensor::elem_count).sum();
                tensors.iter().for_each(|(name, tensor)| println!("{name}  {:?}  {:?}", tensor.dims(), tensor.dtype()));
                println!("{} tensors, {values} values", tensors.len());
                if path.is_file() {
                    println!("sha256 {}", sha256(&path)?);
                }
                Ok(())
            }
        }
    }
}
