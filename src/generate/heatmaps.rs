//! Heat maps: each structure's attention as NIfTI in the scan's own grid and place.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::volume::{ScaledVoxels, Spread, write_scaled_nifti};

use super::reporter::Examined;

/// The name of a structure's heat map.
pub fn heatmap_name(study: &str, structure: &str) -> String {
    format!("{study}.{structure}.nii.gz")
}

/// Writes one file a structure into `folder`, which exists. A voxel's value is its attention over that of an even spread: 1 is the average, and the
/// attention on a patch is the value at its centre. Linear between the centres of patches, 0 where the model saw nothing; 8 bits, whose step is in
/// the header (`scl_slope`).
pub fn write_heatmaps(examined: &Examined, folder: &Path) -> Result<Vec<PathBuf>> {
    let spread = Spread::new(&examined.prepared.geometry, examined.patches, examined.patch_size, &examined.grid);
    let mut paths = Vec::new();
    for (structure, attention) in examined.report.structures.iter().zip(&examined.attention) {
        let even: Vec<f32> = attention.iter().map(|share| share * attention.len() as f32).collect();
        let most = even.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let slope = most / 255.0;
        let values = spread.spread(&even, |value| (value / slope).round() as u8);
        let description = format!("attention of {}, times even; draft, not for diagnosis", structure.name);
        let path = folder.join(heatmap_name(&examined.report.study, &structure.name));
        write_scaled_nifti(&path, &ScaledVoxels { values: &values, slope, description: &description }, &examined.grid)?;
        paths.push(path);
    }
    Ok(paths)
}
