//! `ctscribe weights`.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};

use crate::Result;
use crate::decoder::LlamaConfig;
use crate::weights::{Mapped, Source, catalogue, copy_files, open, sha256};

use super::phantom::WeightFormat;
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
    /// Writes a LLaMA with its weights quantised (GGUF), to train adapters on (QLoRA) and to generate with in little memory.
    Quantize {
        /// The model's folder, in Hugging Face's layout.
        #[arg(value_name = "FOLDER")]
        base: PathBuf,
        /// Q4_K_M or Q8_0.
        #[arg(long, value_name = "TYPE", default_value = "Q4_K_M")]
        format: WeightFormat,
        /// Where it goes: a folder that gets the GGUF file, the configuration and the tokenizer.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
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
            Action::Quantize { base, format, out } => quantize(&base, format, &out),
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

fn quantize(base: &Path, format: WeightFormat, out: &Path) -> Result<()> {
    let (sizes, mapped) = (LlamaConfig::read(&base.join("config.json"))?, Mapped::open(base)?);
    let sources = sizes.tensors().into_iter().map(|(name, ..)| Source::mapped(&mapped, &name)).collect::<Result<Vec<_>>>()?;
    let mut files = format.write(out, &sizes, &sources)?;
    files.extend(copy_files(base, out, &["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"])?);
    files.iter().for_each(|file| println!("{}", file.display()));
    Ok(())
}
