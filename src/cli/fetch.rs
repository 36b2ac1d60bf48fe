//! `ctscribe fetch`.

use std::str::FromStr;

use clap::ValueEnum;

use crate::Result;
use crate::data::{HubFetch, HubPlan, Part, Preparation};
use crate::ranks::Alone;
use crate::weights::hub::Hub;

use super::prepare::{HowArgs, carry_out};

/// Arguments of `fetch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The dataset.
    #[arg(long, default_value = "ct-rate")]
    source: SourceArg,
    /// Which part of it.
    #[arg(long, default_value = "valid")]
    split: PartArg,
    /// The first so many studies of the part, by name.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// What the cache and the downloads under way may take together: `20GB`, `500MB`, `1.5TB` (powers of ten), `20GiB` (of two).
    #[arg(long, value_name = "SIZE", default_value = "20GB")]
    disk_budget: Size,
    /// Branch, tag or commit of the dataset's repository.
    #[arg(long, value_name = "NAME", default_value = "main")]
    revision: String,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SourceArg {
    /// CT-RATE on the Hugging Face hub (gated: its page says what to accept).
    CtRate,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PartArg {
    /// The training patients.
    Train,
    /// The official validation patients: the test set.
    Valid,
    /// Both.
    All,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let (config, hub) = (self.how.config()?, Hub::from_env()?);
        let parts: &[Part] = match (self.source, self.split) {
            (SourceArg::CtRate, PartArg::Train) => &[Part::Train],
            (SourceArg::CtRate, PartArg::Valid) => &[Part::Valid],
            (SourceArg::CtRate, PartArg::All) => &Part::ALL,
        };
        let plan = HubPlan { parts, limit: self.limit, revision: &self.revision, config: &config.data, seed: config.seed };
        let root = self.how.out.as_path();
        let mut dataset = plan.dataset(&hub, root)?;
        self.how.attach_texts(&config, &mut dataset)?.iter().for_each(|line| eprintln!("{line}"));
        let supply = HubFetch::new(&hub, &self.revision, (root, &config.volume), self.disk_budget.0)?;
        let workers = self.how.workers()?;
        let preparation = Preparation { dataset: &dataset, config: &config.volume, root, supply: &supply, workers, ranks: &Alone };
        carry_out(&preparation, "fetch and prepare")
    }
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        const UNITS: [(&str, f64); 9] = [
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("TiB", 1_099_511_627_776.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("TB", 1e12),
            ("B", 1.0),
        ];
        let wrong = || format!("{text}: expected a number with a unit, such as 20GB");
        let lower = text.trim().to_lowercase();
        let (unit, size) = UNITS.iter().find(|(unit, _)| lower.ends_with(&unit.to_lowercase())).ok_or_else(wrong)?;
        let number = lower[..lower.len() - unit.len()].trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
        Ok(Size((number.ok_or_else(wrong)? * size) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in
            [("20GB", 20_000_000_000), ("1.5 TB", 1_500_000_000_000), ("2GiB", 2_147_483_648), ("500mb", 500_000_000), ("7B", 7)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for wrong in ["20", "GB", "-1GB", "nanGB", "20 apples"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
