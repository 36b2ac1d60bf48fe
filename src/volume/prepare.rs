//! From a scan to a model's input: resampling, windowing, cropping.
//!
//! The one exception to (z, y, x): CT-CLIP reads NIfTI's axes (i, j, k) as (height, width, frames), so its input is (1, k, i, j). Keys of
//! the configuration that name three axes follow that order: z, then x, then y.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

use super::hounsfield::HuPolicy;
use super::orient::Orientation;
use super::{Volume, to_mm};

/// How a volume is prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparationConfig {
    /// How axes are brought to lie.
    pub orientation: Orientation,
    /// How Hounsfield units are decided.
    pub hounsfield: HuPolicy,
    /// Whose spacing is believed.
    pub spacing: SpacingSource,
    /// Target spacing in mm along (z, x, y).
    pub target_spacing_mm: [f64; 3],
    /// Target voxels along (z, x, y): centre-cropped or padded.
    pub target_shape: [usize; 3],
    /// Values are clipped to this range of Hounsfield units.
    pub clip_hu: [f64; 2],
    /// When they are clipped.
    pub clip: Clip,
    /// This range becomes [-1, 1]; null: Hounsfield units over 1000.
    pub window_hu: Option<[f64; 2]>,
    /// What padding holds, after windowing.
    pub pad: f64,
    /// Order of the output's axes.
    pub layout: Layout,
}

/// Whose spacing is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpacingSource {
    /// The file's, where the metadata CSV says the same or nothing; the CSV's where the file says 1 mm each way, as CT-RATE v1's useless headers do.
    /// Another contradiction is refused.
    Auto,
    /// The file's.
    Header,
    /// The metadata CSV's (CT-CLIP's scripts; v1 files have useless headers).
    Csv,
}

/// When values are clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// CT-CLIP's inference script.
    BeforeResampling,
    /// CT-CLIP's training script.
    AfterResampling,
}

/// Order of the output's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// (1, z, x, y), CT-CLIP's.
    Zxy,
    /// (1, z, y, x), the reference's, which swaps the last two axes at the end.
    Zyx,
}

impl PreparationConfig {
    /// The output's shape (D, H, W).
    pub fn shape(&self) -> [usize; 3] {
        let [z, x, y] = self.target_shape;
        match self.layout {
            Layout::Zxy => [z, x, y],
            Layout::Zyx => [z, y, x],
        }
    }

    /// The Hounsfield units that -1 and 1 stand for.
    pub fn range_hu(&self) -> [f64; 2] {
        self.window_hu.unwrap_or([-1000.0, 1000.0])
    }

    /// Faults of these numbers, named by `key`.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.target_spacing_mm.iter().any(|spacing| !(spacing.is_finite() && *spacing > 0.0)) {
            faults.push(format!("{key}.target_spacing_mm: {:?}; expected positive numbers", self.target_spacing_mm));
        }
        if self.target_shape.contains(&0) {
            faults.push(format!("{key}.target_shape: {:?} has an axis without voxels", self.target_shape));
        }
        for (name, range) in [("clip_hu", Some(self.clip_hu)), ("window_hu", self.window_hu)] {
            if range.is_some_and(|[low, high]| low.is_nan() || high.is_nan() || low >= high) {
                faults.push(format!("{key}.{name}: {range:?}; expected a lower and a higher bound"));
            }
        }
        faults
    }
}

/// A prepared volume.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// (1, D, H, W), f32.
    pub tensor: Tensor,
    /// Where its voxels lie in the scan.
    pub geometry: Geometry,
}

/// Where a prepared volume's voxels lie in the scan, axis by axis in the order (z, x, y).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// Resampled voxel of the prepared volume's first voxel (negative: padding).
    pub first: [i64; 3],
    /// Scan voxels a resampled voxel.
    pub ratio: [f64; 3],
    /// Resampled voxels before cropping.
    pub resampled: [usize; 3],
    /// The scan's affine.
    pub affine: [[f64; 4]; 3],
    /// Order of the prepared axes.
    pub layout: Layout,
}

impl Geometry {
    /// The box of prepared voxels `first..end` (each (d, h, w)) in scanner millimetres (right, anterior, superior): lower and upper corner.
    pub fn box_mm(&self, first: [usize; 3], end: [usize; 3]) -> [[f64; 3]; 2] {
        let edge = |at: [usize; 3]| -> [f64; 3] {
            let [z, x, y] = match self.layout {
                Layout::Zxy => at,
                Layout::Zyx => [at[0], at[2], at[1]],
            };
            let source = |axis: usize, index: usize| (index as f64 + self.first[axis] as f64) * self.ratio[axis] - 0.5;
            to_mm(&self.affine, [source(1, x), source(2, y), source(0, z)])
        };
        let (a, b) = (edge(first), edge(end));
        [[0, 1, 2].map(|axis| a[axis].min(b[axis])), [0, 1, 2].map(|axis| a[axis].max(b[axis]))]
    }
}

/// One axis of the output: which source voxels an output voxel mixes, and how; `None`: padding.
struct Axis {
    taps: Vec<Option<(usize, usize, f64)>>,
    first: i64,
    ratio: f64,
    resampled: usize,
}

impl Axis {
    fn new(count: usize, spacing_mm: f64, target_mm: f64, wanted: usize) -> Self {
        // the ratio is rounded first, then the product: peers.md b.4
        let ratio = spacing_mm / target_mm;
        let resampled = (count as f64 * ratio) as usize;
        let start = resampled.saturating_sub(wanted) / 2;
        let before = wanted.saturating_sub(resampled) / 2;
        let scale = count as f64 / resampled as f64;
        let tap = |index: usize| {
            let out = (index + start).checked_sub(before).filter(|out| *out < resampled)?;
            let source = ((out as f64 + 0.5) * scale - 0.5).max(0.0);
            let low = source.floor() as usize;
            Some((low, (low + 1).min(count - 1), source - low as f64))
        };
        Axis { taps: (0..wanted).map(tap).collect(), first: start as i64 - before as i64, ratio: scale, resampled }
    }
}

/// The model's input. `volume` is in Hounsfield units and oriented; `csv_spacing_mm`: the metadata's (z, xy) for [`SpacingSource::Csv`].
/// Only the voxels that the crop needs are resampled; f64 between f32 voxels.
pub fn prepare(volume: &Volume, config: &PreparationConfig, csv_spacing_mm: Option<[f64; 2]>) -> Result<Prepared> {
    let [nz, ny, nx] = volume.shape;
    let [sz, sy, sx] = spacing(volume, config.spacing, csv_spacing_mm)?;
    let [tz, tx, ty] = config.target_spacing_mm;
    let [wz, wx, wy] = config.target_shape;
    let [z, x, y] = [Axis::new(nz, sz, tz, wz), Axis::new(nx, sx, tx, wx), Axis::new(ny, sy, ty, wy)];
    for (name, axis, count) in [("z", &z, nz), ("x", &x, nx), ("y", &y, ny)] {
        if axis.resampled == 0 {
            return Err(Error::field(&volume.path, "spacing", format!("{count} voxels along {name} resample to none")));
        }
    }
    let mut values = vec![0f32; wz * wx * wy];
    values.par_chunks_exact_mut(wx * wy).zip(&z.taps).for_each(|(plane, tap)| fill_plane(plane, *tap, volume, (&x, &y), config));
    let [d, h, w] = config.shape();
    let geometry = Geometry {
        first: [z.first, x.first, y.first],
        ratio: [z.ratio, x.ratio, y.ratio],
        resampled: [z.resampled, x.resampled, y.resampled],
        affine: volume.affine,
        layout: config.layout,
    };
    Ok(Prepared { tensor: Tensor::from_vec(values, (1, d, h, w), &Device::Cpu)?, geometry })
}

/// The spacing (z, y, x) in mm that is believed.
fn spacing(volume: &Volume, source: SpacingSource, csv_spacing_mm: Option<[f64; 2]>) -> Result<[f64; 3]> {
    let (header, csv) = (volume.spacing_mm, csv_spacing_mm.map(|[z, xy]| [z, xy, xy]));
    // metadata are rounded to a few digits
    let agree = |csv: [f64; 3]| header.iter().zip(csv).all(|(a, b)| (a - b).abs() <= 0.02 * b);
    match (source, csv) {
        (SpacingSource::Header, _) | (SpacingSource::Auto, None) => Ok(header),
        (SpacingSource::Csv, Some(csv)) => Ok(csv),
        (SpacingSource::Csv, None) => {
            Err(Error::field(&volume.path, "XYSpacing, ZSpacing", "the metadata's spacing is wanted and missing"))
        }
        (SpacingSource::Auto, Some(csv)) if agree(csv) => Ok(header),
        (SpacingSource::Auto, Some(csv)) if header == [1.0; 3] => Ok(csv),
        (SpacingSource::Auto, Some(csv)) => {
            let what = format!("the file's {header:.3?} mm (z, y, x) contradict the metadata's {csv:.3?}; say which with volume.spacing");
            Err(Error::field(&volume.path, "spacing", what))
        }
    }
}

/// One output plane: first mixed along z, then in its own two axes.
fn fill_plane(plane: &mut [f32], tap: Option<(usize, usize, f64)>, volume: &Volume, (x, y): (&Axis, &Axis), config: &PreparationConfig) {
    let Some((low, high, weight)) = tap else {
        plane.fill(config.pad as f32);
        return;
    };
    let [_, ny, nx] = volume.shape;
    let clipped = |value: f32| match config.clip {
        Clip::BeforeResampling => f64::from(value).clamp(config.clip_hu[0], config.clip_hu[1]),
        Clip::AfterResampling => f64::from(value),
    };
    let slice = |z: usize| &volume.values[z * ny * nx..(z + 1) * ny * nx];
    let mixed: Vec<f64> = slice(low).iter().zip(slice(high)).map(|(a, b)| (1.0 - weight) * clipped(*a) + weight * clipped(*b)).collect();
    let (wx, wy) = (x.taps.len(), y.taps.len());
    for (iy, ytap) in y.taps.iter().enumerate() {
        for (ix, xtap) in x.taps.iter().enumerate() {
            let at = match config.layout {
                Layout::Zxy => ix * wy + iy,
                Layout::Zyx => iy * wx + ix,
            };
            let (Some((x0, x1, fx)), Some((y0, y1, fy))) = (*xtap, *ytap) else {
                plane[at] = config.pad as f32;
                continue;
            };
            let line = |y: usize| (1.0 - fx) * mixed[y * nx + x0] + fx * mixed[y * nx + x1];
            plane[at] = finish((1.0 - fy) * line(y0) + fy * line(y1), config);
        }
    }
}

fn finish(value: f64, config: &PreparationConfig) -> f32 {
    let value = value.clamp(config.clip_hu[0], config.clip_hu[1]);
    match config.window_hu {
        None => (value / 1000.0) as f32,
        Some([low, high]) => ((value.clamp(low, high) - (low + high) / 2.0) / ((high - low) / 2.0)) as f32,
    }
}
