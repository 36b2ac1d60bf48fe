//! NIfTI-1, written: phantoms, heat maps.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{Error, Result};

/// Writes int16 voxels (z, y, x) with their affine, gzipped if the name ends in `.gz`; no scaling.
pub fn write_nifti(path: &Path, values: &[i16], shape: [usize; 3], spacing_mm: [f64; 3], affine: &[[f64; 4]; 3]) -> Result<()> {
    let header = header(shape, spacing_mm, affine);
    let file = BufWriter::new(File::create(path).map_err(|e| Error::io(path, e))?);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let written = if path.extension().is_some_and(|extension| extension == "gz") {
        let mut encoder = GzEncoder::new(file, Compression::fast());
        encoder.write_all(&header).and_then(|()| encoder.write_all(&bytes)).and_then(|()| encoder.finish()?.flush())
    } else {
        let mut file = file;
        file.write_all(&header).and_then(|()| file.write_all(&bytes)).and_then(|()| file.flush())
    };
    written.map_err(|e| Error::io(path, e))
}

/// 348 bytes of header and four of "no extension".
fn header(shape: [usize; 3], spacing_mm: [f64; 3], affine: &[[f64; 4]; 3]) -> Vec<u8> {
    let mut bytes = vec![0u8; 352];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &348i32.to_le_bytes());
    for (index, size) in [3, shape[2] as i16, shape[1] as i16, shape[0] as i16, 1, 1, 1, 1].iter().enumerate() {
        put(40 + 2 * index, &size.to_le_bytes());
    }
    put(70, &4i16.to_le_bytes()); // int16
    put(72, &16i16.to_le_bytes());
    for (index, spacing) in [1.0, spacing_mm[2], spacing_mm[1], spacing_mm[0]].iter().enumerate() {
        put(76 + 4 * index, &(*spacing as f32).to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &1f32.to_le_bytes()); // scl_slope
    put(123, &[2]); // millimetres
    put(254, &1i16.to_le_bytes()); // sform: scanner
    for (row, values) in affine.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            put(280 + 16 * row + 4 * column, &(*value as f32).to_le_bytes());
        }
    }
    put(344, b"n+1\0");
    bytes
}
