//! Volumes: NIfTI and DICOM in Hounsfield units, what they are, and how they become a model's input.

mod chest;
mod dicom;
mod grey;
mod hounsfield;
mod inspect;
mod nifti;
mod nifti_write;
mod orient;
mod place;
mod prepare;
mod sources;

use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub use chest::{ChestCheck, looks_like_chest};
pub use grey::{FirstSlice, GreyImages, read_grey};
pub use hounsfield::{CsvRescale, HuPolicy, HuVerdict, apply_policy};
pub use inspect::{Inspection, inspect};
pub use nifti_write::{ScaledVoxels, write_nifti, write_scaled_nifti};
pub use orient::{Orientation, orient, orientation_code};
pub use place::{Grid, Spread, compose, inverse};
pub use prepare::{Clip, Geometry, Layout, PreparationConfig, Prepared, SpacingSource, prepare};
pub use sources::{find_scans, scan_name};

/// A scan in memory.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Voxels, (z, y, x) with x fastest: NIfTI's (k, j, i). Scaled by the file's own header (DICOM: by its rescale).
    pub values: Vec<f32>,
    /// Voxels (z, y, x).
    pub shape: [usize; 3],
    /// Distance of voxel centres (z, y, x) in mm.
    pub spacing_mm: [f64; 3],
    /// Voxel (i, j, k) = (x, y, z) to scanner millimetres, right-anterior-superior as in NIfTI.
    pub affine: [[f64; 4]; 3],
    /// Where it was read.
    pub path: PathBuf,
    /// What it was read as ("NIfTI int16", "DICOM 64 slices").
    pub format: String,
    /// What deserves a word to the user.
    pub notices: Vec<String>,
}

/// Reads a NIfTI file (`.nii`, `.nii.gz`) or a folder of DICOM slices (or one of its files).
pub fn read(path: &Path) -> Result<Volume> {
    if !path.exists() {
        return Err(Error::file(path, "no such file or folder"));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let volume = if path.is_dir() {
        dicom::read_folder(path)?
    } else if name.ends_with(".nii") || name.ends_with(".nii.gz") {
        nifti::read(path)?
    } else if dicom::is_dicom(path) {
        dicom::read_file_series(path)?
    } else {
        return Err(Error::file(path, "neither NIfTI (.nii, .nii.gz) nor DICOM"));
    };
    volume.check()?;
    Ok(volume)
}

impl Volume {
    /// What makes a volume unusable, named.
    fn check(&self) -> Result<()> {
        for (axis, (count, spacing)) in ["z", "y", "x"].iter().zip(self.shape.iter().zip(self.spacing_mm)) {
            if *count < 2 {
                return Err(Error::field(
                    &self.path,
                    "dimensions",
                    format!("a single voxel along {axis} is not a volume (found {:?})", self.shape),
                ));
            }
            if !(spacing.is_finite() && spacing > 0.0) {
                return Err(Error::field(&self.path, "spacing", format!("{spacing} mm along {axis}; expected a positive number")));
            }
        }
        let bad = self.values.iter().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            let share = 100.0 * bad as f64 / self.values.len() as f64;
            return Err(Error::field(&self.path, "voxels", format!("{bad} of {} ({share:.2}%) are NaN or infinite", self.values.len())));
        }
        Ok(())
    }

    /// The affine of a grid whose axes are the scanner's, left-posterior-superior, as CT-RATE's files have it.
    pub fn lps_affine(spacing_mm: [f64; 3], origin_mm: [f64; 3]) -> [[f64; 4]; 3] {
        let [z, y, x] = spacing_mm;
        [[-x, 0.0, 0.0, origin_mm[0]], [0.0, -y, 0.0, origin_mm[1]], [0.0, 0.0, z, origin_mm[2]]]
    }
}

/// Scanner millimetres of a (possibly fractional) voxel (x, y, z).
pub fn to_mm(affine: &[[f64; 4]; 3], [x, y, z]: [f64; 3]) -> [f64; 3] {
    affine.map(|row| row[0] * x + row[1] * y + row[2] * z + row[3])
}
