//! What commands that work on a run folder share.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::config::Config;
use crate::data::Cache;
use crate::device::DeviceName;
use crate::generate::DecoderKind;
use crate::text::Labeller;
use crate::weights::write_aside;
use crate::{Error, Result};

/// A run and the cache that it works on.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The cache of prepared volumes (`ctscribe prepare`).
    #[arg(long, value_name = "FOLDER")]
    pub data: PathBuf,
    /// The run's folder; made if absent.
    #[arg(long, value_name = "FOLDER")]
    pub run: PathBuf,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// A preset's name or a YAML file; a run that has begun keeps its own.
    #[arg(long, value_name = "NAME|FILE")]
    pub config: Option<String>,
    /// Overrides one key, in YAML: `--set llama.lora.r=8`.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Where this call works.
#[derive(Debug, Clone, Copy, Args)]
pub struct DeviceArg {
    /// Where models lie and are computed in this call: cpu, or cuda:N (several ranks of a machine: from N on). Default: the
    /// configuration's `device`.
    #[arg(long, value_name = "cpu|cuda:N")]
    device: Option<DeviceName>,
}

impl DeviceArg {
    /// `config` with this call's device, which must be there.
    pub fn over(self, config: Config) -> Result<Config> {
        let config = Config { device: self.device.unwrap_or(config.device), ..config };
        config.device.open()?;
        Ok(config)
    }
}

/// The decoder, as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DecoderArg {
    /// LLaMA with LoRA.
    Llama,
    /// BERT with cross-attention.
    Bert,
}

impl From<DecoderArg> for DecoderKind {
    fn from(decoder: DecoderArg) -> Self {
        match decoder {
            DecoderArg::Llama => DecoderKind::Llama,
            DecoderArg::Bert => DecoderKind::Bert,
        }
    }
}

/// Who reads findings out of reports.
#[derive(Debug, Args)]
pub struct LabellerArgs {
    /// Who reads the 18 findings out of a report.
    #[arg(long, default_value = "rules")]
    labeller: LabellerArg,
    /// RadBERT's folder, as `weights fetch radbert-classifier` leaves it.
    #[arg(long, value_name = "FOLDER", default_value = "weights/radbert-classifier")]
    weights: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LabellerArg {
    /// The program's own rules.
    Rules,
    /// CT-CLIP's RadBERT classifier, which made CT-RATE's label files.
    Radbert,
}

impl LabellerArgs {
    /// The labeller, loaded.
    pub fn open(&self) -> Result<Labeller> {
        match self.labeller {
            LabellerArg::Rules => Ok(Labeller::Rules),
            LabellerArg::Radbert => Labeller::radbert(&self.weights),
        }
    }
}

/// The configuration of a run: its own `config.yaml`, or the given one, which is then written there.
pub fn run_config(run: &Path, args: &ConfigArgs) -> Result<Config> {
    let own = run.join("config.yaml");
    let given = args.config.as_ref().map(|name| Config::load(name, &args.set)).transpose()?;
    if own.is_file() {
        let config = Config::of_run(run)?;
        let given = given.map(|given| Config { device: config.device, ..given });
        let changed = given.as_ref().is_some_and(|given| *given != config) || (given.is_none() && !args.set.is_empty());
        if changed {
            return Err(Error::file(&own, "the run has begun with other keys than --config and --set give; take another run folder"));
        }
        return Ok(config);
    }
    let config = given.ok_or_else(|| Error::file(run, "no run yet: give --config (a preset or a file)"))?;
    std::fs::create_dir_all(run).map_err(|e| Error::io(run, e))?;
    write_aside(&own, config.to_yaml()?.as_bytes())?;
    Ok(config)
}

/// Opens a run that exists, and its cache.
pub fn open(args: &RunArgs) -> Result<(Config, Cache)> {
    Ok((Config::of_run(&args.run)?, Cache::open(&args.data)?))
}

/// A value as one line of JSON on stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print!("{}", json_line(value)?);
    Ok(())
}

/// A value as one line of JSON.
pub fn json_line(value: &impl serde::Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map_err(|e| Error::Invalid(format!("the result cannot be written as JSON: {e}")))?;
    Ok(text + "\n")
}

/// All faults of a listing on stderr, and the error that counts them.
pub fn some_failed(failed: &[(String, String)], total: usize) -> Result<()> {
    failed.iter().for_each(|(name, why)| eprintln!("{name}: {why}"));
    match failed.len() {
        0 => Ok(()),
        count => {
            let list = failed.iter().take(20).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            Err(Error::SomeFailed { failed: count, total, list })
        }
    }
}

/// The three numbers of an argument, given as `a,b,c` or `a b c`.
pub fn three<T: Copy + std::fmt::Debug>(name: &str, values: &[T]) -> Result<[T; 3]> {
    values.try_into().map_err(|_| Error::Invalid(format!("{name}: {values:?}; expected three numbers")))
}
