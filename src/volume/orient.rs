//! Axes by the affine.

use serde::{Deserialize, Serialize};

use super::Volume;

/// Which way a volume's axes run before it is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// As in the file: CT-CLIP's and the reference's scripts ignore the affine.
    AsStored,
    /// x toward the patient's left, y toward the back, z toward the head: how CT-RATE's files lie.
    Lps,
}

/// For each scanner axis (right, anterior, superior) the voxel axis (0 = x) that runs along it most, and its sign.
fn directions(affine: &[[f64; 4]; 3]) -> [(usize, f64); 3] {
    let spacing: Vec<f64> = (0..3).map(|axis| (0..3).map(|row| affine[row][axis].powi(2)).sum::<f64>().sqrt().max(1e-12)).collect();
    let permutations = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let score = |p: &[usize; 3]| (0..3).map(|row| affine[row][p[row]].abs() / spacing[p[row]]).sum::<f64>();
    let best = permutations.iter().max_by(|a, b| score(a).total_cmp(&score(b))).expect("there are six permutations");
    [0, 1, 2].map(|row| (best[row], if affine[row][best[row]] < 0.0 { -1.0 } else { 1.0 }))
}

/// The way the voxel axes x, y, z run, as three letters ("LPS": toward left, posterior, superior).
pub fn orientation_code(affine: &[[f64; 4]; 3]) -> String {
    let mut letters = ['?'; 3];
    for (row, (axis, sign)) in directions(affine).into_iter().enumerate() {
        letters[axis] = [['L', 'R'], ['P', 'A'], ['I', 'S']][row][usize::from(sign > 0.0)];
    }
    letters.iter().collect()
}

/// The volume with its axes permuted and flipped as `orientation` says; the affine follows.
pub fn orient(volume: Volume, orientation: Orientation) -> Volume {
    if orientation == Orientation::AsStored || orientation_code(&volume.affine) == "LPS" {
        return volume;
    }
    let directions = directions(&volume.affine);
    // new axis n runs along scanner axis n, toward left, posterior, superior
    let wanted = [-1.0, -1.0, 1.0];
    let source = [0, 1, 2].map(|n| directions[n].0);
    let flipped = [0, 1, 2].map(|n| directions[n].1 != wanted[n]);
    let old = [volume.shape[2], volume.shape[1], volume.shape[0]]; // x, y, z
    let strides = [1, old[0], old[0] * old[1]];
    let size = source.map(|axis| old[axis]);
    let mut values = Vec::with_capacity(volume.values.len());
    let at = |n: usize, index: usize| if flipped[n] { size[n] - 1 - index } else { index } * strides[source[n]];
    for z in 0..size[2] {
        for y in 0..size[1] {
            let line = at(2, z) + at(1, y);
            values.extend((0..size[0]).map(|x| volume.values[line + at(0, x)]));
        }
    }
    let mut affine = [[0.0; 4]; 3];
    for (row, new) in affine.iter_mut().enumerate() {
        new[3] = volume.affine[row][3];
        for n in 0..3 {
            let step = volume.affine[row][source[n]];
            new[n] = if flipped[n] { -step } else { step };
            new[3] += if flipped[n] { step * (size[n] - 1) as f64 } else { 0.0 };
        }
    }
    let old_spacing = [volume.spacing_mm[2], volume.spacing_mm[1], volume.spacing_mm[0]];
    let spacing = source.map(|axis| old_spacing[axis]);
    Volume { values, shape: [size[2], size[1], size[0]], spacing_mm: [spacing[2], spacing[1], spacing[0]], affine, ..volume }
}
