//! Broken DICOM: one line each, naming file and field.

use std::path::Path;

use crate::assert_refused;
use crate::dicom::{series, stored, write};
use crate::dicom_file::{DicomFile, EXPLICIT, Pixels};

/// A series of three whose second slice is changed; the line must name that slice.
#[track_caller]
fn slice_refused(change: impl Fn(DicomFile) -> DicomFile, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut files = series(3);
    files[1].1 = change(files[1].1.clone());
    write(folder.path(), &files);
    assert_refused(folder.path(), &folder.path().join("02.dcm"), words);
}

/// A series of slices at these depths; the line must name the folder.
#[track_caller]
fn depths_refused(depths: &[f64], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for (index, depth) in depths.iter().enumerate() {
        DicomFile::slice([4, 3], *depth, &stored(index)).write(folder.path(), &format!("{index}.dcm"));
    }
    assert_refused(folder.path(), folder.path(), words);
}

#[test]
fn a_folder_without_slices_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(folder.path(), folder.path(), &["holds no DICOM slice"]);
    DicomFile::report().write(folder.path(), "report.dcm");
    assert_refused(folder.path(), folder.path(), &["holds no DICOM slice"]);
    let report = folder.path().join("report.dcm");
    assert_refused(&report, &report, &["PixelData", "missing"]);
    let missing = Path::new("/nowhere/series");
    assert_refused(missing, missing, &["no such file or folder"]);
}

#[test]
fn a_single_slice_is_not_a_volume() {
    depths_refused(&[10.0], &["slices", "single slice"]);
}

#[test]
fn two_slices_at_one_position_are_named() {
    depths_refused(&[0.0, 5.0, 10.0, 5.0], &["slices", "duplicate position between 1.dcm (at 5.00 mm) and 3.dcm (at 5.00 mm)"]);
}

#[test]
fn missing_slices_are_counted_and_placed() {
    let between = "between 1.dcm (at 5.00 mm) and 2.dcm";
    depths_refused(&[0.0, 5.0, 20.0, 25.0, 30.0], &["slices", "2 missing", between, "15.00 mm apart, 5.00 mm elsewhere"]);
    depths_refused(&[0.0, 5.0, 15.0], &["slices", "1 missing", between]);
}

#[test]
fn unequal_distances_are_placed() {
    depths_refused(&[0.0, 5.0, 10.0, 16.5, 21.5], &["slices", "unequal distance between 2.dcm", "6.50 mm, 5.00 mm elsewhere"]);
}

#[test]
fn slices_of_another_geometry_in_one_series_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (element, value) in [(0x0010, "4"), (0x0030, "2.5\\2")] {
        let mut files = series(3);
        let representation = if element == 0x0010 { "US" } else { "DS" };
        files[1].1 = files[1].1.clone().with(0x0028, element, representation, value);
        write(folder.path(), &files);
        assert_refused(folder.path(), &folder.path().join("02.dcm"), &["geometry", "03.dcm"]);
    }
    slice_refused(|file| file.with(0x0020, 0x0037, "DS", "0.995\\0.0998\\0\\-0.0998\\0.995\\0"), &["geometry"]);
}

#[test]
fn missing_and_senseless_geometry_is_named() {
    slice_refused(|file| file.without(0x0020, 0x0032), &["ImagePositionPatient", "missing"]);
    slice_refused(|file| file.with(0x0020, 0x0032, "DS", "1\\2"), &["ImagePositionPatient", "expected 3 numbers"]);
    slice_refused(|file| file.without(0x0020, 0x0037), &["ImageOrientationPatient", "missing"]);
    slice_refused(|file| file.with(0x0020, 0x0037, "DS", "0\\0\\0\\0\\0\\0"), &["ImageOrientationPatient", "unit vectors"]);
    slice_refused(|file| file.with(0x0020, 0x0037, "DS", "1\\0\\0\\1\\0\\0"), &["ImageOrientationPatient", "unit vectors"]);
    slice_refused(|file| file.without(0x0028, 0x0030), &["PixelSpacing", "missing"]);
    for spacing in ["0\\2", "-1\\2", "nan\\2", "2"] {
        slice_refused(|file| file.with(0x0028, 0x0030, "DS", spacing), &["PixelSpacing"]);
    }
    slice_refused(|file| file.without(0x0028, 0x0010), &["Rows", "missing"]);
    slice_refused(|file| file.without(0x0028, 0x0011), &["Columns", "missing"]);
}

#[test]
fn colour_palettes_and_missing_photometry_are_named() {
    for colour in ["RGB", "YBR_FULL_422", "PALETTE COLOR"] {
        slice_refused(|file| file.with(0x0028, 0x0004, "CS", colour), &["PhotometricInterpretation", colour]);
    }
    slice_refused(|file| file.without(0x0028, 0x0004), &["PhotometricInterpretation", "missing"]);
}

#[test]
fn several_frames_in_one_file_are_named() {
    slice_refused(|file| file.with(0x0028, 0x0008, "IS", "64"), &["NumberOfFrames", "64", "one slice a file"]);
}

#[test]
fn pixels_that_are_missing_or_too_few_or_too_many_are_named() {
    slice_refused(|file| file.with_pixels(EXPLICIT, Pixels::Absent), &["PixelData"]);
    slice_refused(|file| file.with_pixels(EXPLICIT, Pixels::Plain(vec![0; 11])), &["PixelData", "11 pixels; expected 3 x 4"]);
    slice_refused(|file| file.with_pixels(EXPLICIT, Pixels::Plain(vec![0; 24])), &["PixelData", "24 pixels; expected 3 x 4"]);
}

#[test]
fn bits_that_do_not_fit_are_named() {
    slice_refused(|file| file.with(0x0028, 0x0100, "US", "32"), &["BitsAllocated", "32"]);
    slice_refused(|file| file.with(0x0028, 0x0101, "US", "0"), &["BitsAllocated"]);
    slice_refused(|file| file.with(0x0028, 0x0102, "US", "16"), &["BitsAllocated"]);
}

#[test]
fn a_rescale_that_is_no_number_or_loses_every_value_is_named() {
    slice_refused(|file| file.with(0x0028, 0x1053, "DS", "0"), &["RescaleSlope", "0"]);
    slice_refused(|file| file.with(0x0028, 0x1053, "DS", "one"), &["RescaleSlope", "not numbers"]);
    slice_refused(|file| file.with(0x0028, 0x1052, "DS", "nan"), &["RescaleIntercept"]);
}

#[test]
fn a_truncated_slice_is_named() {
    let whole = series(3).swap_remove(1).1.bytes();
    for length in [132, 150, 200, 300, whole.len() - 24, whole.len() - 1] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &series(3));
        std::fs::write(folder.path().join("02.dcm"), &whole[..length]).unwrap();
        assert_refused(folder.path(), &folder.path().join("02.dcm"), &[]);
    }
}
