//! Phantoms: chest CTs drawn by rule, with findings, their reports and the truth of both, in CT-RATE's layout. They show whether
//! training works before any patient's scan is at hand; they are no substitute for one.

mod anatomy;
mod canvas;
mod dataset;
mod lesions;
mod lung_lesions;
mod noise;
mod report;
mod wording;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::text::FINDINGS;
use crate::volume::Volume;

use anatomy::Anatomy;
use canvas::Canvas;
use lesions::Scene;

pub use dataset::write_dataset;

/// How often each finding is drawn in phantoms with any, in the order of [`FINDINGS`]: rare enough that answering "always" scores low.
const PREVALENCE: [f64; 18] = [0.28, 0.30, 0.30, 0.28, 0.28, 0.26, 0.28, 0.28, 0.28, 0.32, 0.28, 0.28, 0.30, 0.25, 0.25, 0.28, 0.25, 0.25];
/// Share of phantoms without any finding.
const NORMAL_SHARE: f64 = 0.06;
/// What the whole chest takes (z, y, x): a finding outside the scan would be told and not seen.
const LEAST_FIELD_OF_VIEW: [f64; 3] = [270.0, 240.0, 300.0];
/// The first scan of the validation split; far beyond the last one of the training split.
const FIRST_VALID: u64 = 1 << 40;

/// What a set of phantoms is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhantomConfig {
    /// Scans of the training split.
    pub train: usize,
    /// Scans of the validation split.
    pub valid: usize,
    /// Nominal distance of voxel centres (z, y, x); each scan's differs by up to a tenth.
    pub spacing_mm: [f64; 3],
    /// What the scan covers (z, y, x).
    pub field_of_view_mm: [f64; 3],
    /// The findings that are drawn, by their names.
    pub findings: Vec<String>,
    /// Of everything random.
    pub seed: u64,
}

impl PhantomConfig {
    /// The findings that a small model can learn from small phantoms: all but mosaic attenuation, peribronchial thickening,
    /// bronchiectasis and interlobular septal thickening, which coarse voxels do not resolve.
    pub fn default_findings() -> Vec<String> {
        FINDINGS.iter().enumerate().filter(|(index, _)| ![13, 14, 16, 17].contains(index)).map(|(_, name)| name.to_string()).collect()
    }

    /// What is wrong with it, a line each, by the key that it stands under.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, count) in [("train", self.train), ("valid", self.valid)] {
            if count == 0 {
                faults.push(format!("{key}.{name}: must be at least 1"));
            }
        }
        for (index, axis) in ["z", "y", "x"].iter().enumerate() {
            let (spacing, extent, least) = (self.spacing_mm[index], self.field_of_view_mm[index], LEAST_FIELD_OF_VIEW[index]);
            if !(0.5..=8.0).contains(&spacing) {
                faults.push(format!("{key}.spacing_mm: {spacing} along {axis} is not between 0.5 and 8"));
            }
            if !(least..=600.0).contains(&extent) {
                faults.push(format!("{key}.field_of_view_mm: {extent} along {axis} is not between {least} and 600"));
            }
        }
        for (index, name) in self.findings.iter().enumerate() {
            if !FINDINGS.contains(&name.as_str()) {
                faults.push(format!("{key}.findings: {name:?} is none of {}", FINDINGS.join(", ")));
            } else if self.findings[..index].contains(name) {
                faults.push(format!("{key}.findings: {name:?} is listed twice"));
            }
        }
        faults
    }

    fn draws(&self, finding: usize) -> bool {
        self.findings.iter().any(|name| name == FINDINGS[finding])
    }
}

/// The patient's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The patient's right.
    Right,
    /// The patient's left.
    Left,
}

impl Side {
    /// The sign of x, which points to the patient's left.
    fn sign(self) -> f64 {
        match self {
            Side::Right => -1.0,
            Side::Left => 1.0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Side::Right => "right",
            Side::Left => "left",
        }
    }
}

/// A lobe of a lung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lobe {
    /// Upper.
    Upper,
    /// Middle, on the right only.
    Middle,
    /// Lower.
    Lower,
}

impl Lobe {
    fn name(self) -> &'static str {
        match self {
            Lobe::Upper => "upper",
            Lobe::Middle => "middle",
            Lobe::Lower => "lower",
        }
    }
}

/// Something abnormal, as it was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesion {
    /// Which of [`FINDINGS`].
    pub finding: usize,
    /// Where: a structure of `structures.yaml`.
    pub structure: String,
    /// On which side, if on one.
    pub side: Option<Side>,
    /// In which lobe, if in one.
    pub lobe: Option<Lobe>,
    /// Its size as the report tells it (a diameter, a thickness), or about its extent.
    pub size_mm: f64,
    /// The first voxel (z, y, x) of the box round what was painted.
    pub first: [usize; 3],
    /// One past its last voxel.
    pub end: [usize; 3],
}

/// A drawn scan, its report and the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Phantom {
    /// Hounsfield units, (z, y, x) with x fastest.
    pub values: Vec<i16>,
    /// Voxels (z, y, x).
    pub shape: [usize; 3],
    /// Distance of voxel centres (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Voxel (x, y, z) to scanner millimetres, right-anterior-superior; x = 0 is the patient's midline.
    pub affine: [[f64; 4]; 3],
    /// Which of [`FINDINGS`] were drawn.
    pub labels: [bool; 18],
    /// What was drawn, and where.
    pub lesions: Vec<Lesion>,
    /// The report's findings.
    pub findings: String,
    /// The report's impression.
    pub impression: String,
}

/// What a phantom is drawn from: scans of a patient share the anatomy, reconstructions of a scan all but noise and sharpness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    patient: u64,
    scan: u64,
    reconstruction: u64,
}

impl Source {
    /// An independent stream of random numbers for each purpose.
    fn rng(seed: u64, index: u64, purpose: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index.wrapping_mul(16).wrapping_add(purpose));
        rng
    }
}

/// The phantom of this seed and index: the same each time.
pub fn draw(seed: u64, index: u64, config: &PhantomConfig) -> Phantom {
    draw_source(seed, Source { patient: index, scan: index, reconstruction: 0 }, config)
}

fn draw_source(seed: u64, source: Source, config: &PhantomConfig) -> Phantom {
    let labels = draw_labels(config, &mut Source::rng(seed, source.scan, 1));
    draw_with(seed, source, config, labels)
}

fn draw_labels(config: &PhantomConfig, rng: &mut ChaCha8Rng) -> [bool; 18] {
    let normal = rng.random_bool(NORMAL_SHARE);
    // A number for each finding, drawn or not: leaving one out changes no other.
    let chosen: [bool; 18] = std::array::from_fn(|finding| rng.random_bool(PREVALENCE[finding]));
    std::array::from_fn(|finding| !normal && chosen[finding] && config.draws(finding))
}

fn draw_with(seed: u64, source: Source, config: &PhantomConfig, labels: [bool; 18]) -> Phantom {
    let anatomy = Anatomy::draw(&mut Source::rng(seed, source.patient, 0));
    let mut rng = Source::rng(seed, source.scan, 2);
    let grid = Anatomy::grid(config, &mut rng);
    let mut scene = Scene { canvas: Canvas::new(grid), anatomy, rng, lesions: Vec::new(), free_lobes: lobes() };
    scene.free_lobes.shuffle(&mut scene.rng);
    scene.paint(&labels);

    let mut rng = Source::rng(seed, source.scan, 4 + source.reconstruction);
    let (softness, sigma_hu) = (rng.random_range(0.0..0.12), rng.random_range(10.0..26.0));
    let Scene { mut canvas, lesions, .. } = scene;
    let values = noise::develop(&mut canvas.values, grid.shape, softness, sigma_hu, &mut rng);

    let report::Report { findings, impression } =
        report::write(&labels, &lesions, anatomy.female(), &mut Source::rng(seed, source.scan, 3));
    let [z, y, x] = grid.origin_mm;
    let affine = Volume::lps_affine(grid.spacing_mm, [-x, -y, z]);
    Phantom { values, shape: grid.shape, spacing_mm: grid.spacing_mm, affine, labels, lesions, findings, impression }
}

fn lobes() -> Vec<(Side, Lobe)> {
    let right = [Lobe::Upper, Lobe::Middle, Lobe::Lower].map(|lobe| (Side::Right, lobe));
    right.into_iter().chain([Lobe::Upper, Lobe::Lower].map(|lobe| (Side::Left, lobe))).collect()
}

#[cfg(test)]
mod tests;
