//! What a scan is, and how its Hounsfield units were decided.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::Result;

use super::chest::{ChestCheck, looks_like_chest};
use super::hounsfield::{CsvRescale, HuPolicy, HuVerdict, apply_policy};
use super::orient::orientation_code;
use super::read;

/// A scan, described.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Where it was read.
    pub path: String,
    /// NIfTI and its voxel type, or DICOM and its slices.
    pub format: String,
    /// Voxels (z, y, x).
    pub shape: [usize; 3],
    /// Millimetres (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Millimetres (z, y, x) from edge to edge.
    pub field_of_view_mm: [f64; 3],
    /// Which way the axes x, y, z run.
    pub orientation: String,
    /// Voxel (x, y, z) to scanner millimetres (right, anterior, superior).
    pub affine: [[f64; 4]; 3],
    /// How Hounsfield units were decided; `None` where they could not be.
    pub hounsfield: Option<HuVerdict>,
    /// Lung density inside the body.
    pub chest: ChestCheck,
    /// What deserves a word.
    pub warnings: Vec<String>,
}

/// Reads and describes a scan; `csv`: the metadata's rescale, where there is any.
pub fn inspect(path: &Path, csv: Option<CsvRescale>) -> Result<Inspection> {
    let mut volume = read(path)?;
    let mut warnings = volume.notices.clone();
    let hounsfield = match apply_policy(&mut volume, csv, HuPolicy::Auto) {
        Ok(verdict) => Some(verdict),
        Err(error) => {
            warnings.push(error.to_string());
            None
        }
    };
    let chest = looks_like_chest(&volume);
    if !chest.is_chest {
        warnings.push(format!("does not look like a chest: {:.1}% of the body has lung's density", 100.0 * chest.lung_share));
    }
    Ok(Inspection {
        path: path.display().to_string(),
        format: volume.format.clone(),
        shape: volume.shape,
        spacing_mm: volume.spacing_mm,
        field_of_view_mm: [0, 1, 2].map(|axis| volume.shape[axis] as f64 * volume.spacing_mm[axis]),
        orientation: orientation_code(&volume.affine),
        affine: volume.affine,
        hounsfield,
        chest,
        warnings,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [z, y, x] = self.shape;
        let [sz, sy, sx] = self.spacing_mm;
        let [fz, fy, fx] = self.field_of_view_mm;
        writeln!(f, "{}", self.path)?;
        writeln!(f, "  format         {}", self.format)?;
        writeln!(f, "  voxels         {x} x {y} x {z} (x, y, z)")?;
        writeln!(f, "  spacing        {sx:.3} x {sy:.3} x {sz:.3} mm")?;
        writeln!(f, "  field of view  {fx:.0} x {fy:.0} x {fz:.0} mm")?;
        writeln!(f, "  orientation    {} (x, y, z run toward)", self.orientation)?;
        match &self.hounsfield {
            Some(verdict) => writeln!(f, "  Hounsfield     {} ({})", verdict.decision, verdict.evidence)?,
            None => writeln!(f, "  Hounsfield     undecided")?,
        }
        write!(f, "  lung density   {:.1}% of the body", 100.0 * self.chest.lung_share)?;
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}
