//! `ctscribe phantom`.

use std::fs;
use std::path::{Path, PathBuf};

use ctscribe_ops::Format;

use crate::config::Config;
use crate::data::phantom::{PhantomConfig, write_dataset};
use crate::decoder::LlamaConfig;
use crate::train::Progress;
use crate::weights::{Mix, Source, copy_files, write_aside, write_gguf, write_shards};
use crate::{Error, Result};

use super::run::three;

/// Arguments of `phantom`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the dataset goes, in CT-RATE's layout; with --weights, the model's folder, in Hugging Face's.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Training scans.
    #[arg(long, default_value_t = 200)]
    train: usize,
    /// Held-out scans.
    #[arg(long, default_value_t = 40)]
    valid: usize,
    /// Nominal spacing in mm along z, y, x.
    #[arg(long, value_delimiter = ',', num_args = 1..=3, value_name = "Z,Y,X")]
    spacing_mm: Option<Vec<f64>>,
    /// Where every random number comes from.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Writes random weights of a model's exact shapes instead of scans: llama2-7b, llama-1b or llama-tiny.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["train", "valid", "spacing_mm"])]
    weights: Option<String>,
    /// The weights' type.
    #[arg(long, value_name = "TYPE", default_value = "bf16", requires = "weights")]
    format: WeightFormat,
    /// Fewer layers than the model has.
    #[arg(long, value_name = "NUMBER", requires = "weights")]
    layers: Option<usize>,
    /// A folder whose tokenizer is put beside the weights.
    #[arg(long, value_name = "FOLDER", requires = "weights")]
    tokenizer: Option<PathBuf>,
}

/// Types of weights: safetensors in the first three, GGUF in the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WeightFormat {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE; drawn weights are those of a bf16 model, as LLaMA2's are.
    F16,
    /// 16 bits with f32's exponent.
    Bf16,
    /// GGUF, 8 bits.
    #[value(name = "Q8_0")]
    Q8_0,
    /// GGUF, llama.cpp's mix of 4 and 6 bits.
    #[value(name = "Q4_K_M")]
    Q4KM,
}

impl WeightFormat {
    /// Writes a model of `sizes` to `folder`, its configuration beside it.
    pub(super) fn write(self, folder: &Path, sizes: &LlamaConfig, sources: &[Source]) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let config = folder.join("config.json");
        write_aside(&config, format!("{:#}\n", sizes.json(1, 2)).as_bytes())?;
        let heads = (sizes.num_attention_heads, sizes.kv_heads());
        let gguf = |mix: Mix, name: &str| -> Result<Vec<PathBuf>> {
            let path = folder.join(name);
            write_gguf(&path, sources, &sizes.gguf(), mix, heads)?;
            Ok(vec![path])
        };
        let mut files = match self {
            WeightFormat::F32 => write_shards(folder, sources, Format::F32, SHARD)?,
            WeightFormat::F16 => write_shards(folder, sources, Format::F16, SHARD)?,
            WeightFormat::Bf16 => write_shards(folder, sources, Format::Bf16, SHARD)?,
            WeightFormat::Q8_0 => gguf(Mix::Q8_0, "model.Q8_0.gguf")?,
            WeightFormat::Q4KM => gguf(Mix::Q4KM, "model.Q4_K_M.gguf")?,
        };
        files.push(config);
        Ok(files)
    }
}

/// Bytes of a shard: as transformers cut LLaMA-2-7B.
const SHARD: usize = 10_000_000_000;

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match &self.weights {
            Some(model) => self.write_weights(model),
            None => self.write_scans(),
        }
    }

    fn write_weights(&self, model: &str) -> Result<()> {
        let mut sizes = LlamaConfig::named(model)?;
        sizes.num_hidden_layers = self.layers.unwrap_or(sizes.num_hidden_layers);
        let published = |source: Source<'static>| if self.format == WeightFormat::F16 { source.bf16_in_f16() } else { source };
        let sources = sizes.tensors().into_iter().map(|(name, shape, std)| Ok(published(Source::random(name, shape, std, self.seed)?)));
        let files = self.format.write(&self.out, &sizes, &sources.collect::<Result<Vec<_>>>()?)?;
        if let Some(folder) = &self.tokenizer {
            copy_files(folder, &self.out, &["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])?;
        }
        files.iter().for_each(|file| println!("{}", file.display()));
        Ok(())
    }

    fn write_scans(self) -> Result<()> {
        let preset = Config::load("phantom", &[])?;
        let own = preset.phantoms.ok_or_else(|| Error::Invalid("the preset `phantom` draws no phantoms".to_string()))?;
        let mut config = PhantomConfig { train: self.train, valid: self.valid, seed: self.seed, ..own };
        if let Some(spacing) = self.spacing_mm {
            config.spacing_mm = three("--spacing-mm", &spacing)?;
        }
        let faults = config.faults("phantom");
        if !faults.is_empty() {
            return Err(Error::Config { source_name: "the command line".to_string(), faults });
        }
        let progress = Progress::new("phantom", (self.train + self.valid) as u64);
        write_dataset(&self.out, &config, |done| progress.at(done as u64, ""))?;
        progress.finish("");
        println!("{} scans in {}", self.train + self.valid, self.out.display());
        Ok(())
    }
}
