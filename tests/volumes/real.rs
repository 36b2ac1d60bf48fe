//! Scans as they come from scanners and tool kits.

use std::path::Path;

use ctscribe::volume::{Orientation, Volume, inspect, orient, orientation_code, read};

use crate::data;

fn oriented(path: &Path) -> Volume {
    orient(read(path).unwrap(), Orientation::Lps)
}

#[test]
fn the_dicom_folder_and_the_nifti_file_of_one_scan_agree_within_one_unit() {
    let (Some(nifti), Some(dicom)) = (data("ct/Chest_CT.nii.gz"), data("ct/Chest_CT_dicom")) else { return };
    let (nifti, dicom) = (oriented(&nifti), oriented(&dicom));
    assert_eq!((dicom.shape, nifti.shape), ([64, 512, 512], [64, 512, 512]));
    let worst = dicom.values.iter().zip(&nifti.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1.0, "differs by {worst} HU");
    for axis in 0..3 {
        assert!((dicom.spacing_mm[axis] - nifti.spacing_mm[axis]).abs() < 1e-3, "{:?} {:?}", dicom.spacing_mm, nifti.spacing_mm);
        for column in 0..4 {
            // positions are rounded to a hundredth of a millimetre
            assert!((dicom.affine[axis][column] - nifti.affine[axis][column]).abs() < 0.01, "{:?} {:?}", dicom.affine, nifti.affine);
        }
    }
}

#[test]
fn one_slice_named_outright_reads_its_whole_series() {
    let Some(folder) = data("ct/Chest_CT_dicom") else { return };
    assert_eq!(read(&folder.join("1-07.dcm")).unwrap().values, read(&folder).unwrap().values);
}

/// The scan's share of lung density must lie in `lung_share`, and the verdict follow it without another warning.
fn looks_like(name: &str, chest: bool, lung_share: std::ops::Range<f64>) {
    let Some(path) = data(&format!("ct/{name}")) else { return };
    let inspection = inspect(&path, None).unwrap();
    println!("{inspection}");
    assert_eq!(inspection.hounsfield.as_ref().map(|verdict| verdict.decision.as_str()), Some("already_hu"), "{inspection}");
    assert!(lung_share.contains(&inspection.chest.lung_share), "{inspection}");
    assert_eq!(inspection.chest.is_chest, chest);
    let warned = inspection.warnings.iter().any(|warning| warning.starts_with("does not look like a chest"));
    assert_eq!(warned, !chest, "{inspection}");
}

#[test]
fn the_two_whole_chests_and_the_crops_look_like_chests() {
    looks_like("lung1_image.nii.gz", true, 0.1..0.6);
    looks_like("Chest_CT.nii.gz", true, 0.1..0.6);
    looks_like("Chest_CT_dicom", true, 0.1..0.6);
    looks_like("chest_crop_contrast.nii.gz", true, 0.1..0.9);
    looks_like("3DCT_lung_baseline_small.nii.gz", true, 0.1..0.9);
}

#[test]
fn the_abdomen_is_warned_of() {
    looks_like("abdomen_not_chest_ras_int32.nii.gz", false, 0.0..0.08);
}

#[test]
fn the_abdomen_lies_to_the_right_and_is_turned() {
    let Some(path) = data("ct/abdomen_not_chest_ras_int32.nii.gz") else { return };
    let stored = read(&path).unwrap();
    assert_eq!((orientation_code(&stored.affine).as_str(), stored.format.as_str()), ("RAS", "NIfTI int32"));
    let [nz, ny, nx] = stored.shape;
    let turned = orient(stored.clone(), Orientation::Lps);
    assert_eq!((orientation_code(&turned.affine).as_str(), turned.shape), ("LPS", stored.shape));
    let same = |(index, value): (usize, &f32)| {
        let (z, y, x) = (index / (ny * nx), index / nx % ny, index % nx);
        *value == turned.values[(z * ny + ny - 1 - y) * nx + nx - 1 - x]
    };
    assert!(nz > 1 && stored.values.iter().enumerate().all(same));
}

#[test]
fn the_crops_and_the_mask_are_read_with_their_grids() {
    // (x, y, z) voxels and millimetres, from the sources' documentation
    let grids = [
        ("3DCT_lung_baseline_small.nii.gz", [57, 78, 64], [2.73, 2.73, 5.0]),
        ("chest_crop_contrast.nii.gz", [122, 102, 112], [1.5, 1.5, 1.5]),
        ("lung1_image.nii.gz", [512, 512, 48], [0.570, 0.570, 5.0]),
        ("Chest_CT.nii.gz", [512, 512, 64], [0.842, 0.842, 5.0]),
    ];
    for (name, [x, y, z], spacing) in grids {
        let Some(path) = data(&format!("ct/{name}")) else { return };
        let volume = read(&path).unwrap();
        assert_eq!(volume.shape, [z, y, x], "{name}");
        for (found, expected) in volume.spacing_mm.iter().rev().zip(spacing) {
            assert!((found - expected).abs() < 0.01, "{name}: {:?}", volume.spacing_mm);
        }
    }
    let Some(path) = data("ct/chest_crop_contrast_heart.nii.gz") else { return };
    let mask = read(&path).unwrap();
    assert_eq!(mask.shape, [191, 167, 233]);
    let marked = mask.values.iter().filter(|value| **value == 1.0).count();
    let empty = mask.values.iter().filter(|value| **value == 0.0).count();
    assert!(marked > 1000 && marked + empty == mask.values.len(), "{marked} marked, {empty} empty");
}
