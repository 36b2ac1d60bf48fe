//! Are these voxels Hounsfield units already? Decided from voxels, header and CSV together.
//!
//! CT-RATE v2 files hold Hounsfield units while the metadata still lists the DICOM slope and intercept; rescaling them again destroys
//! the volume (CT-CLIP issue 50).

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

use super::Volume;

/// A metadata CSV's RescaleSlope and RescaleIntercept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CsvRescale {
    /// RescaleSlope.
    pub slope: f64,
    /// RescaleIntercept.
    pub intercept: f64,
}

/// What is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HuPolicy {
    /// Voxels, header and CSV together; a contradiction is refused.
    Auto,
    /// The file's own scaling, nothing else.
    Header,
    /// The file's scaling, then the CSV's slope and intercept (CT-CLIP's scripts).
    HeaderThenCsv,
    /// The file's scaling, then the CSV's intercept only (the reference's script).
    HeaderThenCsvIntercept,
}

/// What was decided, and on what evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HuVerdict {
    /// `already_hu`, `rescaled_by_csv` or `by_policy`.
    pub decision: String,
    /// What the voxels looked like.
    pub evidence: String,
}

/// Shares of a volume's voxels that a chest CT in Hounsfield units must have.
#[derive(Debug, Clone, Copy)]
struct Profile {
    /// In [-1100, -700]: air and lung.
    air: f64,
    /// In [-200, 200]: fat, water, muscle, blood.
    tissue: f64,
    /// In (200, 4000]: bone, contrast.
    dense: f64,
    minimum: f32,
    maximum: f32,
}

impl Profile {
    fn of(values: &[f32], rescale: impl Fn(f32) -> f32) -> Self {
        let (mut air, mut tissue, mut dense, mut seen) = (0usize, 0usize, 0usize, 0usize);
        let (mut minimum, mut maximum) = (f32::INFINITY, f32::NEG_INFINITY);
        let step = (values.len() / 2_000_000).max(1);
        for value in values.iter().step_by(step) {
            let value = rescale(*value);
            (minimum, maximum) = (minimum.min(value), maximum.max(value));
            seen += 1;
            air += usize::from((-1100.0..=-700.0).contains(&value));
            tissue += usize::from((-200.0..=200.0).contains(&value));
            dense += usize::from(value > 200.0 && value <= 4000.0);
        }
        let share = |count: usize| count as f64 / seen.max(1) as f64;
        Profile { air: share(air), tissue: share(tissue), dense: share(dense), minimum, maximum }
    }

    /// Air or lung, soft tissue, and less bone than soft tissue.
    fn plausible(&self) -> bool {
        self.air >= 0.02 && self.tissue >= 0.08 && self.dense < self.tissue
    }

    fn tell(&self) -> String {
        let percent = |share: f64| 100.0 * share;
        format!(
            "{:.1}% air or lung, {:.1}% soft tissue, {:.1}% bone, range {:.0} to {:.0}",
            percent(self.air),
            percent(self.tissue),
            percent(self.dense),
            self.minimum,
            self.maximum
        )
    }
}

/// Brings the volume to Hounsfield units as `policy` says, and tells how it was decided.
pub fn apply_policy(volume: &mut Volume, csv: Option<CsvRescale>, policy: HuPolicy) -> Result<HuVerdict> {
    let identity = CsvRescale { slope: 1.0, intercept: 0.0 };
    let rescale = match policy {
        HuPolicy::Auto => return decide(volume, csv),
        HuPolicy::Header => identity,
        HuPolicy::HeaderThenCsv | HuPolicy::HeaderThenCsvIntercept => csv.ok_or_else(|| missing(volume))?,
    };
    let rescale = if policy == HuPolicy::HeaderThenCsvIntercept { CsvRescale { slope: 1.0, ..rescale } } else { rescale };
    apply(volume, rescale);
    let profile = Profile::of(&volume.values, |value| value);
    Ok(HuVerdict { decision: "by_policy".to_string(), evidence: format!("{policy:?}: {}", profile.tell()) })
}

fn missing(volume: &Volume) -> Error {
    Error::field(&volume.path, "RescaleSlope", "the policy wants the metadata's slope and intercept, and there is no row")
}

fn apply(volume: &mut Volume, CsvRescale { slope, intercept }: CsvRescale) {
    if (slope, intercept) != (1.0, 0.0) {
        volume.values.iter_mut().for_each(|value| *value = (slope * f64::from(*value) + intercept) as f32);
    }
}

fn decide(volume: &mut Volume, csv: Option<CsvRescale>) -> Result<HuVerdict> {
    let as_is = Profile::of(&volume.values, |value| value);
    let usable = csv.filter(|csv| csv.slope.is_finite() && csv.slope != 0.0 && csv.intercept.is_finite());
    let other = usable.filter(|csv| (csv.slope, csv.intercept) != (1.0, 0.0));
    let rescaled = other.map(|csv| Profile::of(&volume.values, |value| (csv.slope * f64::from(value) + csv.intercept) as f32));
    let rows = other.map_or_else(String::new, |csv| format!(" (metadata: slope {}, intercept {})", csv.slope, csv.intercept));
    match (as_is.plausible(), rescaled.filter(Profile::plausible), other) {
        (true, None, _) => Ok(HuVerdict { decision: "already_hu".to_string(), evidence: format!("as stored: {}{rows}", as_is.tell()) }),
        (false, Some(profile), Some(csv)) => {
            apply(volume, csv);
            Ok(HuVerdict { decision: "rescaled_by_csv".to_string(), evidence: format!("rescaled: {}{rows}", profile.tell()) })
        }
        (fits, _, _) => {
            let found = rescaled.map_or_else(String::new, |profile| format!("; rescaled: {}", profile.tell()));
            let reason =
                if fits { "both readings look like Hounsfield units" } else { "no reading looks like Hounsfield units of a chest" };
            let what = format!("{reason}{rows}: as stored {}{found}; say which with volume.hounsfield", as_is.tell());
            Err(Error::field(&volume.path, "Hounsfield units", what))
        }
    }
}
