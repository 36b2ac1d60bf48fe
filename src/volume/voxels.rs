//! Voxels of NIfTI's types as f32.

/// How voxels are stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    /// NIfTI's code of the type.
    pub(super) code: i16,
    /// Bytes of a voxel.
    pub(super) size: usize,
    /// Whether the first byte is the highest.
    pub(super) big_endian: bool,
    /// Slope and intercept.
    pub(super) scale: Option<(f64, f64)>,
}

/// A voxel type: its name and size in bytes.
pub(super) fn voxel_type(code: i16) -> Option<(&'static str, usize)> {
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

impl Stored {
    /// Appends the voxels in `bytes`, scaled.
    pub(super) fn append(&self, bytes: &[u8], values: &mut Vec<f32>) {
        match self.code {
            2 => self.each(bytes, |b: [u8; 1]| f64::from(b[0]), values),
            256 => self.each(bytes, |b: [u8; 1]| f64::from(b[0] as i8), values),
            4 => self.each(bytes, |b| f64::from(i16::from_le_bytes(b)), values),
            512 => self.each(bytes, |b| f64::from(u16::from_le_bytes(b)), values),
            8 => self.each(bytes, |b| f64::from(i32::from_le_bytes(b)), values),
            768 => self.each(bytes, |b| f64::from(u32::from_le_bytes(b)), values),
            16 => self.each(bytes, |b| f64::from(f32::from_le_bytes(b)), values),
            1024 => self.each(bytes, |b| i64::from_le_bytes(b) as f64, values),
            1280 => self.each(bytes, |b| u64::from_le_bytes(b) as f64, values),
            _ => self.each(bytes, f64::from_le_bytes, values),
        }
    }

    /// One loop a case, each of them plain enough for vector code.
    fn each<const N: usize>(&self, bytes: &[u8], value: impl Fn([u8; N]) -> f64, values: &mut Vec<f32>) {
        let stored = bytes.as_chunks::<N>().0.iter();
        let swapped = |mut bytes: [u8; N]| {
            bytes.reverse();
            value(bytes)
        };
        match (self.scale, self.big_endian) {
            (None, false) => values.extend(stored.map(|b| value(*b) as f32)),
            (None, true) => values.extend(stored.map(|b| swapped(*b) as f32)),
            (Some((slope, inter)), false) => values.extend(stored.map(|b| (value(*b) * slope + inter) as f32)),
            (Some((slope, inter)), true) => values.extend(stored.map(|b| (swapped(*b) * slope + inter) as f32)),
        }
    }
}
