//! DICOM folders: order, rescale, geometry, several series, files that are no image.

use std::path::Path;

use ctscribe::volume::{read, to_mm};

use crate::dicom_file::{BIG_ENDIAN, DEFLATED, DicomFile, EXPLICIT, IMPLICIT, Pixels};

/// Stored pixels of slice `index`: 4 columns, 3 rows.
pub fn stored(index: usize) -> Vec<u16> {
    (0..12).map(|pixel| (100 * index + pixel) as u16).collect()
}

/// `count` slices 5 mm apart, named against their order, from 50 mm up.
pub fn series(count: usize) -> Vec<(String, DicomFile)> {
    let slice = |index: usize| DicomFile::slice([4, 3], 50.0 + 5.0 * index as f64, &stored(index));
    (0..count).map(|index| (format!("{:02}.dcm", count - index), slice(index))).collect()
}

pub fn write(folder: &Path, series: &[(String, DicomFile)]) {
    for (name, file) in series {
        file.write(folder, name);
    }
}

/// What [`series`] must be read as.
pub fn expected(count: usize) -> Vec<f32> {
    (0..count).flat_map(stored).map(|value| f32::from(value) - 1024.0).collect()
}

#[test]
fn slices_are_sorted_by_position_and_rescaled() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &series(4));
    let volume = read(folder.path()).unwrap();
    assert_eq!((volume.shape, volume.spacing_mm), ([4, 3, 4], [5.0, 2.0, 2.0]));
    assert_eq!(volume.values, expected(4));
    // DICOM's left and posterior become NIfTI's right and anterior
    assert_eq!(volume.affine, [[-2.0, 0.0, 0.0, 10.0], [0.0, -2.0, 0.0, 20.0], [0.0, 0.0, 5.0, 50.0]]);
    assert_eq!((volume.format.as_str(), volume.notices.len()), ("DICOM 4 slices", 0));
}

#[test]
fn one_file_stands_for_its_series() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &series(4));
    let other = DicomFile::slice([4, 3], 0.0, &stored(7)).with(0x0020, 0x000E, "UI", "1.2.4");
    other.write(folder.path(), "other");
    assert_eq!(read(&folder.path().join("02.dcm")).unwrap().values, expected(4));
}

#[test]
fn every_plain_transfer_syntax_gives_the_same_values() {
    for syntax in [IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN] {
        let folder = tempfile::tempdir().unwrap();
        for (index, (name, file)) in series(3).into_iter().enumerate() {
            file.with_pixels(syntax, Pixels::Plain(stored(index))).write(folder.path(), &name);
        }
        assert_eq!(read(folder.path()).unwrap().values, expected(3), "{syntax}");
    }
}

#[test]
fn each_slice_has_its_own_rescale() {
    let folder = tempfile::tempdir().unwrap();
    let rescaled = |index: usize, slope: &str, intercept: &str| {
        let (name, file) = series(3).swap_remove(index);
        file.with(0x0028, 0x1053, "DS", slope).with(0x0028, 0x1052, "DS", intercept).write(folder.path(), &name);
    };
    rescaled(0, "0.5", "-1000.5");
    rescaled(1, "2", "-8192");
    let (name, file) = series(3).swap_remove(2);
    file.without(0x0028, 0x1052).without(0x0028, 0x1053).write(folder.path(), &name);
    let volume = read(folder.path()).unwrap();
    let expected = [(0.5, -1000.5), (2.0, -8192.0), (1.0, 0.0)].into_iter().enumerate();
    let expected =
        expected.flat_map(|(index, (slope, intercept))| stored(index).into_iter().map(move |v| f32::from(v) * slope + intercept));
    assert_eq!(volume.values, expected.collect::<Vec<_>>());
}

#[test]
fn signed_pixels_keep_their_sign_in_16_and_in_12_bits() {
    for (bits, high) in [(16u16, 15), (12, 11)] {
        let folder = tempfile::tempdir().unwrap();
        let signed = [0i16, 1, -1, 2047, -2048, -1024, 300, -300, 5, 6, 7, -8];
        // twelve bits: what stands above them is no part of the number (old files keep overlays there)
        let stored: Vec<u16> =
            signed.iter().map(|value| if bits == 12 { *value as u16 & 0x0FFF | 0x5000 } else { *value as u16 }).collect();
        for z in [0.0, 1.0] {
            let file = DicomFile::slice([4, 3], z, &stored).with(0x0028, 0x0103, "US", "1").with(0x0028, 0x1052, "DS", "0");
            let file = file.with(0x0028, 0x0101, "US", &bits.to_string()).with(0x0028, 0x0102, "US", &high.to_string());
            file.write(folder.path(), &format!("{z}"));
        }
        let expected: Vec<f32> = signed.iter().chain(&signed).map(|value| f32::from(*value)).collect();
        assert_eq!(read(folder.path()).unwrap().values, expected, "{bits} bits");
    }
}

#[test]
fn overlay_bits_above_unsigned_pixels_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (name, file)) in series(2).into_iter().enumerate() {
        let overlaid = stored(index).into_iter().map(|bits| bits | 0x8000).collect();
        file.with_pixels(EXPLICIT, Pixels::Plain(overlaid)).write(folder.path(), &name);
    }
    assert_eq!(read(folder.path()).unwrap().values, expected(2));
}

#[test]
fn the_inverted_display_of_monochrome1_does_not_change_hounsfield_units() {
    let folder = tempfile::tempdir().unwrap();
    let inverted: Vec<_> = series(3).into_iter().map(|(name, file)| (name, file.with(0x0028, 0x0004, "CS", "MONOCHROME1"))).collect();
    write(folder.path(), &inverted);
    assert_eq!(read(folder.path()).unwrap().values, expected(3));
}

#[test]
fn sagittal_slices_run_along_their_normal() {
    let folder = tempfile::tempdir().unwrap();
    // rows run posterior, columns inferior: the normal is -x, so the first slice lies most left
    for (index, x) in [30.0, 20.0, 10.0].into_iter().enumerate() {
        let file = DicomFile::slice([4, 3], 0.0, &stored(index)).with(0x0020, 0x0037, "DS", "0\\1\\0\\0\\0\\-1");
        let file = file.with(0x0020, 0x0032, "DS", &format!("{x}\\-5\\70")).with(0x0028, 0x0030, "DS", "3\\2");
        file.write(folder.path(), &format!("{}", 9 - index));
    }
    let volume = read(folder.path()).unwrap();
    assert_eq!((volume.shape, volume.spacing_mm), ([3, 3, 4], [10.0, 3.0, 2.0]));
    assert_eq!(volume.values, expected(3));
    assert_eq!(to_mm(&volume.affine, [0.0, 0.0, 0.0]), [-30.0, 5.0, 70.0]);
    assert_eq!(to_mm(&volume.affine, [3.0, 2.0, 1.0]), [-20.0, -1.0, 64.0]);
}

#[test]
fn of_several_series_the_largest_is_read_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &series(4));
    for (name, file) in series(3) {
        file.with(0x0020, 0x000E, "UI", "1.2.4").write(folder.path(), &format!("thin-{name}"));
    }
    // a scout, a picture of the dose report without geometry
    let scout =
        DicomFile::slice([4, 3], 0.0, &stored(5)).with(0x0020, 0x000E, "UI", "1.2.5").with(0x0020, 0x0037, "DS", "1\\0\\0\\0\\0\\-1");
    scout.write(folder.path(), "scout");
    let picture = DicomFile::slice([4, 3], 0.0, &stored(6)).with(0x0020, 0x000E, "UI", "1.2.6").with(0x0028, 0x0004, "CS", "RGB");
    picture.without(0x0020, 0x0032).without(0x0020, 0x0037).write(folder.path(), "picture");
    let volume = read(folder.path()).unwrap();
    assert_eq!(volume.values, expected(4));
    assert_eq!(volume.notices, ["4 series in the folder; the largest is read (4 slices, 1.2.3)"]);
}

#[test]
fn dicom_files_without_an_image_are_passed_over_and_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &series(3));
    DicomFile::report().write(folder.path(), "DICOMDIR");
    DicomFile::report().write(folder.path(), "report.dcm");
    std::fs::write(folder.path().join("notes.txt"), "not DICOM").unwrap();
    let volume = read(folder.path()).unwrap();
    assert_eq!(volume.values, expected(3));
    assert_eq!(volume.notices, ["2 DICOM file(s) without an image are passed over (DICOMDIR, ..)"]);
}
