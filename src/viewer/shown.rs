//! A prepared volume as it is shown: x toward the patient's left, y toward the back, z toward the head, in Hounsfield units.

use std::path::PathBuf;

use candle_core::Tensor;

use crate::Result;
use crate::volume::{Geometry, Orientation, Volume, compose, inverse, orient, to_mm};

/// A volume to look at.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Hounsfield units, (z, y, x).
    pub values: Vec<f32>,
    /// Voxels (z, y, x).
    pub shape: [usize; 3],
    /// Distance of voxel centres (z, y, x) in mm.
    pub spacing_mm: [f64; 3],
    /// Voxel (x, y, z) to scanner millimetres.
    pub affine: [[f64; 4]; 3],
    /// Prepared voxels (z, y, x) that were averaged into one.
    pub factor: [usize; 3],
    /// Prepared voxel (w, h, d) to shown voxel (x, y, z), before any averaging.
    from_prepared: [[f64; 4]; 3],
}

/// Something on a prepared grid, its axes turned as they are shown.
fn turned(values: Vec<f32>, shape: [usize; 3], affine: [[f64; 4]; 3]) -> Volume {
    let spacing_mm = [2, 1, 0].map(|axis: usize| affine.iter().map(|row| row[axis].powi(2)).sum::<f64>().sqrt());
    let (path, format) = (PathBuf::new(), String::new());
    orient(Volume { values, shape, spacing_mm, affine, path, format, notices: Vec::new() }, Orientation::Lps)
}

/// One value a patch, (d, h, w) with w fastest, turned as the volume of `geometry` is shown: values and shape (z, y, x).
pub(super) fn turn_patches(values: &[f32], patches: [usize; 3], geometry: &Geometry) -> (Vec<f32>, [usize; 3]) {
    let turned = turned(values.to_vec(), patches, geometry.prepared_affine());
    (turned.values, turned.shape)
}

impl Shown {
    /// Of a prepared volume (1, D, H, W) in which -1 and 1 stand for `range_hu`.
    pub fn new(prepared: &Tensor, geometry: &Geometry, range_hu: [f64; 2]) -> Result<Self> {
        let (_, d, h, w) = prepared.dims4()?;
        let (middle, half) = ((range_hu[0] + range_hu[1]) / 2.0, (range_hu[1] - range_hu[0]) / 2.0);
        let values: Vec<f32> = prepared.flatten_all()?.to_vec1()?;
        let values = values.into_iter().map(|value| (f64::from(value) * half + middle) as f32).collect();
        let affine = geometry.prepared_affine();
        let Volume { values, shape, spacing_mm, affine: shown, .. } = turned(values, [d, h, w], affine);
        let from_prepared = compose(&inverse(&shown), &affine);
        Ok(Shown { values, shape, spacing_mm, affine: shown, factor: [1; 3], from_prepared })
    }

    /// The box of prepared voxels `first..end` (each (d, h, w)) in shown voxels: lower and upper edge (z, y, x), counted from the volume's edge.
    pub fn place(&self, first: [usize; 3], end: [usize; 3]) -> [[f64; 3]; 2] {
        let edge = |[d, h, w]: [usize; 3]| {
            let [x, y, z] = to_mm(&self.from_prepared, [w, h, d].map(|at| at as f64 - 0.5));
            [z, y, x].map(|at| at + 0.5)
        };
        let (a, b) = (edge(first), edge(end));
        let within = |pick: fn(f64, f64) -> f64| [0, 1, 2].map(|axis| tidy(pick(a[axis], b[axis]) / self.factor[axis] as f64));
        [within(f64::min), within(f64::max)]
    }

    /// Averaged until at most `voxels` are left: the finest axis first, so that voxels tend to cubes.
    pub fn reduced(&self, voxels: usize) -> Self {
        let mut factor = [1usize; 3];
        let size = |factor: &[usize; 3]| (0..3).map(|axis| self.shape[axis].div_ceil(factor[axis])).product::<usize>();
        while size(&factor) > voxels {
            let side = |axis: &usize| self.spacing_mm[*axis] * factor[*axis] as f64;
            let open = (0..3).filter(|axis| factor[*axis] < self.shape[*axis]);
            let Some(finest) = open.rev().min_by(|a, b| side(a).total_cmp(&side(b))) else { break };
            factor[finest] += 1;
        }
        self.averaged(factor)
    }

    fn averaged(&self, factor: [usize; 3]) -> Self {
        if factor == [1; 3] {
            return self.clone();
        }
        let shape = [0, 1, 2].map(|axis| self.shape[axis].div_ceil(factor[axis]));
        let mut values = Vec::with_capacity(shape.iter().product());
        for z in 0..shape[0] {
            for y in 0..shape[1] {
                values.extend((0..shape[2]).map(|x| self.mean([z, y, x], factor)));
            }
        }
        let [fz, fy, fx] = factor.map(|side| side as f64);
        let middle = to_mm(&self.affine, [fx, fy, fz].map(|side| (side - 1.0) / 2.0));
        let affine = [0, 1, 2].map(|row| {
            let [x, y, z, _] = self.affine[row];
            [x * fx, y * fy, z * fz, middle[row]]
        });
        let spacing_mm = [0, 1, 2].map(|axis| self.spacing_mm[axis] * factor[axis] as f64);
        let factor = [0, 1, 2].map(|axis| self.factor[axis] * factor[axis]);
        Shown { values, shape, spacing_mm, affine, factor, from_prepared: self.from_prepared }
    }

    /// The mean of a block; one at the end of an axis may be smaller.
    fn mean(&self, at: [usize; 3], factor: [usize; 3]) -> f32 {
        let range = |axis: usize| at[axis] * factor[axis]..((at[axis] + 1) * factor[axis]).min(self.shape[axis]);
        let (mut sum, mut count) = (0.0, 0);
        for z in range(0) {
            for y in range(1) {
                let line = (z * self.shape[1] + y) * self.shape[2];
                let line = &self.values[line + range(2).start..line + range(2).end];
                sum += line.iter().sum::<f32>();
                count += line.len();
            }
        }
        sum / count as f32
    }
}

/// Without the dust of multiplied affines.
fn tidy(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::volume::Layout;

    /// A prepared volume (1, 2, 4, 3) whose values count up, on a grid stored right, anterior, superior: x and y are turned round to be shown.
    fn shown() -> (Shown, Geometry) {
        let values: Vec<f32> = (0..24).map(|i| i as f32 / 24.0).collect();
        let tensor = Tensor::from_vec(values, (1, 2, 4, 3), &Device::Cpu).unwrap();
        let affine = [[1.0, 0.0, 0.0, 5.0], [0.0, 2.0, 0.0, 6.0], [0.0, 0.0, 3.0, 7.0]];
        let geometry = Geometry { first: [0; 3], ratio: [1.0; 3], resampled: [2, 4, 3], affine, layout: Layout::Zxy };
        (Shown::new(&tensor, &geometry, [-1000.0, 1000.0]).unwrap(), geometry)
    }

    #[test]
    fn axes_are_turned_toward_left_back_and_head_and_boxes_follow() {
        let (shown, geometry) = shown();
        assert_eq!((shown.shape, shown.spacing_mm), ([2, 3, 4], [3.0, 2.0, 1.0]));
        // prepared (d, h, w) = (1, 0, 2): x = 0 is the rightmost in the patient, shown last; y = 2 the most anterior, shown first
        assert_eq!(shown.values[12 + 3], 1000.0 * 14.0 / 24.0);
        assert_eq!(shown.place([1, 0, 2], [2, 1, 3]), [[1.0, 0.0, 3.0], [2.0, 1.0, 4.0]]);
        assert_eq!(to_mm(&shown.affine, [3.0, 0.0, 1.0]), to_mm(&geometry.affine, [0.0, 2.0, 1.0]));
        let patches: Vec<f32> = (0..6).map(|i| i as f32).collect();
        assert_eq!(turn_patches(&patches, [1, 2, 3], &geometry), (vec![5.0, 2.0, 4.0, 1.0, 3.0, 0.0], [1, 3, 2]));
    }

    #[test]
    fn averaging_keeps_means_and_places() {
        let (shown, _) = shown();
        let small = shown.reduced(8);
        assert!(small.values.len() <= 8, "{:?}", small.shape);
        assert_eq!(small.factor, [1, 2, 3]);
        let block = [0, 1, 2, 4, 5, 6].map(|at: usize| shown.values[at]);
        assert!((small.values[0] - block.iter().sum::<f32>() / 6.0).abs() < 1e-3);
        assert_eq!(to_mm(&small.affine, [0.0, 0.0, 0.0]), to_mm(&shown.affine, [1.0, 0.5, 0.0]));
        assert_eq!(small.place([1, 0, 2], [2, 1, 3]), [[1.0, 0.0, 1.0], [2.0, 0.5, 1.333]]);
    }
}
