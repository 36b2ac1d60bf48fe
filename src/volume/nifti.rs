//! NIfTI-1, read at once into f32.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use nifti::{Endianness, NiftiHeader};

use crate::{Error, Result};

use super::Volume;

const HEADER: usize = 348;

/// A voxel type: its name and size in bytes.
fn voxel_type(code: i16) -> Option<(&'static str, usize)> {
    Some(match code {
        2 => ("uint8", 1),
        4 => ("int16", 2),
        8 => ("int32", 4),
        16 => ("float32", 4),
        64 => ("float64", 8),
        256 => ("int8", 1),
        512 => ("uint16", 2),
        768 => ("uint32", 4),
        1024 => ("int64", 8),
        1280 => ("uint64", 8),
        _ => return None,
    })
}

pub(super) fn read(path: &Path) -> Result<Volume> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut raw: Box<dyn Read> = Box::new(BufReader::new(file));
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
        raw = Box::new(MultiGzDecoder::new(raw));
    }
    let mut head = vec![0u8; HEADER];
    read_whole(path, &mut raw, &mut head, "header")?;
    let header = NiftiHeader::from_reader(head.as_slice()).map_err(|e| Error::field(path, "header", format!("not NIfTI-1: {e}")))?;
    let shape = dimensions(path, &header)?;
    let code = header.datatype;
    let (name, size) = voxel_type(code).ok_or_else(|| Error::field(path, "datatype", format!("{code} is not an integer or float type")))?;
    let offset = header.vox_offset;
    if !(offset.is_finite() && offset >= HEADER as f32) {
        return Err(Error::field(path, "vox_offset", format!("{offset}; expected at least {HEADER}")));
    }
    let mut gap = vec![0u8; offset as usize - HEADER];
    read_whole(path, &mut raw, &mut gap, "header extension")?;
    let values = voxels(path, &mut raw, shape.iter().product(), (code, size), header.endianness, scaling(&header))?;
    let (affine, source) = affine(&header);
    let spacing = [2, 1, 0].map(|axis| (0..3).map(|row| affine[row][axis] * affine[row][axis]).sum::<f64>().sqrt());
    let declared = [3, 2, 1].map(|axis| f64::from(header.pixdim[axis]).abs());
    let mut notices = Vec::new();
    if spacing.iter().zip(declared).any(|(a, b)| (a - b).abs() > 0.01 * b.max(1e-6)) && spacing.iter().all(|s| *s > 0.0) {
        notices.push(format!("{source} spacing {spacing:.3?} mm differs from pixdim {declared:.3?} mm; {source} is used"));
    }
    let spacing_mm = if spacing.iter().all(|s| *s > 0.0) { spacing } else { declared };
    Ok(Volume { values, shape, spacing_mm, affine, path: path.to_path_buf(), format: format!("NIfTI {name}"), notices })
}

fn read_whole(path: &Path, raw: &mut dyn Read, buffer: &mut [u8], what: &str) -> Result<()> {
    raw.read_exact(buffer).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::field(path, what, "the file ends early (truncated or empty)"),
        _ => Error::field(path, what, format!("cannot be decompressed or read: {e}")),
    })
}

/// (z, y, x), or what is wrong with the header's dim.
fn dimensions(path: &Path, header: &NiftiHeader) -> Result<[usize; 3]> {
    let dim = header.dim;
    let rank = dim[0] as usize;
    let axes: Vec<usize> = dim[1..=rank.min(7)].iter().map(|size| usize::from(*size)).collect();
    if rank < 3 || axes.len() < 3 {
        return Err(Error::field(path, "dim", format!("{rank}-D {axes:?}; expected a 3-D volume")));
    }
    if axes[3..].iter().any(|size| *size > 1) {
        return Err(Error::field(path, "dim", format!("{axes:?} holds several frames; expected one 3-D volume")));
    }
    if axes[..3].contains(&0) {
        return Err(Error::field(path, "dim", format!("{axes:?}: an axis without voxels")));
    }
    for (axis, spacing) in header.pixdim[1..=3].iter().enumerate() {
        if !(spacing.is_finite() && *spacing != 0.0) {
            return Err(Error::field(path, format!("pixdim[{}]", axis + 1), format!("{spacing} mm; expected a positive spacing")));
        }
    }
    Ok([axes[2], axes[1], axes[0]])
}

/// scl_slope 0 or NaN: no scaling.
fn scaling(header: &NiftiHeader) -> Option<(f64, f64)> {
    let (slope, inter) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
    let scaled = slope.is_finite() && slope != 0.0 && (slope, inter) != (1.0, 0.0);
    scaled.then_some((slope, if inter.is_finite() { inter } else { 0.0 }))
}

fn voxels(
    path: &Path,
    raw: &mut dyn Read,
    count: usize,
    (code, size): (i16, usize),
    endianness: Endianness,
    scale: Option<(f64, f64)>,
) -> Result<Vec<f32>> {
    let big = matches!(endianness, Endianness::Big);
    let mut values = Vec::with_capacity(count);
    let mut buffer = vec![0u8; (1 << 20) * size];
    while values.len() < count {
        let bytes = ((count - values.len()) * size).min(buffer.len());
        read_whole(path, raw, &mut buffer[..bytes], "voxels")?;
        let decoded = buffer[..bytes].chunks_exact(size).map(|bytes| decode(code, bytes, big));
        match scale {
            Some((slope, inter)) => values.extend(decoded.map(|value| (value * slope + inter) as f32)),
            None => values.extend(decoded.map(|value| value as f32)),
        }
    }
    Ok(values)
}

fn decode(code: i16, bytes: &[u8], big: bool) -> f64 {
    let mut b = [0u8; 8];
    let size = bytes.len();
    b[..size].copy_from_slice(bytes);
    if big {
        b[..size].reverse();
    }
    match code {
        2 => f64::from(b[0]),
        256 => f64::from(b[0] as i8),
        4 => f64::from(i16::from_le_bytes([b[0], b[1]])),
        512 => f64::from(u16::from_le_bytes([b[0], b[1]])),
        8 => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        768 => f64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        16 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        1024 => i64::from_le_bytes(b) as f64,
        1280 => u64::from_le_bytes(b) as f64,
        _ => f64::from_le_bytes(b),
    }
}

/// The sform, else the qform, else the spacing alone.
fn affine(header: &NiftiHeader) -> ([[f64; 4]; 3], &'static str) {
    if header.sform_code > 0 {
        return ([header.srow_x, header.srow_y, header.srow_z].map(|row| row.map(f64::from)), "sform");
    }
    let p = header.pixdim.map(f64::from);
    if header.qform_code > 0 {
        let [b, c, d] = [header.quatern_b, header.quatern_c, header.quatern_d].map(f64::from);
        let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
        let rotation = [
            [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
            [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
            [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ];
        let flip = if p[0] < 0.0 { -1.0 } else { 1.0 };
        let offsets = [header.quatern_x, header.quatern_y, header.quatern_z].map(f64::from);
        let row = |r: usize| [rotation[r][0] * p[1], rotation[r][1] * p[2], rotation[r][2] * p[3] * flip, offsets[r]];
        return ([row(0), row(1), row(2)], "qform");
    }
    ([[p[1], 0.0, 0.0, 0.0], [0.0, p[2], 0.0, 0.0], [0.0, 0.0, p[3], 0.0]], "pixdim")
}
