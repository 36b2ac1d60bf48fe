//! Places: from patches and voxels of a prepared volume back to the scan's own grid and millimetres.

use rayon::prelude::*;

use super::prepare::{Geometry, Layout};
use super::{Volume, to_mm};

/// The grid of a scan as its file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Voxels (z, y, x).
    pub shape: [usize; 3],
    /// Distance of voxel centres (z, y, x) in mm.
    pub spacing_mm: [f64; 3],
    /// Voxel (x, y, z) to scanner millimetres.
    pub affine: [[f64; 4]; 3],
}

impl Volume {
    /// Its grid, without its voxels.
    pub fn grid(&self) -> Grid {
        Grid { shape: self.shape, spacing_mm: self.spacing_mm, affine: self.affine }
    }
}

/// The affine that undoes `affine`: scanner millimetres to voxels. `affine` spans space (volumes that do not are refused when they are read).
pub fn inverse(affine: &[[f64; 4]; 3]) -> [[f64; 4]; 3] {
    let a = |row: usize, column: usize| affine[row % 3][column % 3];
    let cofactor = |r: usize, c: usize| a(r + 1, c + 1) * a(r + 2, c + 2) - a(r + 1, c + 2) * a(r + 2, c + 1);
    let determinant: f64 = (0..3).map(|column| a(0, column) * cofactor(0, column)).sum();
    [0, 1, 2].map(|row| {
        let [x, y, z] = [0, 1, 2].map(|column| cofactor(column, row) / determinant);
        [x, y, z, -(x * affine[0][3] + y * affine[1][3] + z * affine[2][3])]
    })
}

/// The affine that applies `first`, then `then`.
pub fn compose(then: &[[f64; 4]; 3], first: &[[f64; 4]; 3]) -> [[f64; 4]; 3] {
    let column = |c: usize| [first[0][c], first[1][c], first[2][c]];
    let origin = to_mm(then, column(3));
    let turned = [0, 1, 2].map(|c| {
        let at = column(c);
        [0, 1, 2].map(|row| then[row][0] * at[0] + then[row][1] * at[1] + then[row][2] * at[2])
    });
    [0, 1, 2].map(|row| [turned[0][row], turned[1][row], turned[2][row], origin[row]])
}

impl Geometry {
    /// Prepared voxel (w, h, d), the fastest axis first, to scanner millimetres.
    pub fn prepared_affine(&self) -> [[f64; 4]; 3] {
        // the scan's voxel (x, y, z) of a prepared voxel's centre, axis by axis
        let scale = |axis: usize| self.ratio[axis];
        let shift = |axis: usize| (self.first[axis] as f64 + 0.5) * self.ratio[axis] - 0.5;
        let [w, h] = match self.layout {
            Layout::Zxy => [2, 1],
            Layout::Zyx => [1, 2],
        };
        let mut scan = [[0.0; 4]; 3];
        for (column, axis) in [w, h, 0].into_iter().enumerate() {
            let row = [2, 0, 1][axis]; // z, x, y stand in rows 2, 0, 1
            (scan[row][column], scan[row][3]) = (scale(axis), shift(axis));
        }
        compose(&self.affine, &scan)
    }
}

/// Which two cells along one axis a voxel lies between, and how far toward the second; `None`: outside.
type Tap = Option<(usize, usize, f32)>;

/// Spreads one value a patch over the scan's own grid.
#[derive(Debug)]
pub struct Spread {
    /// For each scan axis (z, y, x): which axis (d, h, w) of the patches runs along it.
    along: [usize; 3],
    taps: [Vec<Tap>; 3],
    patches: [usize; 3],
}

impl Spread {
    /// Of `patches` (d, h, w) of `size` prepared voxels each (d, h, w), onto `scan`. Preparing permutes, flips, scales and crops axes and never
    /// turns them otherwise, so each scan axis follows one axis of the patches.
    pub fn new(geometry: &Geometry, patches: [usize; 3], size: [usize; 3], scan: &Grid) -> Self {
        let map = compose(&inverse(&geometry.prepared_affine()), &scan.affine); // scan (x, y, z) to prepared (w, h, d)
        let along = [2, 1, 0].map(|column: usize| {
            let rows = [2, 1, 0].map(|row: usize| map[row][column].abs());
            (0..3).max_by(|a, b| rows[*a].total_cmp(&rows[*b])).expect("there are three axes")
        });
        let taps = [0, 1, 2].map(|axis| {
            let (column, row, side) = (2 - axis, 2 - along[axis], size[along[axis]] as f64);
            let tap = |index: usize| tap((map[row][column] * index as f64 + map[row][3] + 0.5) / side, patches[along[axis]]);
            (0..scan.shape[axis]).map(tap).collect()
        });
        Spread { along, taps, patches }
    }

    /// values: one a patch, (d, h, w) with w fastest -> the scan's voxels (z, y, x), linear between the patches' centres; 0 outside of the
    /// prepared volume. `finish` turns each into what is kept.
    pub fn spread<T: Send>(&self, values: &[f32], finish: impl Fn(f32) -> T + Sync) -> Vec<T> {
        let cells = self.along.map(|axis| self.patches[axis]);
        let strides = [self.patches[1] * self.patches[2], self.patches[2], 1];
        let [sz, sy, sx] = self.along.map(|axis| strides[axis]);
        let plane = |z: usize| -> Vec<f32> {
            (0..cells[1]).flat_map(|y| (0..cells[2]).map(move |x| (y, x))).map(|(y, x)| values[z * sz + y * sy + x * sx]).collect()
        };
        let planes: Vec<Vec<f32>> = (0..cells[0]).map(plane).collect();
        let [zs, ys, xs] = &self.taps;
        let lines = |z: &Tap| -> Vec<T> {
            let plane = mix(*z, |cell| planes[cell].clone());
            let line = |y: &Tap| {
                let line = mix(plane.as_ref().and(*y), |cell| {
                    let plane = plane.as_deref().unwrap_or_default();
                    plane[cell * cells[2]..(cell + 1) * cells[2]].to_vec()
                });
                xs.iter().map(move |x| between(line.as_ref().and(*x), line.as_deref().unwrap_or_default())).collect::<Vec<f32>>()
            };
            ys.iter().flat_map(line).map(&finish).collect()
        };
        zs.par_iter().flat_map_iter(lines).collect()
    }
}

/// `place` counts patches from the volume's edge.
fn tap(place: f64, patches: usize) -> Tap {
    if !(0.0..=patches as f64).contains(&place) {
        return None;
    }
    let centre = (place - 0.5).clamp(0.0, (patches - 1) as f64);
    let low = centre.floor() as usize;
    Some((low, (low + 1).min(patches - 1), (centre - low as f64) as f32))
}

fn mix(tap: Tap, cells: impl Fn(usize) -> Vec<f32>) -> Option<Vec<f32>> {
    tap.map(|(low, high, weight)| cells(low).iter().zip(cells(high)).map(|(a, b)| a + weight * (b - a)).collect())
}

fn between(tap: Tap, cells: &[f32]) -> f32 {
    tap.map_or(0.0, |(low, high, weight)| cells[low] + weight * (cells[high] - cells[low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid turned by 30 degrees about z and 20 about x, of 0.7, 0.9 and 2.5 mm.
    fn oblique() -> [[f64; 4]; 3] {
        let ((s, c), (t, d)) = (30f64.to_radians().sin_cos(), 20f64.to_radians().sin_cos());
        let turn = [[c, -s, 0.0], [d * s, d * c, -t], [t * s, t * c, d]];
        [0, 1, 2].map(|row| [turn[row][0] * -0.7, turn[row][1] * -0.9, turn[row][2] * 2.5, [120.0, -35.0, 900.0][row]])
    }

    fn close(a: [f64; 3], b: [f64; 3]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9), "{a:?} {b:?}");
    }

    #[test]
    fn an_affine_and_its_inverse_leave_a_voxel_where_it_was() {
        let back = inverse(&oblique());
        close(to_mm(&back, to_mm(&oblique(), [3.0, -7.5, 11.25])), [3.0, -7.5, 11.25]);
        close(to_mm(&compose(&back, &oblique()), [1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_prepared_voxels_place_is_the_middle_of_its_box() {
        for layout in [Layout::Zxy, Layout::Zyx] {
            let geometry = Geometry { first: [3, -4, 7], ratio: [1.5, 0.8, 1.1], resampled: [40, 50, 60], affine: oblique(), layout };
            let [low, high] = geometry.box_mm([5, 6, 9], [6, 7, 10]);
            let middle = [0, 1, 2].map(|axis| (low[axis] + high[axis]) / 2.0);
            close(to_mm(&geometry.prepared_affine(), [9.0, 6.0, 5.0]), middle);
        }
    }

    #[test]
    fn values_are_those_of_patches_at_their_centres_and_nothing_outside() {
        // prepared (z, x, y) = scan, cropped by one voxel at each end of x; patches of 2 voxels
        let affine = Volume::lps_affine([1.0; 3], [0.0; 3]);
        let geometry = Geometry { first: [0, 1, 0], ratio: [1.0; 3], resampled: [4, 6, 4], affine, layout: Layout::Zxy };
        let scan = Grid { shape: [4, 4, 6], spacing_mm: [1.0; 3], affine };
        let spread = Spread::new(&geometry, [2, 2, 2], [2, 2, 2], &scan);
        // d, h (x), w (y): 100 d + 10 h + w
        let values: Vec<f32> = (0..8).map(|i| (100 * (i / 4) + 10 * (i / 2 % 2) + i % 2) as f32).collect();
        let voxels = spread.spread(&values, |value| value);
        let at = |z: usize, y: usize, x: usize| voxels[(z * 4 + y) * 6 + x];
        assert_eq!((at(0, 0, 0), at(0, 0, 5)), (0.0, 0.0));
        assert_eq!((at(0, 0, 1), at(3, 3, 4), at(0, 0, 4), at(0, 3, 1), at(3, 0, 1)), (0.0, 111.0, 10.0, 1.0, 100.0));
        // a quarter of the way between the patches' centres along x
        assert!((at(0, 0, 2) - 2.5).abs() < 1e-5, "{}", at(0, 0, 2));
    }

    #[test]
    fn a_scan_whose_axes_are_swapped_and_flipped_gets_the_same_values_at_the_same_millimetres() {
        let lps = Volume::lps_affine([3.0, 2.0, 1.0], [40.0, 30.0, -20.0]);
        let geometry = Geometry { first: [0, 0, 0], ratio: [1.0; 3], resampled: [6, 8, 10], affine: lps, layout: Layout::Zxy };
        let straight = Grid { shape: [6, 10, 8], spacing_mm: [3.0, 2.0, 1.0], affine: lps };
        // stored axes (x, y, z) = scanner (z down, x, y): i runs down, j right, k anterior
        let columns = [[0.0, 0.0, -3.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]];
        let corner = [33.0, 12.0, -5.0];
        let affine = [0, 1, 2].map(|row| [columns[0][row], columns[1][row], columns[2][row], corner[row]]);
        let swapped = Grid { shape: [10, 8, 6], spacing_mm: [2.0, 1.0, 3.0], affine };
        let values: Vec<f32> = (0..3 * 4 * 5).map(|i| ((i * 37) % 19) as f32).collect();
        let map = |scan: &Grid| Spread::new(&geometry, [3, 4, 5], [2, 2, 2], scan).spread(&values, |value| value);
        let (a, b) = (map(&straight), map(&swapped));
        let back = inverse(&lps);
        for (index, value) in b.iter().enumerate() {
            let [k, j, i] = [index / 48, index / 6 % 8, index % 6];
            let [x, y, z] = to_mm(&back, to_mm(&affine, [i as f64, j as f64, k as f64])).map(|v| v.round() as usize);
            assert!((value - a[(z * 10 + y) * 8 + x]).abs() < 1e-4, "{i} {j} {k}");
        }
    }
}
