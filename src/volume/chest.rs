//! Does a volume look like a chest?

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Volume;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ChestCheck {
    /// Share of the voxels inside the body that have lung's density (-950 to -500 HU).
    pub lung_share: f64,
    /// Whether that is a chest's.
    pub is_chest: bool,
}

/// A chest has at least this share; the abdomen below the lung bases has less.
const CHEST: f64 = 0.08;

/// Measures lung density inside the body (between the outermost tissue voxels of each line). Values in Hounsfield units.
pub fn looks_like_chest(volume: &Volume) -> ChestCheck {
    let width = volume.shape[2];
    let count = |line: &[f32]| {
        let tissue = |value: &f32| *value > -300.0;
        let (Some(first), Some(last)) = (line.iter().position(tissue), line.iter().rposition(tissue)) else { return (0, 0) };
        let body = &line[first..=last];
        (body.len(), body.iter().map(|value| usize::from((-950.0..-500.0).contains(value))).sum::<usize>())
    };
    let lines = volume.values.par_chunks_exact(width).with_min_len(64).map(count);
    let (inside, lung) = lines.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let lung_share = lung as f64 / inside.max(1) as f64;
    ChestCheck { lung_share, is_chest: lung_share >= CHEST }
}
