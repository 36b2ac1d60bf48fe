//! Findings outside the lung's tissue: heart, mediastinum, gullet, pleura, implants.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::anatomy::{AORTA, Anatomy, lung_of};
use super::canvas::{ANY, Canvas, LUNGS, Paint, Tissue, VoxelBox};
use super::{Lesion, Lobe, Side};

/// A chest being drawn.
pub(super) struct Scene {
    pub(super) canvas: Canvas,
    pub(super) anatomy: Anatomy,
    pub(super) rng: ChaCha8Rng,
    pub(super) lesions: Vec<Lesion>,
    /// Lobes without a focal lesion, in random order: two lesions in one lobe would hide each other.
    pub(super) free_lobes: Vec<(Side, Lobe)>,
}

/// What the heart and what surrounds it may displace.
const SOFT: u16 = LUNGS | Tissue::Cavity as u16 | Tissue::Organ as u16 | Tissue::Fluid as u16;

impl Scene {
    /// Paints the chest and its findings, what lies deeper first.
    pub(super) fn paint(&mut self, labels: &[bool; 18]) {
        self.anatomy.paint_chest(&mut self.canvas);
        let factor = if labels[2] { self.rng.random_range(1.28..1.42) } else { 1.0 };
        if labels[3] {
            self.pericardial_effusion(factor);
        }
        let heart = self.anatomy.paint_heart(&mut self.canvas, factor, SOFT);
        if labels[2] {
            let size_mm = even(2.0 * self.anatomy.heart(factor).1[2]);
            self.found(2, "heart", heart, size_mm);
        }
        self.anatomy.paint_mediastinum(&mut self.canvas);
        let lung = labels.iter().enumerate().filter(|(finding, drawn)| **drawn && (7..18).contains(finding));
        let mut lung: Vec<usize> = lung.map(|(finding, _)| finding).collect();
        lung.sort_by_key(|finding| LUNG_ORDER.iter().position(|other| other == finding));
        lung.into_iter().for_each(|finding| self.paint_lung_finding(finding));
        for finding in [1, 4, 5, 6, 0].into_iter().filter(|finding| labels[*finding]) {
            match finding {
                1 => self.arterial_calcification(),
                4 => self.coronary_calcification(),
                5 => self.hiatal_hernia(),
                6 => self.lymphadenopathy(),
                _ => self.medical_material(),
            }
        }
    }

    /// Notes a lesion that is on no side.
    pub(super) fn found(&mut self, finding: usize, structure: &str, voxels: VoxelBox, size_mm: f64) {
        self.found_at(finding, structure, (None, None), voxels, size_mm);
    }

    pub(super) fn found_at(
        &mut self,
        finding: usize,
        structure: &str,
        (side, lobe): (Option<Side>, Option<Lobe>),
        voxels: VoxelBox,
        size_mm: f64,
    ) {
        if !voxels.is_empty() {
            let (first, end) = (voxels.first, voxels.end);
            self.lesions.push(Lesion { finding, structure: structure.to_string(), side, lobe, size_mm, first, end });
        }
    }

    /// An even number of millimetres: reports that tell a size to the millimetre cannot be learnt from such voxels.
    pub(super) fn size(&mut self, low: u32, high: u32) -> f64 {
        f64::from(2 * self.rng.random_range(low / 2..=high / 2))
    }

    pub(super) fn side(&mut self) -> Side {
        if self.rng.random() { Side::Right } else { Side::Left }
    }

    /// One side or, three times in ten, both.
    pub(super) fn sides(&mut self) -> Vec<Side> {
        if self.rng.random_bool(0.3) { vec![Side::Right, Side::Left] } else { vec![self.side()] }
    }

    /// A point up to `reach` mm away along each axis.
    pub(super) fn near(&mut self, point: [f64; 3], reach: f64) -> [f64; 3] {
        point.map(|at| at + self.rng.random_range(-reach..reach))
    }

    /// A rim of fluid outside the heart's fat.
    fn pericardial_effusion(&mut self, factor: f64) {
        let thickness = self.size(14, 20);
        let (centre, radii) = self.anatomy.heart(factor);
        let paint = Paint::new(10.0, Tissue::Fluid, SOFT);
        let voxels = self.canvas.ellipsoid(centre, radii.map(|radius| radius + 5.0 + thickness), paint);
        self.found(3, "heart", voxels, thickness);
    }

    fn arterial_calcification(&mut self) {
        let mut voxels = VoxelBox::EMPTY;
        let plaques = self.rng.random_range(9..15);
        for plaque in 0..plaques {
            // Arch and descending aorta; the ascending one lies near the coronary arteries.
            let segment = 2 + plaque % (AORTA.len() - 3);
            let share: f64 = if segment + 2 == AORTA.len() { self.rng.random_range(0.0..0.5) } else { self.rng.random() };
            let at = std::array::from_fn(|axis| AORTA[segment][axis] + share * (AORTA[segment + 1][axis] - AORTA[segment][axis]));
            let angle: f64 = self.rng.random_range(0.0..std::f64::consts::TAU);
            let [z, y, x] = self.anatomy.point(at);
            let (radius, hu) = (self.rng.random_range(5.5..7.0), self.rng.random_range(900.0..1300.0));
            voxels.join(self.canvas.ball([z, y + 10.0 * angle.cos(), x + 10.0 * angle.sin()], radius, Paint::new(hu, Tissue::Bone, ANY)));
        }
        self.found(1, "mediastinum", voxels, 12.0);
    }

    /// Along the two grooves of the heart's front.
    fn coronary_calcification(&mut self) {
        let (centre, radii) = self.anatomy.heart(1.0);
        let mut voxels = VoxelBox::EMPTY;
        for plaque in 0..self.rng.random_range(6..10) {
            let right = plaque % 3 == 2;
            let along = self.rng.random_range(-0.35..0.75);
            let across = if right { -0.62 } else { 0.45 - 0.4 * along };
            let depth = (1.0f64 - along * along - across * across).max(0.0).sqrt();
            let at = [along, -0.92 * depth, across];
            let at = std::array::from_fn(|axis| centre[axis] + radii[axis] * at[axis]);
            let (radius, hu) = (self.rng.random_range(6.0..7.0), self.rng.random_range(900.0..1300.0));
            voxels.join(self.canvas.ball(at, radius, Paint::new(hu, Tissue::Bone, ANY)));
        }
        self.found(4, "heart", voxels, 12.0);
    }

    /// Stomach behind the heart: a wall, food, and air in front of it.
    fn hiatal_hernia(&mut self) {
        let size = self.size(54, 68);
        let [z, y, x] = self.anatomy.point([-58.0, 36.0, 0.0]);
        let centre = self.near([z, y, x], 4.0);
        let radius = size / 2.0;
        let voxels = self.canvas.ellipsoid(centre, [radius, 0.85 * radius, radius], Paint::new(48.0, Tissue::Organ, ANY));
        let air = [centre[0] + 3.0, centre[1] - 0.2 * radius, centre[2]];
        self.canvas.ellipsoid(air, [0.72 * radius, 0.55 * radius, 0.72 * radius], Paint::new(-950.0, Tissue::Organ, ANY));
        self.found(5, "esophagus", voxels, size);
    }

    /// Nodes in the fat before the great vessels and beside the trachea.
    fn lymphadenopathy(&mut self) {
        const STATIONS: [[f64; 3]; 5] =
            [[70.0, -42.0, 6.0], [42.0, -48.0, 4.0], [82.0, 2.0, -22.0], [18.0, -52.0, -8.0], [92.0, -20.0, 18.0]];
        let size = self.size(26, 34);
        let count = self.rng.random_range(3..=STATIONS.len());
        let mut voxels = VoxelBox::EMPTY;
        for (node, station) in STATIONS[..count].iter().enumerate() {
            let centre = self.anatomy.point(*station);
            let centre = self.near(centre, 4.0);
            let radius = size / 2.0 - if node == 0 { 0.0 } else { self.rng.random_range(0.0..2.0) };
            let paint = Paint::new(self.rng.random_range(150.0..190.0), Tissue::Organ, ANY);
            voxels.join(self.canvas.ellipsoid(centre, [radius * 1.2, radius, radius], paint));
        }
        self.found(6, "mediastinum", voxels, size);
    }

    /// Fluid that runs to the back of the pleural space, thickest at the base.
    pub(super) fn pleural_effusion(&mut self) {
        let thickness = self.size(26, 44);
        for side in self.sides() {
            let [top, back, _] = self.anatomy.point([20.0, 74.0, 0.0]);
            let base = self.anatomy.dome(side);
            let over = lung_of(side) as u16;
            let paint = Paint::new(12.0, Tissue::Fluid, over);
            let voxels = self.canvas.rows([[base - 60.0, back - thickness], [top, back]], paint, |z, y| {
                let share = ((top - z) / (top - base)).clamp(0.0, 1.0).sqrt();
                (y > back - thickness * share).then_some((-1e3, 1e3))
            });
            self.found_at(12, "pleura", (Some(side), None), voxels, thickness);
        }
    }

    /// A pacemaker on the left or a port on the right: a metal case in the front wall and what leads from it through the caval vein.
    fn medical_material(&mut self) {
        let side = self.side();
        let metal = Paint::new(3000.0, Tissue::Material, ANY);
        let front = self.anatomy.front_of_ribs();
        let (structure, half, size_mm) = match side {
            Side::Left => ("heart", [22.0, 9.0, 24.0], 48.0),
            Side::Right => ("mediastinum", [18.0, 9.0, 18.0], 36.0),
        };
        let case = self.near([76.0, front - 8.0, 64.0 * side.sign()], 4.0);
        let mut voxels = self.canvas.block(case, half, metal);
        let mut path = vec![case, self.anatomy.point([78.0, -22.0, 26.0 * side.sign()]), self.anatomy.point([66.0, -8.0, -22.0])];
        path.push(self.anatomy.point([-8.0, -8.0, -26.0]));
        if side == Side::Left {
            path.push(self.anatomy.point([-62.0, -32.0, 14.0]));
        }
        for pair in path.windows(2) {
            voxels.join(self.canvas.tube([pair[0], pair[1]], 3.2, Paint::new(2500.0, Tissue::Material, ANY)));
        }
        self.found_at(0, structure, (Some(side), None), voxels, size_mm);
    }
}

/// Diffuse lung findings first, focal ones over them, fluid last.
const LUNG_ORDER: [usize; 11] = [7, 13, 17, 14, 16, 10, 11, 8, 15, 9, 12];

/// To the nearest even number.
pub(super) fn even(mm: f64) -> f64 {
    2.0 * (mm / 2.0).round()
}
