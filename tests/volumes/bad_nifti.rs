//! Broken NIfTI files: one line each, naming file and field, and no allocation before the refusal.

use std::path::Path;

use ctscribe::volume::inspect;

use crate::assert_refused;
use crate::nifti_file::{NiftiFile, gzip};

fn good() -> NiftiFile {
    NiftiFile::int16([4, 3, 2], &(0..24).collect::<Vec<_>>())
}

/// Writes the file plain and compressed; both must be refused with these words.
#[track_caller]
fn refused(file: &NiftiFile, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["scan.nii", "scan.nii.gz"] {
        let path = file.write(folder.path(), name);
        assert_refused(&path, &path, words);
    }
}

fn bytes_refused(name: &str, bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    assert_refused(&path, &path, words);
}

#[test]
fn a_missing_file_is_named() {
    let path = Path::new("/nowhere/scan.nii.gz");
    assert_refused(path, path, &["no such file"]);
}

#[test]
fn another_kind_of_file_is_named() {
    bytes_refused("scan.nrrd", b"NRRD0004 and more", &["neither NIfTI (.nii, .nii.gz) nor DICOM"]);
}

#[test]
fn an_empty_file_is_named() {
    bytes_refused("scan.nii", b"", &["empty"]);
    bytes_refused("scan.nii.gz", b"", &["empty"]);
    bytes_refused("scan.nii.gz", &gzip(b""), &["header", "0 of 348 bytes"]);
}

#[test]
fn a_truncated_plain_file_is_named_with_what_it_lacks() {
    let bytes = good().bytes();
    bytes_refused("scan.nii", &bytes[..100], &["header", "100 of 348 bytes"]);
    bytes_refused("scan.nii", &bytes[..350], &["vox_offset", "352", "350 bytes"]);
    bytes_refused("scan.nii", &bytes[..352], &["dim", "4 x 3 x 2 voxels are 48 bytes", "0 at most"]);
    bytes_refused("scan.nii", &bytes[..bytes.len() - 1], &["dim", "48 bytes", "47 at most"]);
}

#[test]
fn a_file_truncated_before_compression_is_named_with_what_it_lacks() {
    let bytes = good().bytes();
    bytes_refused("scan.nii.gz", &gzip(&bytes[..100]), &["header", "100 of 348 bytes"]);
    bytes_refused("scan.nii.gz", &gzip(&bytes[..350]), &["header extension", "2 of 4 bytes"]);
    bytes_refused("scan.nii.gz", &gzip(&bytes[..bytes.len() - 1]), &["voxels", "47 of 48 bytes"]);
}

#[test]
fn a_gzip_stream_cut_anywhere_is_refused() {
    let compressed = gzip(&good().bytes());
    for length in 1..compressed.len() {
        bytes_refused("scan.nii.gz", &compressed[..length], &[]);
    }
}

#[test]
fn a_damaged_gzip_stream_is_refused_by_its_checksum() {
    let mut compressed = gzip(&good().bytes());
    let checksum = compressed.len() - 8;
    compressed[checksum] ^= 1;
    bytes_refused("scan.nii.gz", &compressed, &["voxels", "cannot be decompressed", "checksum"]);
}

#[test]
fn what_is_not_gzip_is_named() {
    bytes_refused("scan.nii.gz", &good().bytes(), &["header", "cannot be decompressed", "invalid gzip header"]);
    bytes_refused("scan.nii", &gzip(&vec![7; 1000]), &[]);
    bytes_refused("scan.nii", &[0x5A; 1000], &["header", "not NIfTI-1"]);
}

#[test]
fn other_formats_of_the_family_are_named() {
    let mut bytes = good().bytes();
    bytes[..4].copy_from_slice(&540i32.to_le_bytes());
    bytes_refused("scan.nii", &bytes, &["sizeof_hdr", "NIfTI-2"]);
    refused(&NiftiFile { magic: *b"ni1\0", ..good() }, &["magic", ".img"]);
    refused(&NiftiFile { magic: *b"nope", ..good() }, &["header", "not NIfTI-1"]);
}

#[test]
fn dimensions_that_are_no_volume_are_named() {
    let with = |dim: &[i16]| NiftiFile { dim: dim.to_vec(), ..good() };
    refused(&with(&[2, 6, 4]), &["dim", "2-D"]);
    refused(&with(&[0, 4, 3, 2]), &["dim", "0-D"]);
    refused(&with(&[0x0909, 4, 3, 2]), &["dim", "2313-D"]);
    refused(&with(&[4, 4, 3, 1, 2]), &["dim", "[4, 3, 1, 2] holds several frames"]);
    refused(&with(&[5, 2, 3, 2, 1, 2]), &["dim", "several frames"]);
    refused(&with(&[3, 4, 0, 2]), &["dim", "[4, 0, 2]", "without voxels"]);
    refused(&with(&[3, 4, -3, 2]), &["dim", "[4, -3, 2]", "without voxels"]);
    refused(&with(&[3, 24, 1, 1]), &["dimensions", "single voxel along z"]);
    refused(&with(&[3, 6, 4, 1]), &["dimensions", "single voxel along z"]);
    refused(&with(&[3, 1, 6, 4]), &["dimensions", "single voxel along x"]);
}

#[test]
fn terabytes_in_the_header_are_refused_before_they_are_allocated() {
    let absurd = NiftiFile { dim: vec![3, 32767, 32767, 32767], ..good() }.with_type(64, 8, vec![0; 192]);
    refused(&absurd, &["dim", "32767 x 32767 x 32767 voxels are 281449207693304 bytes"]);
}

#[test]
fn a_header_that_claims_more_voxels_than_the_file_has_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let more = NiftiFile { dim: vec![3, 4, 3, 3], ..good() };
    let plain = more.write(folder.path(), "scan.nii");
    assert_refused(&plain, &plain, &["dim", "4 x 3 x 3 voxels are 72 bytes", "48 at most"]);
    let compressed = more.write(folder.path(), "scan.nii.gz");
    assert_refused(&compressed, &compressed, &["voxels", "48 of 72 bytes"]);
}

#[test]
fn types_that_are_not_one_number_are_named() {
    for code in [0, 1, 32, 128, 1536, 1792, 2048, 2304, -1, 3] {
        refused(&NiftiFile { datatype: code, ..good() }, &["datatype", &code.to_string()]);
    }
}

#[test]
fn voxels_that_begin_in_the_header_or_behind_the_file_are_named() {
    for offset in [0.0, 100.0, -1.0, f32::NAN, f32::INFINITY] {
        refused(&NiftiFile { vox_offset: offset, ..good() }, &["vox_offset"]);
    }
    refused(&NiftiFile { vox_offset: 1e30, ..good() }, &["vox_offset", "behind the end"]);
}

#[test]
fn spacings_that_are_not_positive_are_named() {
    for axis in 1..=3 {
        for spacing in [0.0, -0.7, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut file = good();
            file.pixdim[axis] = spacing;
            refused(&file, &[&format!("pixdim[{axis}]"), &spacing.to_string(), "expected a positive spacing"]);
        }
    }
}

#[test]
fn an_affine_that_does_not_span_space_is_named() {
    let (x, y, z) = ([-3.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]);
    let nan = [0.0, 0.0, f32::NAN, 0.0];
    let lost = [0.0, 0.0, 4.0, f32::INFINITY];
    for rows in [[[0.0; 4]; 3], [x, y, [0.0; 4]], [x, x, z], [x, y, nan], [x, y, lost], [x, [0.0, -2.0, 4.0, 0.0], [0.0, 0.01, 0.0, 0.0]]] {
        refused(&NiftiFile { sform: Some(rows), ..good() }, &["sform", "does not span three dimensions"]);
    }
    refused(&NiftiFile { sform: None, qform: Some([f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0]), ..good() }, &["qform", "does not span"]);
}

#[test]
fn voxels_that_are_not_finite_are_counted() {
    for (bad, count) in [(vec![f32::NAN], 1), (vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN], 3)] {
        let mut voxels = [0f32; 24];
        voxels[..bad.len()].copy_from_slice(&bad);
        let bytes = voxels.iter().flat_map(|voxel| voxel.to_le_bytes()).collect();
        refused(&good().with_type(16, 4, bytes), &["voxels", &format!("{count} of 24"), "NaN or infinite"]);
    }
}

#[test]
fn a_body_without_lungs_is_not_a_chest() {
    let folder = tempfile::tempdir().unwrap();
    // water around a spine
    let inside = |at: usize| (at % 20).abs_diff(10) < 7 && (at / 20 % 20).abs_diff(10) < 7;
    let voxels: Vec<i16> = (0..20 * 20 * 10)
        .map(|at| {
            if at % 20 == 10 && at / 20 % 20 > 13 {
                300
            } else if inside(at) {
                0
            } else {
                -1000
            }
        })
        .collect();
    let inspection = inspect(&NiftiFile::int16([20, 20, 10], &voxels).write(folder.path(), "water.nii.gz"), None).unwrap();
    assert_eq!((inspection.chest.lung_share, inspection.chest.is_chest), (0.0, false));
    assert_eq!(inspection.warnings, ["does not look like a chest: 0.0% of the body has lung's density"]);
    assert!(inspection.to_string().contains("warning: does not look like a chest"));
}
