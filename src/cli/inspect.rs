//! `ctscribe inspect`.

use std::path::PathBuf;

use crate::error::chain;
use crate::volume;
use crate::{Error, Result};

use super::run::print_json;

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NIfTI files, DICOM folders, or trees of them.
    #[arg(required = true, value_name = "SCAN")]
    scans: Vec<PathBuf>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let scans = volume::find_scans(&self.scans)?;
        let mut failed = Vec::new();
        for scan in &scans {
            match volume::inspect(scan, None) {
                Ok(inspection) if self.json => print_json(&inspection)?,
                Ok(inspection) => println!("{inspection}"),
                Err(error) => {
                    eprintln!("error: {}", chain(&error));
                    failed.push(scan.display().to_string());
                }
            }
        }
        match failed.len() {
            0 => Ok(()),
            count => Err(Error::SomeFailed { failed: count, total: scans.len(), list: failed.join(", ") }),
        }
    }
}
