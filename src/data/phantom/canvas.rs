//! What phantoms are painted on: voxels in Hounsfield units with the tissue of each. Points and radii are (z, y, x) in millimetres of
//! the patient: z to the head, y to the back, x to the patient's left; x = 0 is the midline.

/// Where voxels lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// Voxels (z, y, x).
    pub(super) shape: [usize; 3],
    /// Distance of voxel centres.
    pub(super) spacing_mm: [f64; 3],
    /// The first voxel's centre.
    pub(super) origin_mm: [f64; 3],
}

impl Grid {
    /// Voxels whose centres may lie in [low, high] mm along an axis, half a voxel more on each side.
    fn range(&self, axis: usize, low_mm: f64, high_mm: f64) -> std::ops::Range<usize> {
        let voxel = |mm: f64| (mm - self.origin_mm[axis]) / self.spacing_mm[axis];
        let bound = |at: f64| at.max(0.0).min(self.shape[axis] as f64) as usize;
        bound((voxel(low_mm) - 0.5).ceil())..bound((voxel(high_mm) + 0.5).floor() + 1.0)
    }

    fn mm(&self, axis: usize, voxel: usize) -> f64 {
        self.origin_mm[axis] + voxel as f64 * self.spacing_mm[axis]
    }
}

/// What a voxel is made of; lesions in the lung leave it lung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Tissue {
    Air = 1,
    Wall = 2,
    /// The cavity's fat, mediastinal fat.
    Cavity = 4,
    RightLung = 8,
    LeftLung = 16,
    Organ = 32,
    Vessel = 64,
    Bone = 128,
    Fluid = 256,
    Material = 512,
}

/// Every tissue.
pub(super) const ANY: u16 = u16::MAX;
/// Both lungs.
pub(super) const LUNGS: u16 = Tissue::RightLung as u16 | Tissue::LeftLung as u16;

/// What to paint: a density, the tissue that it makes (`None` leaves the old), over which tissues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub(super) hu: f32,
    pub(super) tissue: Option<Tissue>,
    pub(super) over: u16,
}

impl Paint {
    pub(super) fn new(hu: f32, tissue: Tissue, over: u16) -> Self {
        Paint { hu, tissue: Some(tissue), over }
    }

    /// A density that leaves the tissue as it is.
    pub(super) fn lesion(hu: f32, over: u16) -> Self {
        Paint { hu, tissue: None, over }
    }
}

/// A box of voxels, first (z, y, x) and one past the last; empty at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VoxelBox {
    pub(super) first: [usize; 3],
    pub(super) end: [usize; 3],
}

impl VoxelBox {
    pub(super) const EMPTY: VoxelBox = VoxelBox { first: [usize::MAX; 3], end: [0; 3] };

    pub(super) fn join(&mut self, other: VoxelBox) {
        for axis in 0..3 {
            self.first[axis] = self.first[axis].min(other.first[axis]);
            self.end[axis] = self.end[axis].max(other.end[axis]);
        }
    }

    fn add(&mut self, z: usize, y: usize, x: usize) {
        self.join(VoxelBox { first: [z, y, x], end: [z + 1, y + 1, x + 1] });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end[0] == 0
    }
}

/// The volume being painted.
pub(super) struct Canvas {
    pub(super) grid: Grid,
    /// Hounsfield units, (z, y, x).
    pub(super) values: Vec<f32>,
    tissues: Vec<u16>,
}

impl Canvas {
    /// A scanner full of air.
    pub(super) fn new(grid: Grid) -> Self {
        let count = grid.shape.iter().product();
        Canvas { grid, values: vec![-1000.0; count], tissues: vec![Tissue::Air as u16; count] }
    }

    /// Paints, in each row of voxels between two corners, the stretch (low x, high x) that `span` tells for its (z, y).
    pub(super) fn rows(&mut self, [low, high]: [[f64; 2]; 2], paint: Paint, span: impl Fn(f64, f64) -> Option<(f64, f64)>) -> VoxelBox {
        let mut changed = VoxelBox::EMPTY;
        for z in self.grid.range(0, low[0], high[0]) {
            for y in self.grid.range(1, low[1], high[1]) {
                if let Some((from, to)) = span(self.grid.mm(0, z), self.grid.mm(1, y)).filter(|(from, to)| to > from) {
                    self.stretch([z, y], [from, to], paint, &mut changed);
                }
            }
        }
        changed
    }

    /// One row's stretch; its end voxels are mixed by the share that is covered.
    fn stretch(&mut self, [z, y]: [usize; 2], [from, to]: [f64; 2], paint: Paint, changed: &mut VoxelBox) {
        let (origin, spacing) = (self.grid.origin_mm[2], self.grid.spacing_mm[2]);
        let (from, to) = ((from - origin) / spacing, (to - origin) / spacing);
        let width = self.grid.shape[2];
        let row = (z * self.grid.shape[1] + y) * width;
        // Voxels [whole, end) are covered whole, the two in which the stretch begins and ends in part.
        let bound = |at: f64| at.max(0.0).min(width as f64) as usize;
        let (whole, end) = (bound((from + 0.5).ceil()), bound((to - 0.5).floor() + 1.0));
        let (begins, ends) = ((from + 0.5).floor(), (to + 0.5).floor());
        for rim in [Some(begins), (ends > begins).then_some(ends)].into_iter().flatten() {
            let covered = (to.min(rim + 0.5) - from.max(rim - 0.5)).clamp(0.0, 1.0) as f32;
            if (0.0..width as f64).contains(&rim) && self.touch(row + rim as usize, covered, paint) {
                changed.add(z, y, rim as usize);
            }
        }
        if whole < end {
            self.cover(row + whole..row + end, paint, |voxel| changed.add(z, y, voxel - row));
        }
    }

    /// Paints voxels of a row whole; `changed` hears of the first and the last of them that change.
    fn cover(&mut self, voxels: std::ops::Range<usize>, paint: Paint, mut changed: impl FnMut(usize)) {
        let tissues = &mut self.tissues[voxels.clone()];
        let takes = |tissue: &u16| tissue & paint.over != 0;
        let (Some(first), Some(last)) = (tissues.iter().position(takes), tissues.iter().rposition(takes)) else { return };
        changed(voxels.start + first);
        changed(voxels.start + last);
        for (value, tissue) in self.values[voxels].iter_mut().zip(tissues) {
            if takes(tissue) {
                (*value, *tissue) = (paint.hu, paint.tissue.map_or(*tissue, |new| new as u16));
            }
        }
    }

    /// Mixes a density into a voxel; whether it changed.
    fn touch(&mut self, voxel: usize, covered: f32, paint: Paint) -> bool {
        if covered <= 0.0 || self.tissues[voxel] & paint.over == 0 {
            return false;
        }
        self.values[voxel] += covered * (paint.hu - self.values[voxel]);
        if let Some(tissue) = paint.tissue.filter(|_| covered >= 0.5) {
            self.tissues[voxel] = tissue as u16;
        }
        covered >= 0.5
    }

    pub(super) fn ellipsoid(&mut self, centre: [f64; 3], radii: [f64; 3], paint: Paint) -> VoxelBox {
        let corner = |sign: f64| [centre[0] + sign * radii[0], centre[1] + sign * radii[1]];
        self.rows([corner(-1.0), corner(1.0)], paint, |z, y| {
            let (z, y) = ((z - centre[0]) / radii[0], (y - centre[1]) / radii[1]);
            let left = 1.0 - z * z - y * y;
            (left > 0.0).then(|| (centre[2] - radii[2] * left.sqrt(), centre[2] + radii[2] * left.sqrt()))
        })
    }

    pub(super) fn ball(&mut self, centre: [f64; 3], radius: f64, paint: Paint) -> VoxelBox {
        self.ellipsoid(centre, [radius; 3], paint)
    }

    /// A block with its sides along the axes.
    pub(super) fn block(&mut self, centre: [f64; 3], half: [f64; 3], paint: Paint) -> VoxelBox {
        let corner = |sign: f64| [centre[0] + sign * half[0], centre[1] + sign * half[1]];
        self.rows([corner(-1.0), corner(1.0)], paint, |_, _| Some((centre[2] - half[2], centre[2] + half[2])))
    }

    /// A tube with round ends from `a` to `b`; voxels at its rim are mixed by their distance.
    pub(super) fn tube(&mut self, [a, b]: [[f64; 3]; 2], radius: f64, paint: Paint) -> VoxelBox {
        let grid = self.grid;
        let softness = grid.spacing_mm.iter().copied().fold(f64::INFINITY, f64::min);
        let reach = radius + softness / 2.0;
        let range = |axis: usize| grid.range(axis, a[axis].min(b[axis]) - reach, a[axis].max(b[axis]) + reach);
        let along = std::array::from_fn::<f64, 3, _>(|axis| b[axis] - a[axis]);
        let length_squared = along.iter().map(|part| part * part).sum::<f64>().max(1e-9);
        let mut changed = VoxelBox::EMPTY;
        for z in range(0) {
            for y in range(1) {
                let (dz, dy) = (grid.mm(0, z) - a[0], grid.mm(1, y) - a[1]);
                let row = (z * grid.shape[1] + y) * grid.shape[2];
                for x in range(2) {
                    let dx = grid.mm(2, x) - a[2];
                    let at = ((dz * along[0] + dy * along[1] + dx * along[2]) / length_squared).clamp(0.0, 1.0);
                    let [ez, ey, ex] = [dz - at * along[0], dy - at * along[1], dx - at * along[2]];
                    let squared = ez * ez + ey * ey + ex * ex;
                    if squared < reach * reach {
                        let covered = ((radius - squared.sqrt()) / softness + 0.5).clamp(0.0, 1.0) as f32;
                        if self.touch(row + x, covered, paint) {
                            changed.add(z, y, x);
                        }
                    }
                }
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_covers_its_length_and_no_more() {
        let grid = Grid { shape: [2, 2, 12], spacing_mm: [5.0; 3], origin_mm: [0.0; 3] };
        for (from, to) in [(12.0, 33.5), (11.0, 17.0), (13.0, 14.0), (12.0, 17.0), (12.5, 17.5), (-40.0, 8.0), (50.0, 900.0)] {
            let mut canvas = Canvas::new(grid);
            canvas.rows([[0.0; 2], [0.0; 2]], Paint::new(0.0, Tissue::Wall, ANY), |z, y| ((z, y) == (0.0, 0.0)).then_some((from, to)));
            let covered: f64 = canvas.values.iter().map(|value| f64::from(value + 1000.0) / 1000.0 * 5.0).sum();
            let within = f64::min(to, 57.5) - f64::max(from, -2.5);
            assert!((covered - within).abs() < 1e-3, "{from} to {to}: {covered} for {within}");
        }
    }
}
