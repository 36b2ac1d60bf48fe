//! DICOM series: a folder of slices, sorted by position, rescaled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};
use dicom_pixeldata::{ConvertOptions, ModalityLutOption, PixelDecoder, VoiLutOption};
use rayon::prelude::*;

use crate::{Error, Result};

use super::Volume;

const SERIES: Tag = Tag(0x0020, 0x000E);
const POSITION: Tag = Tag(0x0020, 0x0032);
const ORIENTATION: Tag = Tag(0x0020, 0x0037);
const SPACING: Tag = Tag(0x0028, 0x0030);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const SLOPE: Tag = Tag(0x0028, 0x1053);
const INTERCEPT: Tag = Tag(0x0028, 0x1052);
const PIXELS: Tag = Tag(0x7FE0, 0x0010);

/// One slice's place, before its pixels are read.
#[derive(Debug, Clone)]
struct Slice {
    path: PathBuf,
    series: String,
    position: [f64; 3],
    axes: [f64; 6],
    spacing: [f64; 2],
    rows: usize,
    columns: usize,
    /// Distance along the normal.
    depth: f64,
}

/// Whether a file begins as DICOM does.
pub(super) fn is_dicom(path: &Path) -> bool {
    use std::io::Read;
    let mut head = [0u8; 132];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && &head[128..] == b"DICM"
}

/// The series that a DICOM file belongs to, out of its folder.
pub(super) fn read_file_series(path: &Path) -> Result<Volume> {
    let series = Slice::read(path)?.series;
    let folder = path.parent().unwrap_or(Path::new("."));
    let slices = slices(folder)?.into_iter().filter(|slice| slice.series == series).collect();
    assemble(folder, slices, Vec::new())
}

/// The largest series of a folder; others are named.
pub(super) fn read_folder(folder: &Path) -> Result<Volume> {
    let mut by_series: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
    for slice in slices(folder)? {
        by_series.entry(slice.series.clone()).or_default().push(slice);
    }
    let count = by_series.len();
    let largest = by_series.into_iter().max_by_key(|(_, slices)| slices.len());
    let (series, slices) = largest.ok_or_else(|| Error::file(folder, "holds no DICOM slice"))?;
    let notice = (count > 1).then(|| format!("{count} series in the folder; the largest is read ({} slices, {series})", slices.len()));
    assemble(folder, slices, notice.into_iter().collect())
}

fn slices(folder: &Path) -> Result<Vec<Slice>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file() && is_dicom(path)).collect();
    files.sort();
    files.iter().map(|path| Slice::read(path)).collect()
}

fn numbers(path: &Path, object: &DefaultDicomObject, tag: Tag, name: &str, count: usize) -> Result<Vec<f64>> {
    let element = object.element(tag).map_err(|_| Error::field(path, name, "missing"))?;
    let values = element.to_multi_float64().map_err(|e| Error::field(path, name, format!("not numbers: {e}")))?;
    if values.len() < count || values.iter().any(|value| !value.is_finite()) {
        return Err(Error::field(path, name, format!("{values:?}; expected {count} numbers")));
    }
    Ok(values)
}

impl Slice {
    fn read(path: &Path) -> Result<Self> {
        let object = OpenFileOptions::new().read_until(PIXELS).open_file(path);
        let object = object.map_err(|e| Error::file(path, format!("not a whole DICOM file: {e}")))?;
        let array = |tag, name, count| numbers(path, &object, tag, name, count);
        let axes: [f64; 6] = array(ORIENTATION, "ImageOrientationPatient", 6)?[..6].try_into().expect("six numbers were checked");
        let position: [f64; 3] = array(POSITION, "ImagePositionPatient", 3)?[..3].try_into().expect("three numbers were checked");
        let spacing = array(SPACING, "PixelSpacing", 2)?;
        let series = object.element(SERIES).ok().and_then(|element| Some(element.to_str().ok()?.trim_end_matches(['\0', ' ']).to_string()));
        let normal = normal(&axes);
        Ok(Slice {
            path: path.to_path_buf(),
            series: series.unwrap_or_default(),
            depth: (0..3).map(|axis| normal[axis] * position[axis]).sum(),
            position,
            axes,
            spacing: [spacing[0], spacing[1]],
            rows: array(ROWS, "Rows", 1)?[0] as usize,
            columns: array(COLUMNS, "Columns", 1)?[0] as usize,
        })
    }

    /// Rescaled pixels, row by row.
    fn pixels(&self) -> Result<Vec<f32>> {
        let object = dicom_object::open_file(&self.path).map_err(|e| Error::file(&self.path, format!("not a whole DICOM file: {e}")))?;
        let decoded = object.decode_pixel_data().map_err(|e| Error::field(&self.path, "PixelData", format!("cannot be decoded: {e}")))?;
        let options = ConvertOptions::new().with_modality_lut(ModalityLutOption::None).with_voi_lut(VoiLutOption::Identity);
        let raw: Vec<f32> = decoded.to_vec_with_options(&options).map_err(|e| Error::field(&self.path, "PixelData", e.to_string()))?;
        if raw.len() != self.rows * self.columns {
            let what = format!("{} pixels; expected one frame of {} x {}", raw.len(), self.rows, self.columns);
            return Err(Error::field(&self.path, "PixelData", what));
        }
        let one = |tag, name, default: f64| match object.element(tag) {
            Ok(_) => Ok(numbers(&self.path, &object, tag, name, 1)?[0]),
            Err(_) => Ok::<f64, Error>(default),
        };
        let (slope, intercept) = (one(SLOPE, "RescaleSlope", 1.0)?, one(INTERCEPT, "RescaleIntercept", 0.0)?);
        Ok(raw.iter().map(|value| (f64::from(*value) * slope + intercept) as f32).collect())
    }
}

fn normal(axes: &[f64; 6]) -> [f64; 3] {
    let [a, b, c, d, e, f] = *axes;
    [b * f - c * e, c * d - a * f, a * e - b * d]
}

fn assemble(folder: &Path, mut slices: Vec<Slice>, notices: Vec<String>) -> Result<Volume> {
    slices.sort_by(|a, b| a.depth.total_cmp(&b.depth));
    let (Some(first), Some(last)) = (slices.first(), slices.last()) else { return Err(Error::file(folder, "holds no DICOM slice")) };
    if slices.len() < 2 {
        return Err(Error::field(folder, "slices", "a single slice is not a volume"));
    }
    for slice in &slices {
        let same = (slice.rows, slice.columns) == (first.rows, first.columns)
            && slice.axes.iter().zip(first.axes).all(|(a, b)| (a - b).abs() < 1e-3)
            && slice.spacing.iter().zip(first.spacing).all(|(a, b)| (a - b).abs() < 1e-3);
        if !same {
            return Err(Error::field(
                &slice.path,
                "geometry",
                format!("size, orientation or spacing differs from {}", first.path.display()),
            ));
        }
    }
    let step = step(folder, &slices)?;
    let pixels: Vec<Vec<f32>> = slices.par_iter().map(Slice::pixels).collect::<Result<_>>()?;
    let between = (slices.len() - 1) as f64;
    let along: [f64; 3] = [0, 1, 2].map(|axis| (last.position[axis] - first.position[axis]) / between);
    // DICOM's patient axes run left and posterior, NIfTI's right and anterior
    let signs = [-1.0, -1.0, 1.0];
    let row = |r: usize| {
        let [column_step, row_step] = [first.spacing[1], first.spacing[0]];
        [first.axes[r] * column_step, first.axes[3 + r] * row_step, along[r], first.position[r]].map(|value| signs[r] * value)
    };
    Ok(Volume {
        values: pixels.concat(),
        shape: [slices.len(), first.rows, first.columns],
        spacing_mm: [step, first.spacing[0], first.spacing[1]],
        affine: [row(0), row(1), row(2)],
        path: folder.to_path_buf(),
        format: format!("DICOM {} slices", slices.len()),
        notices,
    })
}

/// The slices' common distance; duplicates, gaps and unequal distances are named.
fn step(folder: &Path, slices: &[Slice]) -> Result<f64> {
    let gaps: Vec<f64> = slices.windows(2).map(|pair| pair[1].depth - pair[0].depth).collect();
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let usual = sorted[sorted.len() / 2];
    let name = |slice: &Slice| slice.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for (gap, pair) in gaps.iter().zip(slices.windows(2)) {
        let place = format!("between {} (at {:.2} mm) and {} (at {:.2} mm)", name(&pair[0]), pair[0].depth, name(&pair[1]), pair[1].depth);
        if *gap < 1e-3 {
            return Err(Error::field(folder, "slices", format!("duplicate position {place}")));
        }
        let missing = (gap / usual).round() - 1.0;
        if missing >= 1.0 {
            return Err(Error::field(folder, "slices", format!("{missing} missing {place}: {gap:.2} mm apart, {usual:.2} mm elsewhere")));
        }
        if (gap - usual).abs() > 0.1 * usual {
            return Err(Error::field(folder, "slices", format!("unequal distance {place}: {gap:.2} mm, {usual:.2} mm elsewhere")));
        }
    }
    Ok(gaps.iter().sum::<f64>() / gaps.len() as f64)
}
