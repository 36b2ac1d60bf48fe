//! Affines: where they come from, and axes brought to left-posterior-superior.

use ctscribe::volume::{Orientation, Volume, orient, orientation_code, read, to_mm};

use crate::nifti_file::NiftiFile;

const PERMUTATIONS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// An int16 file of `size` voxels (x, y, z) whose values count up.
fn counting(size: [i16; 3]) -> NiftiFile {
    let voxels: Vec<i16> = (0..size.iter().product()).collect();
    NiftiFile::int16(size, &voxels)
}

/// The voxel nearest to a place in the scanner, for an affine without shear.
fn value_at(volume: &Volume, place: [f64; 3]) -> f32 {
    let [nz, ny, nx] = volume.shape;
    let all = (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..nx).map(move |x| [x, y, z])));
    let distance = |voxel: &[usize; 3]| {
        let mm = to_mm(&volume.affine, voxel.map(|index| index as f64));
        (0..3).map(|axis| (mm[axis] - place[axis]).powi(2)).sum::<f64>()
    };
    let [x, y, z] = all.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
    volume.values[(z * ny + y) * nx + x]
}

#[test]
fn all_forty_eight_axis_orders_are_oriented_to_the_same_volume() {
    let folder = tempfile::tempdir().unwrap();
    // voxels along right, anterior, superior, and their spacing
    let (count, spacing) = ([3usize, 4, 5], [0.5f32, 1.5, 2.5]);
    let value = |place: [usize; 3]| (100 * place[0] + 10 * place[1] + place[2]) as i16;
    let mut codes = std::collections::BTreeSet::new();
    for axes in PERMUTATIONS {
        for flips in 0..8 {
            let flipped = [0, 1, 2].map(|n| flips >> n & 1 == 1);
            let size = axes.map(|axis| count[axis]);
            let mut voxels = Vec::new();
            for c in 0..size[2] {
                for b in 0..size[1] {
                    for a in 0..size[0] {
                        let mut place = [0; 3];
                        for (n, index) in [a, b, c].into_iter().enumerate() {
                            place[axes[n]] = if flipped[n] { size[n] - 1 - index } else { index };
                        }
                        voxels.push(value(place));
                    }
                }
            }
            let mut rows = [[0f32; 4]; 3];
            for n in 0..3 {
                let axis = axes[n];
                rows[axis][n] = if flipped[n] { -spacing[axis] } else { spacing[axis] };
                rows[axis][3] = 10.0 + if flipped[n] { spacing[axis] * (size[n] - 1) as f32 } else { 0.0 };
            }
            let pixdim = [1.0, spacing[axes[0]], spacing[axes[1]], spacing[axes[2]], 0.0, 0.0, 0.0, 0.0];
            let file = NiftiFile { sform: Some(rows), pixdim, ..NiftiFile::int16(size.map(|n| n as i16), &voxels) };
            let stored = read(&file.write(folder.path(), "scan.nii")).unwrap();
            codes.insert(orientation_code(&stored.affine));
            let volume = orient(stored, Orientation::Lps);
            assert_eq!(orientation_code(&volume.affine), "LPS");
            assert_eq!((volume.shape, volume.spacing_mm), ([5, 4, 3], [2.5, 1.5, 0.5]));
            let expected = (0..5).flat_map(|z| (0..4).rev().flat_map(move |y| (0..3).rev().map(move |x| f32::from(value([x, y, z])))));
            assert_eq!(volume.values, expected.collect::<Vec<_>>(), "{axes:?} {flipped:?}");
            assert_eq!(volume.affine, [[-0.5, 0.0, 0.0, 11.0], [0.0, -1.5, 0.0, 14.5], [0.0, 0.0, 2.5, 10.0]]);
        }
    }
    assert_eq!(codes.len(), 48, "{codes:?}");
}

#[test]
fn a_tilted_volume_keeps_every_value_at_its_place_in_the_scanner() {
    let folder = tempfile::tempdir().unwrap();
    // x and z exchanged, 20 degrees about the anterior axis
    let (sin, cos) = 20f32.to_radians().sin_cos();
    let sform = Some([[-3.0 * sin, 0.0, 4.0 * cos, 5.0], [0.0, 2.0, 0.0, 6.0], [3.0 * cos, 0.0, 4.0 * sin, 7.0]]);
    let stored = read(&NiftiFile { sform, ..counting([3, 4, 5]) }.write(folder.path(), "scan.nii")).unwrap();
    let volume = orient(stored.clone(), Orientation::Lps);
    assert_eq!((volume.shape, orientation_code(&volume.affine).as_str()), ([3, 4, 5], "LPS"));
    for (spacing, expected) in volume.spacing_mm.iter().zip([3.0, 2.0, 4.0]) {
        assert!((spacing - expected).abs() < 1e-6, "{:?}", volume.spacing_mm);
    }
    for (index, value) in stored.values.iter().enumerate() {
        let voxel = [index % 3, index / 3 % 4, index / 12].map(|index| index as f64);
        assert_eq!(value_at(&volume, to_mm(&stored.affine, voxel)), *value);
    }
}

#[test]
fn the_sform_is_used_before_the_qform() {
    let folder = tempfile::tempdir().unwrap();
    let file = NiftiFile { qform: Some([0.0, 0.0, 0.0, 1.0, 2.0, 3.0]), ..counting([2, 2, 2]) };
    let volume = read(&file.write(folder.path(), "scan.nii")).unwrap();
    assert_eq!(volume.affine, [[-3.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]);
}

#[test]
fn the_qform_turns_flips_and_moves() {
    let folder = tempfile::tempdir().unwrap();
    let half = std::f32::consts::FRAC_1_SQRT_2;
    // (b, c, d), pixdim[0] -> affine without its last column
    let cases: [([f32; 3], f32, [[f64; 3]; 3]); 5] = [
        ([0.0, 0.0, 0.0], 1.0, [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]]),
        ([0.0, 0.0, 0.0], 0.0, [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]]),
        // half a turn about z, as scanners write LPS
        ([0.0, 0.0, 1.0], 1.0, [[-3.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 4.0]]),
        ([0.0, 1.0, 0.0], -1.0, [[-3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]]),
        // a quarter turn about x: y runs superior, z posterior
        ([half, 0.0, 0.0], 1.0, [[3.0, 0.0, 0.0], [0.0, 0.0, -4.0], [0.0, 2.0, 0.0]]),
    ];
    for ([b, c, d], handedness, expected) in cases {
        let mut file = NiftiFile { sform: None, qform: Some([b, c, d, 5.0, 6.0, 7.0]), ..counting([2, 2, 2]) };
        file.pixdim[0] = handedness;
        let volume = read(&file.write(folder.path(), "scan.nii.gz")).unwrap();
        for (row, (found, expected)) in volume.affine.iter().zip(expected).enumerate() {
            for (found, expected) in found.iter().zip(expected) {
                // f32 quaternions
                assert!((found - expected).abs() < 1e-5, "{b} {c} {d}: {:?}", volume.affine);
            }
            assert_eq!(found[3], 5.0 + row as f64);
        }
    }
}

#[test]
fn a_quaternion_longer_than_one_is_brought_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = NiftiFile { sform: None, qform: Some([0.0, 0.0, 1.1, 0.0, 0.0, 0.0]), ..counting([2, 2, 2]) };
    let volume = read(&file.write(folder.path(), "scan.nii")).unwrap();
    for (found, expected) in volume.spacing_mm.iter().zip([4.0, 2.0, 3.0]) {
        assert!((found - expected).abs() < 1e-9, "{:?}", volume.spacing_mm);
    }
}

#[test]
fn without_sform_and_qform_the_orientation_is_assumed_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let volume = read(&NiftiFile { sform: None, ..counting([2, 2, 2]) }.write(folder.path(), "scan.nii")).unwrap();
    assert_eq!(volume.affine, [[3.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]);
    assert_eq!(volume.notices, ["neither sform nor qform: x, y, z are taken to run right, anterior, superior"]);
}

#[test]
fn an_affine_whose_spacing_contradicts_pixdim_is_used_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = counting([2, 2, 2]);
    file.pixdim = [1.0; 8];
    let volume = read(&file.write(folder.path(), "scan.nii")).unwrap();
    assert_eq!(volume.spacing_mm, [4.0, 2.0, 3.0]);
    assert!(volume.notices.len() == 1 && volume.notices[0].contains("differs from pixdim"), "{:?}", volume.notices);
}
