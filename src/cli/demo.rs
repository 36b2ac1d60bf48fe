//! `ctscribe demo`.

use std::path::PathBuf;

use crate::Result;
use crate::demo::{Demo, NOTICE};
use crate::device::DeviceName;
use crate::train::peak_memory_mib;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where everything goes.
    #[arg(long, default_value = "ctscribe-demo", value_name = "FOLDER")]
    out: PathBuf,
    /// A short run: shows that everything works, learns little.
    #[arg(long)]
    quick: bool,
    /// Real scans to write a report for at the end (with a model that has seen phantoms only).
    #[arg(long, value_name = "SCAN")]
    scan: Vec<PathBuf>,
    /// Overrides one key of the preset `phantom`, in YAML.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where models lie and are computed: cpu, or cuda:N.
    #[arg(long, value_name = "cpu|cuda:N")]
    device: Option<DeviceName>,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let outcome = Demo { out: self.out.clone(), quick: self.quick, scans: self.scan, set: self.set, device: self.device }.run()?;
        println!("{}", outcome.comparison);
        println!("report-to-volume retrieval among {} held-out phantoms", outcome.retrieval.volumes);
        for (k, recall) in &outcome.retrieval.recall_at {
            println!("  R@{k:<4} {recall:.3}   (chance {:.3})", outcome.retrieval.chance_at[k]);
        }
        for report in &outcome.reports {
            println!("\n# {}\n{}", report.path.display(), report.text);
            report.warnings.iter().for_each(|warning| println!("  warning: {warning}"));
        }
        println!();
        for (step, seconds) in &outcome.seconds {
            println!("{step:<26} {seconds:7.1} s");
        }
        let total: f64 = outcome.seconds.iter().map(|(_, seconds)| seconds).sum();
        println!("{:<26} {total:7.1} s", "in all");
        if let Some(peak) = peak_memory_mib() {
            println!("{:<26} {peak:7} MiB", "peak memory");
        }
        println!("\n{NOTICE}\nlook at {}", outcome.page.display());
        println!("then: ctscribe generate SCAN --run {}", self.out.join("run").display());
        Ok(())
    }
}
