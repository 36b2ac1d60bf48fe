//! `ctscribe phantom`.

use std::path::PathBuf;

use crate::config::Config;
use crate::data::phantom::{PhantomConfig, write_dataset};
use crate::train::Progress;
use crate::{Error, Result};

/// Arguments of `phantom`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the dataset goes, in CT-RATE's layout.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Training scans.
    #[arg(long, default_value_t = 200)]
    train: usize,
    /// Held-out scans.
    #[arg(long, default_value_t = 40)]
    valid: usize,
    /// Nominal spacing in mm along z, y, x.
    #[arg(long, value_delimiter = ',', num_args = 3, value_name = "Z,Y,X")]
    spacing_mm: Option<Vec<f64>>,
    /// Where every random number comes from.
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let preset = Config::load("phantom", &[])?;
        let own = preset.phantoms.ok_or_else(|| Error::Invalid("the preset `phantom` draws no phantoms".to_string()))?;
        let mut config = PhantomConfig { train: self.train, valid: self.valid, seed: self.seed, ..own };
        if let Some(spacing) = self.spacing_mm {
            config.spacing_mm = [spacing[0], spacing[1], spacing[2]];
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
