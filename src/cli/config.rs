//! `ctscribe config`.

use clap::{Parser, Subcommand};

use crate::Result;
use crate::config::Config;

/// Arguments of `config`.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Names of the presets.
    List,
    /// A configuration with every key resolved.
    Show(Which),
    /// Every fault of a configuration at once.
    Check(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// A preset's name or a YAML file.
    #[arg(value_name = "NAME|FILE")]
    config: String,
    /// Overrides one key, in YAML.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::List => Config::presets().for_each(|name| println!("{name}")),
            Action::Show(which) => print!("{}", Config::load(&which.config, &which.set)?.to_yaml()?),
            Action::Check(which) => {
                let config = Config::load(&which.config, &which.set)?;
                println!("{}: no fault; sha256 {}", which.config, config.sha256()?);
            }
        }
        Ok(())
    }
}
