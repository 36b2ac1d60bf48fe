//! Slices that were exported as pictures: grey values in place of Hounsfield units, no spacing (CTRG-Chest-548K).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::{Error, Result};

use super::Volume;

/// What exported pictures do not say themselves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GreyImages {
    /// The Hounsfield units of black and of white.
    pub window_hu: [f64; 2],
    /// Distance of voxel centres (z, y, x) in mm.
    pub spacing_mm: [f64; 3],
    /// Where the first slice by name lies.
    pub first: FirstSlice,
}

/// Where the first slice lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstSlice {
    /// Towards the head.
    Superior,
    /// Towards the feet.
    Inferior,
}

impl GreyImages {
    /// Faults of these numbers, named by `key`.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let [low, high] = self.window_hu;
        if low.is_nan() || high.is_nan() || low >= high {
            faults.push(format!("{key}.window_hu: {:?}; expected the units of black and of white", self.window_hu));
        }
        if self.spacing_mm.iter().any(|spacing| !(spacing.is_finite() && *spacing > 0.0)) {
            faults.push(format!("{key}.spacing_mm: {:?}; expected positive numbers", self.spacing_mm));
        }
        faults
    }

    /// Grey 0..`white` to Hounsfield units.
    fn units(&self, grey: f32, white: f32) -> f32 {
        let [low, high] = self.window_hu;
        (low + (high - low) * f64::from(grey) / f64::from(white)) as f32
    }
}

/// Reads grey values as Hounsfield units: a folder of JPEG or PNG slices in the order of the numbers in their names, or a NIfTI file that holds
/// 0..255. A NIfTI file's spacing is believed unless it is 1 mm each way, which is what converters write that know none.
pub fn read_grey(path: &Path, grey: &GreyImages) -> Result<Volume> {
    let pictures = if path.is_dir() { pictures(path)? } else { Vec::new() };
    if !pictures.is_empty() {
        return read_pictures(path, &pictures, grey);
    }
    let mut volume = super::read(path)?;
    if let Some(other) = volume.values.iter().find(|value| !(0.0..=255.0).contains(*value)) {
        return Err(Error::field(path, "voxels", format!("{other} is no grey value (0..255), which data.grey expects; null reads units")));
    }
    volume.values.iter_mut().for_each(|value| *value = grey.units(*value, 255.0));
    if volume.spacing_mm == [1.0; 3] {
        volume.spacing_mm = grey.spacing_mm;
        volume.affine = Volume::lps_affine(grey.spacing_mm, [0.0; 3]);
        volume.notices.push(format!("the file tells no spacing; data.grey's {:?} mm are taken", grey.spacing_mm));
    }
    Ok(volume)
}

/// JPEG and PNG files of a folder, by the numbers in their names.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| is_jpeg(path) || has_extension(path, &["png"])).collect();
    files.sort_by_key(|path| natural(&path.file_name().unwrap_or_default().to_string_lossy()));
    Ok(files)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().and_then(|own| own.to_str()).is_some_and(|own| extensions.contains(&own.to_lowercase().as_str()))
}

fn is_jpeg(path: &Path) -> bool {
    has_extension(path, &["jpg", "jpeg"])
}

/// `x_10` after `x_9`: runs of digits compare as numbers.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0u64)];
    let mut in_number = false;
    for c in name.chars() {
        match (c.to_digit(10), in_number) {
            (Some(digit), _) => {
                let number = &mut parts.last_mut().expect("there is always a part").1;
                *number = number.saturating_mul(10).saturating_add(u64::from(digit));
                in_number = true;
            }
            (None, true) => {
                parts.push((c.to_string(), 0));
                in_number = false;
            }
            (None, false) => parts.last_mut().expect("there is always a part").0.push(c),
        }
    }
    parts
}

/// One picture: width, height, grey values, white.
struct Picture {
    size: [usize; 2],
    values: Vec<f32>,
    white: f32,
}

fn read_pictures(folder: &Path, files: &[PathBuf], grey: &GreyImages) -> Result<Volume> {
    let mut values = Vec::new();
    let mut size = None;
    let mut ordered: Vec<&PathBuf> = files.iter().collect();
    if grey.first == FirstSlice::Superior {
        ordered.reverse();
    }
    for file in ordered {
        let picture = if is_jpeg(file) { jpeg(file)? } else { png(file)? };
        let expected = *size.get_or_insert(picture.size);
        if picture.size != expected {
            let what =
                format!("{} x {} pixels; the slices before have {} x {}", picture.size[0], picture.size[1], expected[0], expected[1]);
            return Err(Error::file(file, what));
        }
        values.extend(picture.values.iter().map(|value| grey.units(*value, picture.white)));
    }
    let [width, height] = size.unwrap_or_default();
    let volume = Volume {
        values,
        shape: [files.len(), height, width],
        spacing_mm: grey.spacing_mm,
        affine: Volume::lps_affine(grey.spacing_mm, [0.0; 3]),
        path: folder.to_path_buf(),
        format: format!("{} slice images", files.len()),
        notices: Vec::new(),
    };
    volume.check()?;
    Ok(volume)
}

fn jpeg(file: &Path) -> Result<Picture> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    let fault = |e: &dyn std::fmt::Debug| Error::file(file, format!("not a whole JPEG: {e:?}"));
    let options = DecoderOptions::new_safe().jpeg_set_out_colorspace(ColorSpace::Luma).set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes), options);
    let pixels = decoder.decode().map_err(|e| fault(&e))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| Error::file(file, "a JPEG without dimensions"))?;
    Ok(Picture { size: [width, height], values: pixels.into_iter().map(f32::from).collect(), white: 255.0 })
}

fn png(file: &Path) -> Result<Picture> {
    let reader = std::io::BufReader::new(std::fs::File::open(file).map_err(|e| Error::io(file, e))?);
    let fault = |e: png::DecodingError| Error::file(file, format!("not a whole PNG: {e}"));
    let mut decoder = png::Decoder::new(reader);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(fault)?;
    let size = reader.output_buffer_size().ok_or_else(|| Error::file(file, "a PNG too large for memory"))?;
    let mut bytes = vec![0; size];
    let info = reader.next_frame(&mut bytes).map_err(fault)?;
    let samples = info.color_type.samples();
    // of a colour picture of a grey scan, each channel is the grey
    let (values, white) = match info.bit_depth {
        png::BitDepth::Sixteen => {
            (bytes.chunks_exact(2 * samples).map(|pixel| f32::from(u16::from_be_bytes([pixel[0], pixel[1]]))).collect(), 65535.0)
        }
        _ => (bytes.chunks_exact(samples).map(|pixel| f32::from(pixel[0])).collect(), 255.0),
    };
    Ok(Picture { size: [info.width as usize, info.height as usize], values, white })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_in_the_order_of_their_numbers() {
        let mut names = ["s_10.jpg", "s_9.jpg", "s_1.jpg", "s_0002.jpg"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["s_1.jpg", "s_0002.jpg", "s_9.jpg", "s_10.jpg"]);
    }
}
