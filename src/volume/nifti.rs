//! NIfTI-1, read at once into f32.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use nifti::{Endianness, NiftiHeader};

use crate::{Error, Result};

use super::Volume;
use super::read_ahead::ReadAhead;
use super::voxels::{Stored, voxel_type};

const HEADER: usize = 348;

/// Deflate's best: no stream inflates to more than 1032 times its bytes (zlib's technical notes).
const MOST_INFLATED: u64 = 1032;

pub(super) fn read(path: &Path) -> Result<Volume> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let stored = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if stored == 0 {
        return Err(Error::file(path, "the file is empty"));
    }
    let gzipped = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    let file = BufReader::with_capacity(1 << 18, file);
    let mut raw: Box<dyn Read> = if gzipped { Box::new(ReadAhead::new(MultiGzDecoder::new(file))) } else { Box::new(file) };
    let header = header(path, &mut raw)?;
    let shape = dimensions(path, &header)?;
    let code = header.datatype;
    let (name, size) = voxel_type(code).ok_or_else(|| Error::field(path, "datatype", format!("{code} is not an integer or float type")))?;
    let (affine, source) = affine(path, &header)?;
    let limit = if gzipped { stored.saturating_mul(MOST_INFLATED) } else { stored };
    let offset = voxel_offset(path, &header)?;
    fits(path, limit, offset, shape, size)?;
    let gap = offset - HEADER as u64;
    let skipped = std::io::copy(&mut raw.by_ref().take(gap), &mut std::io::sink()).map_err(|e| unreadable(path, "header extension", &e))?;
    if skipped < gap {
        return Err(early(path, "header extension", skipped, gap));
    }
    let big_endian = matches!(header.endianness, Endianness::Big);
    let values = voxels(path, &mut raw, shape.iter().product(), Stored { code, size, big_endian, scale: scaling(&header) })?;
    if gzipped {
        check_end(path, &mut raw)?;
    }
    let notices = notices(&header, &affine, source);
    Ok(Volume { values, shape, spacing_mm: lengths(&affine), affine, path: path.to_path_buf(), format: format!("NIfTI {name}"), notices })
}

/// The checksum stands behind the last voxel; what follows it and is no gzip (a tape's zeros) is padding, as for gzip itself.
fn check_end(path: &Path, raw: &mut dyn Read) -> Result<()> {
    match std::io::copy(raw, &mut std::io::sink()) {
        Err(e) if e.to_string() != "invalid gzip header" => Err(unreadable(path, "voxels", &e)),
        _ => Ok(()),
    }
}

fn unreadable(path: &Path, what: &str, e: &std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::field(path, what, "the file ends early (truncated)"),
        _ => Error::field(path, what, format!("cannot be decompressed or read: {e}")),
    }
}

fn early(path: &Path, what: &str, found: u64, expected: u64) -> Error {
    Error::field(path, what, format!("the file ends early (truncated): {found} of {expected} bytes"))
}

/// Fills the buffer; a file that ends or breaks before is named with how far it came, counting from `before`.
fn read_whole(path: &Path, raw: &mut dyn Read, buffer: &mut [u8], (what, before, expected): (&str, u64, u64)) -> Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match raw.read(&mut buffer[filled..]) {
            Ok(0) => return Err(early(path, what, before + filled as u64, expected)),
            Ok(read) => filled += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(early(path, what, before + filled as u64, expected)),
            Err(e) => return Err(unreadable(path, what, &e)),
        }
    }
    Ok(())
}

fn header(path: &Path, raw: &mut dyn Read) -> Result<NiftiHeader> {
    let mut head = vec![0u8; HEADER];
    read_whole(path, raw, &mut head, ("header", 0, HEADER as u64))?;
    if [540i32.to_le_bytes(), 540i32.to_be_bytes()].iter().any(|size| head.starts_with(size)) {
        return Err(Error::field(path, "sizeof_hdr", "540: this is NIfTI-2; only NIfTI-1 is read"));
    }
    let header = NiftiHeader::from_reader(head.as_slice()).map_err(|e| Error::field(path, "header", format!("not NIfTI-1: {e}")))?;
    if &header.magic != b"n+1\0" {
        return Err(Error::field(path, "magic", "ni1: the voxels are in an .img file beside; expected n+1, header and voxels in one file"));
    }
    Ok(header)
}

fn voxel_offset(path: &Path, header: &NiftiHeader) -> Result<u64> {
    let offset = header.vox_offset;
    if !(offset.is_finite() && offset >= HEADER as f32) {
        return Err(Error::field(path, "vox_offset", format!("{offset}; expected at least {HEADER}")));
    }
    Ok(offset as u64)
}

/// Refuses what cannot be in a file of `limit` bytes (once inflated), before any of it is allocated.
fn fits(path: &Path, limit: u64, offset: u64, shape: [usize; 3], size: usize) -> Result<()> {
    let [z, y, x] = shape.map(|count| count as u64);
    let expected = z * y * x * size as u64; // at most 2^15 cubed by 8: no overflow
    if offset > limit {
        return Err(Error::field(path, "vox_offset", format!("{offset} lies behind the end of the file ({limit} bytes at most)")));
    }
    if expected > limit - offset {
        let what = format!(
            "{x} x {y} x {z} voxels are {expected} bytes; the file holds {} at most (truncated, or a wrong header)",
            limit - offset
        );
        return Err(Error::field(path, "dim", what));
    }
    Ok(())
}

/// (z, y, x), or what is wrong with the header's dim and pixdim.
fn dimensions(path: &Path, header: &NiftiHeader) -> Result<[usize; 3]> {
    let wrong = |what: String| Err(Error::field(path, "dim", what));
    let rank = header.dim[0] as usize;
    if !(3..=7).contains(&rank) {
        return wrong(format!("{rank}-D; expected a 3-D volume"));
    }
    let axes: Vec<i16> = header.dim[1..=rank].iter().map(|size| *size as i16).collect();
    if axes[..3].iter().any(|size| *size < 1) {
        return wrong(format!("{axes:?}: an axis without voxels"));
    }
    if axes[3..].iter().any(|size| *size > 1) {
        return wrong(format!("{axes:?} holds several frames; expected one 3-D volume"));
    }
    for (axis, spacing) in header.pixdim[1..=3].iter().enumerate() {
        if !(spacing.is_finite() && *spacing > 0.0) {
            return Err(Error::field(path, format!("pixdim[{}]", axis + 1), format!("{spacing} mm; expected a positive spacing")));
        }
    }
    Ok([axes[2], axes[1], axes[0]].map(|size| size as usize))
}

/// scl_slope 0 or NaN: no scaling.
fn scaling(header: &NiftiHeader) -> Option<(f64, f64)> {
    let (slope, inter) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
    let scaled = slope.is_finite() && slope != 0.0 && (slope, inter) != (1.0, 0.0);
    scaled.then_some((slope, if inter.is_finite() { inter } else { 0.0 }))
}

fn voxels(path: &Path, raw: &mut dyn Read, count: usize, stored: Stored) -> Result<Vec<f32>> {
    let total = count * stored.size;
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|e| Error::field(path, "dim", format!("no memory for {count} voxels: {e}")))?;
    let mut buffer = vec![0u8; ((1 << 17) * stored.size).min(total)];
    while values.len() < count {
        let before = values.len() * stored.size;
        let bytes = (total - before).min(buffer.len());
        read_whole(path, raw, &mut buffer[..bytes], ("voxels", before as u64, total as u64))?;
        stored.append(&buffer[..bytes], &mut values);
    }
    Ok(values)
}

/// The sform, else the qform, else the spacing alone, in millimetres; one that does not span space is refused by name.
fn affine(path: &Path, header: &NiftiHeader) -> Result<([[f64; 4]; 3], &'static str)> {
    let p = header.pixdim.map(f64::from);
    let (affine, source) = if header.sform_code > 0 {
        ([header.srow_x, header.srow_y, header.srow_z].map(|row| row.map(f64::from)), "sform")
    } else if header.qform_code > 0 {
        (qform(header), "qform")
    } else {
        ([[p[1], 0.0, 0.0, 0.0], [0.0, p[2], 0.0, 0.0], [0.0, 0.0, p[3], 0.0]], "pixdim")
    };
    let [x, y, z] = [0, 1, 2].map(|axis| [0, 1, 2].map(|row: usize| affine[row][axis]));
    let cross = [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]];
    let volume = (cross[0] * z[0] + cross[1] * z[1] + cross[2] * z[2]).abs();
    // below 0.05 the axes nearly lie in a plane; a gantry's tilt (30 degrees) leaves 0.87
    if volume <= 0.05 * lengths(&affine).iter().product::<f64>() || affine.iter().flatten().any(|value| !value.is_finite()) {
        return Err(Error::field(path, source, format!("{affine:?} does not span three dimensions")));
    }
    let to_mm = unit(header).1;
    Ok((affine.map(|row| row.map(|value| value * to_mm)), source))
}

/// The unit of space (low three bits of xyzt_units) and its millimetres; an unknown one is taken as millimetres.
fn unit(header: &NiftiHeader) -> (&'static str, f64) {
    match header.xyzt_units & 7 {
        1 => ("metres", 1000.0),
        3 => ("micrometres", 0.001),
        _ => ("millimetres", 1.0),
    }
}

/// Lengths of the affine's columns (z, y, x).
fn lengths(affine: &[[f64; 4]; 3]) -> [f64; 3] {
    [2, 1, 0].map(|axis| (0..3).map(|row| affine[row][axis].powi(2)).sum::<f64>().sqrt())
}

fn qform(header: &NiftiHeader) -> [[f64; 4]; 3] {
    let p = header.pixdim.map(f64::from);
    let mut quaternion = [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from);
    let length = quaternion.iter().map(|part| part * part).sum::<f64>();
    if length > 1.0 {
        // as nifti1_io.c: rounding left no room for a, a half turn
        quaternion = quaternion.map(|part| part / length.sqrt());
    }
    let [b, c, d] = quaternion;
    let a = (1.0 - length).max(0.0).sqrt();
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ];
    let flip = if p[0] < 0.0 { -1.0 } else { 1.0 };
    let offsets = [header.quatern_x, header.quatern_y, header.quatern_z].map(f64::from);
    [0, 1, 2].map(|r: usize| [rotation[r][0] * p[1], rotation[r][1] * p[2], rotation[r][2] * p[3] * flip, offsets[r]])
}

fn notices(header: &NiftiHeader, affine: &[[f64; 4]; 3], source: &str) -> Vec<String> {
    let (name, to_mm) = unit(header);
    let spacing = lengths(affine);
    let declared = [3, 2, 1].map(|axis| f64::from(header.pixdim[axis]) * to_mm);
    let mut notices = Vec::new();
    if source == "pixdim" {
        notices.push("neither sform nor qform: x, y, z are taken to run right, anterior, superior".to_string());
    }
    if spacing.iter().zip(declared).any(|(a, b)| (a - b).abs() > 0.01 * b) {
        notices.push(format!("{source} spacing {spacing:.3?} mm differs from pixdim {declared:.3?} mm; {source} is used"));
    }
    if to_mm != 1.0 {
        notices.push(format!("xyzt_units: {name}; the spacing becomes {spacing:.3?} mm"));
    }
    notices
}
