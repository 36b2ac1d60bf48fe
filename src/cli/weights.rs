//! `ctscribe weights`.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};

use crate::Result;
use crate::decoder::LlamaConfig;
use crate::train::Progress;
use crate::weights::hub::Hub;
use crate::weights::{Fetched, Mapped, Source, catalogue, convert, copy_files, entry, fetch, open, sha256, verify};

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
    /// Fetch weights from the Hugging Face hub, verify them, and convert PyTorch archives.
    ///
    /// What was cut off is gone on with. Heeds HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE, and shares the hub's cache with
    /// Python's tools.
    Fetch {
        /// Names of `weights list`.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Where each name gets its folder; presets look in `weights`.
        #[arg(long, value_name = "FOLDER", default_value = "weights")]
        to: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hash fetched weights again, without the network.
    Verify {
        /// Names of `weights list`.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// The folder given to `weights fetch`.
        #[arg(long, value_name = "FOLDER", default_value = "weights")]
        to: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write a PyTorch archive (.pt, .pth, .bin) once more as .safetensors beside it; nothing in the archive is run.
    Convert {
        /// The archive.
        #[arg(value_name = "ARCHIVE")]
        path: PathBuf,
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
            Action::List { json: false } => list(),
            Action::Fetch { names, to, json } => {
                let hub = Hub::from_env()?;
                let fetched = names.iter().map(|name| fetch_one(&hub, name, &to)).collect::<Result<Vec<_>>>()?.concat();
                print(&fetched, json)
            }
            Action::Verify { names, to, json } => {
                let verified = names.iter().map(|name| verify(name, &to.join(name))).collect::<Result<Vec<_>>>()?.concat();
                print(&verified, json)
            }
            Action::Quantize { base, format, out } => quantize(&base, format, &out),
            Action::Convert { path } => {
                println!("{}", convert(&path)?.display());
                Ok(())
            }
            Action::Inspect { path } => inspect(&path),
        }
    }
}

fn list() -> Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(["name", "repository", "licence", "gated", "for"]);
    for (name, entry) in catalogue()? {
        let repositories: Vec<&str> = entry.from.iter().map(|source| source.repository.as_str()).collect();
        let gated = if entry.from.iter().any(|source| source.gated) { "yes" } else { "no" };
        table.add_row([name, repositories.join("\n"), entry.licence, gated.to_string(), entry.purpose]);
    }
    println!("{table}");
    Ok(())
}

fn fetch_one(hub: &Hub, name: &str, to: &Path) -> Result<Vec<Fetched>> {
    let entry = entry(name)?;
    eprintln!("{name}: {}; licence: {}", entry.purpose, entry.licence);
    let mut bar: Option<(String, Progress)> = None;
    let fetched = fetch(hub, name, &to.join(name), &mut |file, done, total| {
        if bar.as_ref().is_none_or(|(name, _)| name != file) {
            bar = Some((file.to_string(), Progress::of_bytes(file, total)));
        }
        if let Some((_, progress)) = &bar {
            progress.at(done, "");
        }
    })?;
    Ok(fetched)
}

fn print(files: &[Fetched], json: bool) -> Result<()> {
    if json {
        return print_json(&files);
    }
    files.iter().for_each(|file| println!("{}  {} bytes  sha256 {}  from {}", file.path.display(), file.bytes, file.sha256, file.from));
    Ok(())
}

fn inspect(path: &Path) -> Result<()> {
    let tensors: std::collections::BTreeMap<_, _> = open(path)?.into_iter().collect();
    let values: usize = tensors.values().map(candle_core::Tensor::elem_count).sum();
    tensors.iter().for_each(|(name, tensor)| println!("{name}  {:?}  {:?}", tensor.dims(), tensor.dtype()));
    println!("{} tensors, {values} values", tensors.len());
    if path.is_file() {
        println!("sha256 {}", sha256(path)?);
    }
    Ok(())
}

fn quantize(base: &Path, format: WeightFormat, out: &Path) -> Result<()> {
    let (sizes, mapped) = (LlamaConfig::read(&base.join("config.json"))?, Mapped::open(base)?);
    let sources = sizes.tensors().into_iter().map(|(name, ..)| Source::mapped(&mapped, &name)).collect::<Result<Vec<_>>>()?;
    let mut files = format.write(out, &sizes, &sources)?;
    files.extend(copy_files(base, out, &["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"])?);
    files.iter().for_each(|file| println!("{}", file.display()));
    Ok(())
}
