//! Panels: axial, coronal and sagittal slices through the strongest patch of a structure, its attention over them, as PNG.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::generate::Examined;
use crate::volume::{Grid, Spread};
use crate::{Error, Result};

use super::shown::Shown;

/// The longest side of a slice, in pixels.
const SIDE: f64 = 384.0;
const GAP: usize = 4;
/// Lungs and soft tissue at once.
const WINDOW_HU: [f32; 2] = [-1000.0, 400.0];
/// Attention shades toward this from an eighth of the most on, never beyond so much.
const MOST_OPAQUE: f32 = 0.65;
const FAINTEST: f32 = 0.125;

/// A picture, 8 bits red, green, blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panel {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Row by row.
    pub rgb: Vec<u8>,
}

/// Writes `STUDY.STRUCTURE.png` for every structure into `folder`, which exists.
pub fn write_panels(examined: &Examined, folder: &Path) -> Result<Vec<PathBuf>> {
    let geometry = &examined.prepared.geometry;
    let shown = Shown::new(&examined.prepared.tensor, geometry, examined.range_hu)?;
    let grid = Grid { shape: shown.shape, spacing_mm: shown.spacing_mm, affine: shown.affine };
    let spread = Spread::new(geometry, examined.patches, examined.patch_size, &grid);
    let mut paths = Vec::new();
    for (structure, attention) in examined.report.structures.iter().zip(&examined.attention) {
        let Some(strongest) = structure.patches.first() else { continue };
        let [low, high] = shown.place(strongest.voxels[0], strongest.voxels[1]);
        let at = [0, 1, 2].map(|axis| (((low[axis] + high[axis]) / 2.0) as usize).min(shown.shape[axis] - 1));
        let most = attention.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let panel = Panel::draw(&shown, &spread.spread(attention, |share| share / most), at);
        let path = folder.join(format!("{}.{}.png", examined.report.study, structure.name));
        let title = format!("{}: attention of {}; draft, not for diagnosis", examined.report.study, structure.name);
        panel.write(&path, &title)?;
        paths.push(path);
    }
    Ok(paths)
}

impl Panel {
    /// Axial, coronal and sagittal slices through voxel `at` (z, y, x), the patient's right on the left, the head up. heat: 0 to 1 a voxel.
    pub fn draw(shown: &Shown, heat: &[f32], at: [usize; 3]) -> Self {
        let extent = |axis: usize| shown.shape[axis] as f64 * shown.spacing_mm[axis];
        let pixels_a_mm = SIDE / (0..3).map(extent).fold(0.0, f64::max);
        let side = |axis: usize| ((extent(axis) * pixels_a_mm).round() as usize).max(1);
        // (axis across, axis down): axial, coronal, sagittal
        let slices = [(2, 1), (2, 0), (1, 0)].map(|(across, down)| slice(shown, heat, at, (across, side(across)), (down, side(down))));
        let height = slices.iter().map(|slice| slice.height).max().unwrap_or(1);
        let width = slices.iter().map(|slice| slice.width).sum::<usize>() + 2 * GAP;
        let mut rgb = vec![0; 3 * width * height];
        let mut left = 0;
        for slice in slices {
            let top = (height - slice.height) / 2;
            for (y, line) in slice.rgb.chunks_exact(3 * slice.width).enumerate() {
                let start = 3 * ((top + y) * width + left);
                rgb[start..start + line.len()].copy_from_slice(line);
            }
            left += slice.width + GAP;
        }
        Panel { width, height, rgb }
    }

    /// Writes it as PNG with a title inside.
    pub fn write(&self, path: &Path, title: &str) -> Result<()> {
        let file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
        let fault = |e: png::EncodingError| Error::file(path, format!("the PNG cannot be written: {e}"));
        let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_itxt_chunk("Title".to_string(), title.to_string()).map_err(fault)?;
        let mut writer = encoder.write_header().map_err(fault)?;
        writer.write_image_data(&self.rgb).map_err(fault)?;
        writer.finish().map_err(fault)
    }
}

/// A slice through `at`, interpolated to so many pixels along each axis.
fn slice(shown: &Shown, heat: &[f32], at: [usize; 3], across: (usize, usize), down: (usize, usize)) -> Panel {
    let ((right, width), (below, height)) = (across, down);
    let mut rgb = Vec::with_capacity(3 * width * height);
    let place = |axis: usize, pixel: usize, pixels: usize| {
        let centre = (pixel as f64 + 0.5) / pixels as f64 * shown.shape[axis] as f64 - 0.5;
        centre.clamp(0.0, (shown.shape[axis] - 1) as f64)
    };
    for y in 0..height {
        for x in 0..width {
            let mut point = at.map(|index| index as f64);
            point[right] = place(right, x, width);
            point[below] = place(below, if below == 0 { height - 1 - y } else { y }, height);
            let value = sample(&shown.values, shown.shape, point, (right, below));
            let grey = 255.0 * ((value - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0])).clamp(0.0, 1.0);
            rgb.extend(tinted(grey, sample(heat, shown.shape, point, (right, below))));
        }
    }
    Panel { width, height, rgb }
}

/// Linear between voxels along the two axes of a slice.
fn sample(values: &[f32], shape: [usize; 3], point: [f64; 3], (a, b): (usize, usize)) -> f32 {
    let low = point.map(|place| place.floor() as usize);
    let value = |step_a: usize, step_b: usize| {
        let mut at = low;
        at[a] = (at[a] + step_a).min(shape[a] - 1);
        at[b] = (at[b] + step_b).min(shape[b] - 1);
        values[(at[0] * shape[1] + at[1]) * shape[2] + at[2]]
    };
    let (fa, fb) = ((point[a] - low[a] as f64) as f32, (point[b] - low[b] as f64) as f32);
    (1.0 - fa) * ((1.0 - fb) * value(0, 0) + fb * value(0, 1)) + fa * ((1.0 - fb) * value(1, 0) + fb * value(1, 1))
}

/// From red to yellow with rising attention, over grey.
fn tinted(grey: f32, heat: f32) -> [u8; 3] {
    let heat = heat.clamp(0.0, 1.0);
    let opacity = if heat < FAINTEST { 0.0 } else { MOST_OPAQUE * (heat - FAINTEST) / (1.0 - FAINTEST) };
    [255.0, 230.0 * heat, 40.0 * heat].map(|colour| ((1.0 - opacity) * grey + opacity * colour).round() as u8)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::volume::{Geometry, Layout, Volume};

    #[test]
    fn slices_stand_side_by_side_at_one_scale_and_attention_is_tinted_where_it_is() {
        let affine = Volume::lps_affine([4.0, 1.0, 1.0], [0.0; 3]);
        let geometry = Geometry { first: [0; 3], ratio: [1.0; 3], resampled: [8, 16, 16], affine, layout: Layout::Zxy };
        let prepared = Tensor::full(-0.3f32, (1, 8, 16, 16), &Device::Cpu).unwrap();
        let shown = Shown::new(&prepared, &geometry, [-1000.0, 1000.0]).unwrap();
        let mut heat = vec![0.0; 8 * 16 * 16];
        heat[(6 * 16 + 4) * 16 + 12] = 1.0; // z 6, y 4, x 12
        let panel = Panel::draw(&shown, &heat, [6, 4, 12]);
        // z is the longest (32 mm, 384 pixels): x and y take 192
        assert_eq!((panel.width, panel.height), (3 * 192 + 2 * GAP, 384));
        let pixel = |x: usize, y: usize| &panel.rgb[3 * (y * panel.width + x)..][..3];
        let grey = [128, 128, 128]; // -300 HU in the middle of the window
        assert_eq!(pixel(10, 96 + 10), grey);
        let axial = pixel(12 * 12 + 6, 96 + 4 * 12 + 6);
        let coronal = pixel(192 + GAP + 12 * 12 + 6, 384 - 6 * 48 - 24);
        let sagittal = pixel(2 * (192 + GAP) + 4 * 12 + 6, 384 - 6 * 48 - 24);
        for tinted in [axial, coronal, sagittal] {
            assert!(tinted[0] > 200 && tinted[2] < 90, "{tinted:?}");
        }
    }
}
