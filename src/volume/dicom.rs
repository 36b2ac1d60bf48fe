//! DICOM series: a folder of slices, sorted by position, rescaled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};
use dicom_pixeldata::{DecodedPixelData, PixelDecoder, PixelRepresentation};
use rayon::prelude::*;

use crate::error::chain;
use crate::{Error, Result, ranks};

use super::Volume;

const SERIES: Tag = Tag(0x0020, 0x000E);
const POSITION: Tag = Tag(0x0020, 0x0032);
const ORIENTATION: Tag = Tag(0x0020, 0x0037);
const SPACING: Tag = Tag(0x0028, 0x0030);
const FRAMES: Tag = Tag(0x0028, 0x0008);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const PHOTOMETRIC: Tag = Tag(0x0028, 0x0004);
const SLOPE: Tag = Tag(0x0028, 0x1053);
const INTERCEPT: Tag = Tag(0x0028, 0x1052);
const PIXELS: Tag = Tag(0x7FE0, 0x0010);

/// One slice's place, before its pixels are read.
#[derive(Debug, Clone)]
struct Slice {
    path: PathBuf,
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

/// A folder's images by series, and the files that are no image.
struct Contents {
    series: BTreeMap<String, Vec<Result<Slice>>>,
    passed_over: Vec<PathBuf>,
}

/// The series that a DICOM file belongs to, out of its folder.
pub(super) fn read_file_series(path: &Path) -> Result<Volume> {
    let object = open_head(path)?;
    if !is_image(path, &object)? {
        return Err(Error::field(path, "PixelData", "missing: a DICOM file without an image"));
    }
    let name = series_of(&object);
    Slice::read(path, &object)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut contents = contents(folder)?;
    let slices = contents.series.remove(&name).unwrap_or_default();
    assemble(folder, slices.into_iter().collect::<Result<_>>()?, Vec::new())
}

/// The largest series of a folder; the others, and files that are no image, are named.
pub(super) fn read_folder(folder: &Path) -> Result<Volume> {
    let Contents { series, passed_over } = contents(folder)?;
    let count = series.len();
    let usable = |slices: &[Result<Slice>]| slices.iter().filter(|slice| slice.is_ok()).count();
    let largest = series.into_iter().max_by_key(|(_, slices)| (usable(slices), slices.len()));
    let (name, slices) = largest.ok_or_else(|| Error::file(folder, "holds no DICOM slice"))?;
    let mut notices = Vec::new();
    if count > 1 {
        notices.push(format!("{count} series in the folder; the largest is read ({} slices, {name})", slices.len()));
    }
    if let Some(first) = passed_over.first() {
        notices.push(format!("{} DICOM file(s) without an image are passed over ({}, ..)", passed_over.len(), file_name(first)));
    }
    assemble(folder, slices.into_iter().collect::<Result<_>>()?, notices)
}

fn contents(folder: &Path) -> Result<Contents> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file() && is_dicom(path)).collect();
    files.sort();
    let mut contents = Contents { series: BTreeMap::new(), passed_over: Vec::new() };
    for path in files {
        let object = open_head(&path)?;
        if is_image(&path, &object)? {
            contents.series.entry(series_of(&object)).or_default().push(Slice::read(&path, &object));
        } else {
            contents.passed_over.push(path);
        }
    }
    Ok(contents)
}

/// Everything before the pixels.
fn open_head(path: &Path) -> Result<DefaultDicomObject> {
    OpenFileOptions::new().read_until(PIXELS).open_file(path).map_err(|e| not_whole(path, &e))
}

fn not_whole(path: &Path, e: &dyn std::error::Error) -> Error {
    Error::file(path, format!("not a whole DICOM file: {}", chain(e)))
}

/// Reports, dose records and DICOMDIR have neither Rows nor PixelData; an image that lacks one of them is broken, not passed over.
fn is_image(path: &Path, head: &DefaultDicomObject) -> Result<bool> {
    if head.element(ROWS).is_ok() {
        return Ok(true);
    }
    let whole = dicom_object::open_file(path).map_err(|e| not_whole(path, &e))?;
    Ok(whole.element(PIXELS).is_ok())
}

fn text(object: &DefaultDicomObject, tag: Tag) -> Option<String> {
    Some(object.element(tag).ok()?.to_str().ok()?.trim_end_matches(['\0', ' ']).to_string())
}

fn series_of(object: &DefaultDicomObject) -> String {
    text(object, SERIES).unwrap_or_default()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
    fn read(path: &Path, object: &DefaultDicomObject) -> Result<Self> {
        let array = |tag, name, count| numbers(path, object, tag, name, count);
        let frames = if object.element(FRAMES).is_ok() { array(FRAMES, "NumberOfFrames", 1)?[0] } else { 1.0 };
        if frames != 1.0 {
            return Err(Error::field(path, "NumberOfFrames", format!("{frames}; expected one slice a file (enhanced DICOM is not read)")));
        }
        // MONOCHROME1 is a matter of display: the rescale gives Hounsfield units all the same (PS3.3 C.7.6.3.1.2)
        let photometric = text(object, PHOTOMETRIC).unwrap_or_else(|| "missing".to_string());
        if !["MONOCHROME1", "MONOCHROME2"].contains(&photometric.as_str()) {
            return Err(Error::field(path, "PhotometricInterpretation", format!("{photometric}; expected MONOCHROME1 or MONOCHROME2")));
        }
        let axes: [f64; 6] = array(ORIENTATION, "ImageOrientationPatient", 6)?[..6].try_into().expect("six numbers were checked");
        let position: [f64; 3] = array(POSITION, "ImagePositionPatient", 3)?[..3].try_into().expect("three numbers were checked");
        let spacing = array(SPACING, "PixelSpacing", 2)?;
        if spacing.iter().any(|spacing| *spacing <= 0.0) {
            return Err(Error::field(path, "PixelSpacing", format!("{spacing:?} mm; expected positive spacings")));
        }
        let normal = normal(&axes);
        // two unit vectors at a right angle; files round them to a few digits
        let length = |vector: &[f64]| vector.iter().map(|part| part * part).sum::<f64>().sqrt();
        if [length(&axes[..3]), length(&axes[3..]), length(&normal)].iter().any(|length| (length - 1.0).abs() > 0.01) {
            return Err(Error::field(path, "ImageOrientationPatient", format!("{axes:?} are not two unit vectors at a right angle")));
        }
        Ok(Slice {
            path: path.to_path_buf(),
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
        let wrong = |what: String| Error::field(&self.path, "PixelData", what);
        let object = dicom_object::open_file(&self.path).map_err(|e| not_whole(&self.path, &e))?;
        // dicom-rs 0.10 panics on some damaged RLE and JPEG data: one bad scan must not end the run
        let decoded = ranks::catch(|| object.decode_pixel_data());
        let decoded = decoded.map_err(|_| wrong("cannot be decoded: damaged".to_string()))?;
        let decoded = decoded.map_err(|e| wrong(format!("cannot be decoded: {}", chain(&e))))?;
        let bits = [decoded.bits_allocated(), decoded.bits_stored(), decoded.high_bit()];
        let stored = stored_values(&decoded).ok_or_else(|| {
            Error::field(&self.path, "BitsAllocated", format!("bits allocated, stored, highest: {bits:?}; expected 8 or 16 allocated"))
        })?;
        let (expected, bytes) = (self.rows * self.columns, decoded.data().len());
        // an odd number of bytes is padded by one
        if stored.len() != expected && !(bits[0] == 8 && stored.len() == expected + 1) {
            return Err(wrong(format!("{bytes} bytes, {} pixels; expected {} x {}", stored.len(), self.rows, self.columns)));
        }
        let one = |tag, name, default: f64| match object.element(tag) {
            Ok(_) => Ok(numbers(&self.path, &object, tag, name, 1)?[0]),
            Err(_) => Ok::<f64, Error>(default),
        };
        let (slope, intercept) = (one(SLOPE, "RescaleSlope", 1.0)?, one(INTERCEPT, "RescaleIntercept", 0.0)?);
        if slope == 0.0 {
            return Err(Error::field(&self.path, "RescaleSlope", "0; expected another number"));
        }
        Ok(stored[..expected].iter().map(|value| (f64::from(*value) * slope + intercept) as f32).collect())
    }
}

/// The stored values: the BitsStored bits below HighBit, signed as PixelRepresentation says. Old files keep overlays in the other bits,
/// and decoders leave them without the sign.
fn stored_values(decoded: &DecodedPixelData) -> Option<Vec<i32>> {
    let [allocated, stored, high] = [decoded.bits_allocated(), decoded.bits_stored(), decoded.high_bit()].map(u32::from);
    if ![8, 16].contains(&allocated) || stored == 0 || high >= allocated || high + 1 < stored {
        return None;
    }
    let signed = decoded.pixel_representation() == PixelRepresentation::Signed;
    let value = |bits: u32| {
        let at_top = bits << (31 - high);
        if signed { at_top as i32 >> (32 - stored) } else { (at_top >> (32 - stored)) as i32 }
    };
    let data = decoded.data();
    Some(match allocated {
        8 => data.iter().map(|byte| value(u32::from(*byte))).collect(),
        _ => data.chunks_exact(2).map(|pair| value(u32::from(u16::from_ne_bytes([pair[0], pair[1]])))).collect(),
    })
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
    // gathered first: the slice that is named must not depend on which thread was faster
    let read: Vec<Result<Vec<f32>>> = slices.par_iter().map(Slice::pixels).collect();
    let pixels: Vec<Vec<f32>> = read.into_iter().collect::<Result<_>>()?;
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
    let usual = sorted[(sorted.len() - 1) / 2]; // of two, the smaller: the other holds the gap
    let name = |slice: &Slice| file_name(&slice.path);
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
