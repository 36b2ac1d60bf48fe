//! `ctscribe bench`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde_json::json;

use crate::bench::{DecodeOptions, Measured, StepOptions, decode, encode, lora_step, prefill, prepare_file, text_encoder, train_encoder};
use crate::{Error, Result};

/// Arguments of `bench`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    work: Work,
    /// Runs on the clock, after one to warm up.
    #[arg(long, global = true, default_value_t = 5, value_name = "NUMBER")]
    runs: usize,
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
    TextEncoder,
}

fn voxels(shape: &[usize]) -> Result<[usize; 3]> {
    let wrong = |_| Error::Config {
        source_name: "the command line".to_string(),
        faults: vec![format!("--shape: {shape:?}; expected three sizes, as in 240,480,480")],
    };
    shape.try_into().map_err(wrong)
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let runs = self.runs;
        let (name, tokens, measured) = match self.work {
            Work::LoraStep { base, visual, prompt, text, batch, recompute, targets } => {
                let options = StepOptions { visual, prompt, text, batch, recompute, targets, runs };
                ("lora-step", batch * (visual + prompt + text), lora_step(&base, &options)?)
            }
            Work::Decode { base, prompt, new } => ("decode", new, decode(&base, &DecodeOptions { prompt, new, runs })?),
            Work::Prefill { base, prompt } => ("prefill", prompt, prefill(&base, &DecodeOptions { prompt, new: 0, runs })?),
            Work::Encode { shape, train: false, .. } => ("encode", 1, encode(voxels(&shape)?, runs)?),
            Work::Encode { shape, recompute, .. } => ("train-encoder", 1, train_encoder(voxels(&shape)?, recompute, runs)?),
            Work::Prepare { scan } => ("prepare", 1, prepare_file(&scan, [240, 480, 480], runs)?),
            Work::TextEncoder => ("text-encoder", 64, text_encoder(64, 40, runs)?),
        };
        print(name, tokens, &measured);
        Ok(())
    }
}

/// One line of JSON, as the peers' scripts print.
fn print(name: &str, items: usize, measured: &Measured) {
    let mut line = json!({"bench": name, "items": items, "items_per_s": items as f64 / measured.median_s});
    let own = json!(measured);
    line.as_object_mut().into_iter().zip(own.as_object()).for_each(|(line, own)| line.extend(own.clone()));
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_three_numbers_with_commas_or_spaces() {
        let sizes = |arguments: &[&str]| {
            let Work::Encode { shape, .. } = Args::try_parse_from(arguments).unwrap().work else { panic!("another command") };
            voxels(&shape)
        };
        for shape in [&["160,320,320"] as &[&str], &["160", "320", "320"]] {
            assert_eq!(sizes(&[&["bench", "encode", "--shape"], shape].concat()).unwrap(), [160, 320, 320]);
        }
        assert_eq!(sizes(&["bench", "encode"]).unwrap(), [240, 480, 480]);
        assert!(sizes(&["bench", "encode", "--shape", "160,320"]).unwrap_err().to_string().contains("240,480,480"));
    }
}
