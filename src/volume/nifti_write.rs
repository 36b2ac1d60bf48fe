//! NIfTI-1, written: phantoms, heat maps.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{Error, Result};

use super::place::Grid;

/// NIfTI-1's codes of voxel types.
const UINT8: i16 = 2;
const INT16: i16 = 4;
/// Characters of the header's `descrip`, its closing zero among them.
const DESCRIPTION: usize = 80;

/// Voxels of 8 bits and what they stand for.
#[derive(Debug)]
pub struct ScaledVoxels<'a> {
    /// Voxels (z, y, x).
    pub values: &'a [u8],
    /// What a step of one means.
    pub slope: f32,
    /// At most 79 bytes of text for the header.
    pub description: &'a str,
}

/// Writes int16 voxels (z, y, x) with their affine, gzipped if the name ends in `.gz`; no scaling.
pub fn write_nifti(path: &Path, values: &[i16], shape: [usize; 3], spacing_mm: [f64; 3], affine: &[[f64; 4]; 3]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    write_file(path, &header(&Grid { shape, spacing_mm, affine: *affine }, INT16, 1.0, ""), &bytes)
}

/// Writes voxels of 8 bits on the grid of a scan, gzipped if the name ends in `.gz`.
pub fn write_scaled_nifti(path: &Path, voxels: &ScaledVoxels, grid: &Grid) -> Result<()> {
    write_file(path, &header(grid, UINT8, voxels.slope, voxels.description), voxels.values)
}

fn write_file(path: &Path, header: &[u8], voxels: &[u8]) -> Result<()> {
    let file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
    let written = if path.extension().is_some_and(|extension| extension == "gz") {
        let mut encoder = GzEncoder::new(file, Compression::fast());
        encoder.write_all(header).and_then(|()| encoder.write_all(voxels)).and_then(|()| encoder.finish()?.flush())
    } else {
        let mut file = file;
        file.write_all(header).and_then(|()| file.write_all(voxels)).and_then(|()| file.flush())
    };
    written.map_err(|e| Error::io(path, e))
}

/// 348 bytes of header and four of "no extension".
fn header(grid: &Grid, datatype: i16, slope: f32, description: &str) -> Vec<u8> {
    let mut bytes = vec![0u8; 352];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let [z, y, x] = grid.shape.map(|size| size as i16);
    put(0, &348i32.to_le_bytes());
    for (index, size) in [3, x, y, z, 1, 1, 1, 1].iter().enumerate() {
        put(40 + 2 * index, &size.to_le_bytes());
    }
    put(70, &datatype.to_le_bytes());
    put(72, &if datatype == UINT8 { 8i16 } else { 16 }.to_le_bytes());
    let [dz, dy, dx] = grid.spacing_mm;
    for (index, spacing) in [1.0, dx, dy, dz].iter().enumerate() {
        put(76 + 4 * index, &(*spacing as f32).to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &slope.to_le_bytes()); // scl_slope
    put(123, &[2]); // millimetres
    let text = description.as_bytes();
    put(148, &text[..text.len().min(DESCRIPTION - 1)]);
    put(254, &1i16.to_le_bytes()); // sform: scanner
    for (row, values) in grid.affine.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            put(280 + 16 * row + 4 * column, &(*value as f32).to_le_bytes());
        }
    }
    put(344, b"n+1\0");
    bytes
}
