//! NIfTI-1: voxel types, byte orders, compression, scaling, frames, units.

use ctscribe::volume::read;

use crate::nifti_file::{NiftiFile, gzip};

/// A type's code, name, size, and eight of its values: as bytes, and as they must be read.
type Case = (i16, &'static str, usize, Vec<u8>, Vec<f32>);

macro_rules! case {
    ($code:expr, $name:expr, $type:ty, $values:expr) => {{
        let values: [$type; 8] = $values;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        ($code, $name, size_of::<$type>(), bytes, values.iter().map(|value| *value as f32).collect())
    }};
}

fn cases() -> Vec<Case> {
    vec![
        case!(2, "uint8", u8, [0, 1, 2, 127, 128, 200, 254, 255]),
        case!(256, "int8", i8, [0, 1, -1, 127, -128, 50, -50, 2]),
        case!(4, "int16", i16, [0, 1, -1, 32767, -32768, -1024, 3071, 258]),
        case!(512, "uint16", u16, [0, 1, 2, 32767, 32768, 65535, 1024, 258]),
        case!(8, "int32", i32, [0, 1, -1, i32::MAX, i32::MIN, -1024, 65536, 16_909_060]),
        case!(768, "uint32", u32, [0, 1, 2, u32::MAX, 1 << 31, 1024, 65536, 16_909_060]),
        case!(1024, "int64", i64, [0, 1, -1, i64::MAX, i64::MIN, -1024, 1 << 40, 16_909_060]),
        case!(1280, "uint64", u64, [0, 1, 2, u64::MAX, 1 << 63, 1024, 1 << 40, 16_909_060]),
        case!(16, "float32", f32, [0.0, 1.0, -1.0, 0.1, -1024.5, 3071.25, 1e-30, 1e30]),
        case!(64, "float64", f64, [0.0, 1.0, -1.0, 0.1, -1024.5, 3071.25, 1e-30, 1e30]),
    ]
}

#[test]
fn every_voxel_type_is_read_in_both_byte_orders_plain_and_compressed() {
    let folder = tempfile::tempdir().unwrap();
    for (code, name, size, bytes, expected) in cases() {
        for big_endian in [false, true] {
            let file = NiftiFile { big_endian, ..NiftiFile::int16([2, 2, 2], &[]).with_type(code, size, bytes.clone()) };
            for file_name in ["scan.nii", "scan.nii.gz", "SCAN.NII.GZ"] {
                let case = format!("{name} big endian {big_endian} {file_name}");
                let volume = read(&file.write(folder.path(), file_name)).unwrap();
                assert_eq!(volume.values, expected, "{case}");
                assert_eq!(volume.format, format!("NIfTI {name}"), "{case}");
                assert_eq!((volume.shape, volume.spacing_mm), ([2, 2, 2], [4.0, 2.0, 3.0]), "{case}");
                assert_eq!(volume.notices, Vec::<String>::new(), "{case}");
            }
        }
    }
}

#[test]
fn x_runs_fastest_and_the_shape_is_z_y_x() {
    let folder = tempfile::tempdir().unwrap();
    let voxels: Vec<i16> = (0..2 * 3 * 4).collect();
    let volume = read(&NiftiFile::int16([2, 3, 4], &voxels).write(folder.path(), "scan.nii")).unwrap();
    assert_eq!(volume.shape, [4, 3, 2]);
    assert_eq!(volume.values, (0..24).map(|value| value as f32).collect::<Vec<_>>());
}

#[test]
fn the_slope_scales_unless_it_is_zero_or_nan() {
    let folder = tempfile::tempdir().unwrap();
    let voxels = [0i16, 1, -1, 1000, -1000, 7, 8, 9];
    let cases: [([f32; 2], f64, f64); 7] = [
        ([1.0, 0.0], 1.0, 0.0),
        ([0.5, -1024.0], 0.5, -1024.0),
        ([-2.0, 3.0], -2.0, 3.0),
        ([1.0, -1024.0], 1.0, -1024.0),
        ([0.0, -1024.0], 1.0, 0.0),
        ([f32::NAN, -1024.0], 1.0, 0.0),
        ([2.0, f32::NAN], 2.0, 0.0),
    ];
    for (scl, slope, inter) in cases {
        for big_endian in [false, true] {
            let file = NiftiFile { scl, big_endian, ..NiftiFile::int16([2, 2, 2], &voxels) };
            let volume = read(&file.write(folder.path(), "scan.nii.gz")).unwrap();
            let expected: Vec<f32> = voxels.iter().map(|voxel| (f64::from(*voxel) * slope + inter) as f32).collect();
            assert_eq!(volume.values, expected, "{scl:?}");
        }
    }
}

#[test]
fn one_frame_of_four_or_five_dimensions_is_a_volume() {
    let folder = tempfile::tempdir().unwrap();
    let voxels: Vec<i16> = (0..12).collect();
    for dim in [vec![4, 2, 3, 2, 1], vec![5, 2, 3, 2, 1, 1], vec![4, 2, 3, 2, 0], vec![3, 2, 3, 2, 9]] {
        let file = NiftiFile { dim: dim.clone(), ..NiftiFile::int16([2, 3, 2], &voxels) };
        let volume = read(&file.write(folder.path(), "scan.nii")).unwrap();
        assert_eq!(volume.shape, [2, 3, 2], "{dim:?}");
        assert_eq!(volume.values, (0..12).map(|value| value as f32).collect::<Vec<_>>(), "{dim:?}");
    }
}

#[test]
fn a_header_extension_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let file = NiftiFile { vox_offset: 352.0 + 64.0, ..NiftiFile::int16([2, 2, 2], &[1, 2, 3, 4, 5, 6, 7, 8]) };
    let mut bytes = file.bytes();
    bytes[348] = 1;
    bytes.splice(352..352, [0xAB; 64]);
    for (name, bytes) in [("scan.nii", bytes.clone()), ("scan.nii.gz", gzip(&bytes))] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    }
}

#[test]
fn several_gzip_members_and_zeros_behind_them_are_read_as_gzip_does() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = NiftiFile::int16([2, 2, 2], &[1, 2, 3, 4, 5, 6, 7, 8]).bytes();
    let (head, tail) = bytes.split_at(355);
    let path = folder.path().join("scan.nii.gz");
    for padding in [0, 512] {
        std::fs::write(&path, [gzip(head), gzip(tail), vec![0; padding]].concat()).unwrap();
        assert_eq!(read(&path).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "{padding} zeros");
    }
}

#[test]
fn metres_and_micrometres_become_millimetres_with_a_notice() {
    let folder = tempfile::tempdir().unwrap();
    for (xyzt_units, unit_mm) in [(1, 1000.0), (3, 0.001)] {
        let file = NiftiFile::int16([2, 2, 2], &[0; 8]);
        let to_unit = |value: f32| (f64::from(value) / unit_mm) as f32;
        let file = NiftiFile {
            xyzt_units,
            pixdim: file.pixdim.map(to_unit),
            sform: file.sform.map(|rows| rows.map(|row| row.map(to_unit))),
            ..file
        };
        let volume = read(&file.write(folder.path(), "scan.nii")).unwrap();
        for (found, expected) in volume.spacing_mm.iter().zip([4.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-6, "{:?}", volume.spacing_mm);
        }
        assert_eq!(volume.notices.len(), 1);
        assert!(volume.notices[0].contains("xyzt_units"), "{:?}", volume.notices);
    }
}
