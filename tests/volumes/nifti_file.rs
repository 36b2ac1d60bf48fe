//! NIfTI-1 files, byte by byte.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// A header and its voxels, before they are written. Fields as in nifti1.h; shapes and voxels x first.
#[derive(Clone)]
pub struct NiftiFile {
    pub big_endian: bool,
    pub dim: Vec<i16>,
    pub datatype: i16,
    pub pixdim: [f32; 8],
    pub vox_offset: f32,
    pub scl: [f32; 2],
    pub xyzt_units: u8,
    pub qform: Option<[f32; 6]>,
    pub sform: Option<[[f32; 4]; 3]>,
    pub magic: [u8; 4],
    /// Voxels as the file holds them, little-endian, `size` bytes each.
    pub voxels: Vec<u8>,
    pub size: usize,
}

impl NiftiFile {
    /// int16 voxels on a left-posterior-superior grid of (3, 2, 4) mm.
    pub fn int16(dim: [i16; 3], voxels: &[i16]) -> Self {
        NiftiFile {
            big_endian: false,
            dim: vec![3, dim[0], dim[1], dim[2]],
            datatype: 4,
            pixdim: [1.0, 3.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.0],
            vox_offset: 352.0,
            scl: [1.0, 0.0],
            xyzt_units: 2,
            qform: None,
            sform: Some([[-3.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]),
            magic: *b"n+1\0",
            voxels: voxels.iter().flat_map(|voxel| voxel.to_le_bytes()).collect(),
            size: 2,
        }
    }

    /// Voxels of another type, given as little-endian bytes.
    pub fn with_type(mut self, datatype: i16, size: usize, voxels: Vec<u8>) -> Self {
        (self.datatype, self.size, self.voxels) = (datatype, size, voxels);
        self
    }

    /// The file's bytes, not compressed.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; 352];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let order = |mut value: Vec<u8>| {
            if self.big_endian {
                value.reverse();
            }
            value
        };
        let int16 = |value: i16| order(value.to_le_bytes().to_vec());
        let float32 = |value: f32| order(value.to_le_bytes().to_vec());
        put(0, &order(348i32.to_le_bytes().to_vec()));
        self.dim.iter().enumerate().for_each(|(index, size)| put(40 + 2 * index, &int16(*size)));
        put(70, &int16(self.datatype));
        put(72, &int16(8 * self.size as i16));
        self.pixdim.iter().enumerate().for_each(|(index, spacing)| put(76 + 4 * index, &float32(*spacing)));
        put(108, &float32(self.vox_offset));
        self.scl.iter().enumerate().for_each(|(index, value)| put(112 + 4 * index, &float32(*value)));
        put(123, &[self.xyzt_units]);
        if let Some(quaternion) = self.qform {
            put(252, &int16(1));
            quaternion.iter().enumerate().for_each(|(index, value)| put(256 + 4 * index, &float32(*value)));
        }
        if let Some(rows) = self.sform {
            put(254, &int16(1));
            rows.iter().flatten().enumerate().for_each(|(index, value)| put(280 + 4 * index, &float32(*value)));
        }
        put(344, &self.magic);
        bytes.extend(self.voxels.chunks_exact(self.size).flat_map(|voxel| order(voxel.to_vec())));
        bytes
    }

    /// Written as `name` into `folder`, gzipped if the name says so.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        let bytes = if name.to_lowercase().ends_with(".gz") { gzip(&self.bytes()) } else { self.bytes() };
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// One gzip member.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
