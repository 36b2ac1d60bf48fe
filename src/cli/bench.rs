//! `ctscribe bench`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use ctscribe_ops::FEW_ROWS;
use serde_json::{Value, json};

use crate::Result;
use crate::bench::{DecodeOptions, Measured, ReportOptions, StepOptions};
use crate::bench::{decode, encode, lora_step, prefill, prepare_file, report, text_encoder, train_encoder};
use crate::data::Subset;
use crate::device::DeviceName;
use crate::text::Precision;
use crate::weights::{BasePrecision, WeightPrecision};

use super::run::{print_json, three};

/// Arguments of `bench`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    work: Work,
    /// Runs on the clock, after one to warm up.
    #[arg(long, global = true, default_value_t = 5, value_name = "NUMBER")]
    runs: usize,
    /// Where models lie and are computed: cpu, or cuda:N (`report`: where its run's configuration says).
    #[arg(long, global = true, default_value_t = DeviceName::Cpu, value_name = "cpu|cuda:N")]
    device: DeviceName,
    /// As JSON, which it is anyway.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// One LoRA training step on a base (see `ctscribe phantom --weights`).
    LoraStep {
        /// The base's folder or GGUF file.
        #[arg(value_name = "BASE")]
        base: PathBuf,
        /// Visual tokens.
        #[arg(long, default_value_t = 110)]
        visual: usize,
        /// Text tokens without a label.
        #[arg(long, default_value_t = 0)]
        prompt: usize,
        /// Text tokens with one.
        #[arg(long, default_value_t = 400)]
        text: usize,
        /// Sequences.
        #[arg(long, default_value_t = 1)]
        batch: usize,
        /// Runs layers again in the backward pass.
        #[arg(long)]
        recompute: bool,
        /// The numbers of the products with its weights.
        #[arg(long, default_value = "auto")]
        precision: BaseNumbers,
        /// The adapted projections.
        #[arg(long, value_delimiter = ',', default_value = "q_proj,v_proj")]
        targets: Vec<String>,
    },
    /// Tokens written one after the other.
    Decode {
        /// The base's folder or GGUF file.
        #[arg(value_name = "BASE")]
        base: PathBuf,
        /// Embeddings before the first.
        #[arg(long, default_value_t = 126)]
        prompt: usize,
        /// New tokens.
        #[arg(long, default_value_t = 64)]
        new: usize,
        /// On a CUDA device: launch each kernel by itself instead of replaying passes as CUDA graphs.
        #[arg(long)]
        no_graphs: bool,
    },
    /// Whole reports of a trained run, plainly and with guesses: both times, their ratio, guesses accepted.
    Report {
        /// The run's cache of prepared volumes.
        #[arg(long, value_name = "FOLDER")]
        data: PathBuf,
        /// The run's folder.
        #[arg(long, value_name = "FOLDER")]
        run: PathBuf,
        /// Which studies.
        #[arg(long, default_value = "test")]
        split: Subset,
        /// The first so many of them.
        #[arg(long, default_value_t = 10, value_name = "N")]
        studies: usize,
        /// Tokens guessed ahead at most.
        #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u8).range(0..FEW_ROWS as i64))]
        drafts: u8,
    },
    /// A prompt read.
    Prefill {
        /// The base's folder or GGUF file.
        #[arg(value_name = "BASE")]
        base: PathBuf,
        /// Its length.
        #[arg(long, default_value_t = 126)]
        prompt: usize,
    },
    /// CT-ViT's encoding of a volume.
    Encode {
        /// Its voxels along z, y, x.
        #[arg(long, value_delimiter = ',', num_args = 1..=3, default_values_t = [240, 480, 480], value_name = "D,H,W")]
        shape: Vec<usize>,
        /// The numbers of its transformers' products with weights.
        #[arg(long, default_value = "f32")]
        precision: Numbers,
        /// Forward and backward pass and an optimiser step.
        #[arg(long)]
        train: bool,
        /// Runs layers again in the backward pass.
        #[arg(long, requires = "train")]
        recompute: bool,
    },
    /// A scan read and prepared.
    Prepare {
        /// The scan.
        #[arg(value_name = "SCAN")]
        scan: PathBuf,
    },
    /// BERT-base on 64 sentences of 40 tokens.
    TextEncoder {
        /// The numbers of its weights and products.
        #[arg(long, default_value = "f32")]
        dtype: Dtype,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    /// 32 bits.
    F32,
    /// f32 in integers of 16 bits with exact sums.
    Int16,
    /// bf16, with sums in f32.
    Bf16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BaseNumbers {
    /// f32 in f32; 16 bits or fewer in factors of 16 bits.
    Auto,
    /// 32 bits, whatever the weights are.
    F32,
    /// f32 in integers of 16 bits with exact sums; others as `auto`.
    Int16,
}

impl From<BaseNumbers> for BasePrecision {
    fn from(numbers: BaseNumbers) -> Self {
        match numbers {
            BaseNumbers::Auto => BasePrecision::Auto,
            BaseNumbers::F32 => BasePrecision::F32,
            BaseNumbers::Int16 => BasePrecision::Int16,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Numbers {
    /// 32 bits.
    F32,
    /// Integers of 16 bits with exact sums.
    Int16,
}

impl From<Numbers> for WeightPrecision {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::F32 => WeightPrecision::F32,
            Numbers::Int16 => WeightPrecision::Int16,
        }
    }
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Precision::F32,
            Dtype::Int16 => Precision::Int16,
            Dtype::Bf16 => Precision::Bf16,
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        // JSON is what there is
        let Args { work, runs, device, json: _ } = self;
        let device = device.open()?;
        let voxels = |shape: &[usize]| three("--shape", shape);
        let (name, tokens, measured) = match work {
            Work::Report { data, run, split, studies, drafts } => {
                let options = ReportOptions { split, studies, drafts: drafts.into(), runs };
                return print_json(&json!({"bench": "report", "times": report(&run, &data, options)?}));
            }
            Work::LoraStep { base, visual, prompt, text, batch, recompute, precision, targets } => {
                let precision = precision.into();
                let options = StepOptions { visual, prompt, text, batch, recompute, precision, targets, runs };
                ("lora-step", batch * (visual + prompt + text), lora_step(&base, &options, &device)?)
            }
            Work::Decode { base, prompt, new, no_graphs } => {
                ("decode", new, decode(&base, &DecodeOptions { prompt, new, graphs: !no_graphs, runs }, &device)?)
            }
            Work::Prefill { base, prompt } => {
                ("prefill", prompt, prefill(&base, &DecodeOptions { prompt, new: 0, graphs: false, runs }, &device)?)
            }
            Work::Encode { shape, precision, train: false, .. } => {
                let (measured, distance) = encode(voxels(&shape)?, precision.into(), runs, &device)?;
                print("encode", 1, &measured, json!({"distance_from_f32": distance}));
                return Ok(());
            }
            Work::Encode { shape, precision, recompute, .. } => {
                ("train-encoder", 1, train_encoder(voxels(&shape)?, precision.into(), recompute, runs, &device)?)
            }
            Work::Prepare { scan } => ("prepare", 1, prepare_file(&scan, [240, 480, 480], runs)?),
            Work::TextEncoder { dtype } => ("text-encoder", 64, text_encoder((64, 40), dtype.into(), runs, &device)?),
        };
        print(name, tokens, &measured, json!({}));
        Ok(())
    }
}

/// One line of JSON, as the peers' scripts print, with `more`.
fn print(name: &str, items: usize, measured: &Measured, more: Value) {
    let mut line = json!({"bench": name, "items": items, "items_per_s": items as f64 / measured.median_s});
    for own in [json!(measured), more] {
        line.as_object_mut().into_iter().zip(own.as_object()).for_each(|(line, own)| line.extend(own.clone()));
    }
    println!("{line}");
}
