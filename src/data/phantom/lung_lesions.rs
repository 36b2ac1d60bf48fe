//! Findings of the lung.

use rand::Rng;

use super::canvas::{LUNGS, Paint, VoxelBox};
use super::lesions::Scene;
use super::{Lobe, Side};

use super::anatomy::lung_of;

const BOTH: [Side; 2] = [Side::Right, Side::Left];

impl Scene {
    pub(super) fn paint_lung_finding(&mut self, finding: usize) {
        match finding {
            7 => self.emphysema(),
            8 => self.atelectasis(),
            9 => self.nodule(),
            10 => self.ground_glass(),
            11 => self.fibrotic_sequela(),
            12 => self.pleural_effusion(),
            13 => self.mosaic(),
            14 => self.bronchi(14, 3.0, 5.0),
            15 => self.consolidation(),
            16 => self.bronchi(16, 6.5, 2.5),
            _ => self.septal_thickening(),
        }
    }

    /// A lobe that holds no focal lesion yet.
    fn free_lobe(&mut self) -> (Side, Lobe) {
        self.free_lobes.pop().expect("five lobes, and at most four focal lesions")
    }

    /// Holes in the upper parts of both lungs.
    fn emphysema(&mut self) {
        let mut voxels = VoxelBox::EMPTY;
        for hole in 0..self.rng.random_range(60..90) {
            let side = BOTH[hole % 2];
            let at =
                [self.rng.random_range(0.0..108.0), self.rng.random_range(-60.0..60.0), self.rng.random_range(30.0..105.0) * side.sign()];
            let (centre, radius) = (self.anatomy.point(at), self.rng.random_range(9.0..16.0));
            voxels.join(self.canvas.ball(centre, radius, Paint::lesion(-985.0, LUNGS)));
        }
        self.found(7, "lung", voxels, 24.0);
    }

    /// An airless plate above the diaphragm.
    fn atelectasis(&mut self) {
        let side = self.side();
        let (thickness, tilt) = (self.size(16, 22), self.rng.random_range(-0.15..0.15));
        let [_, y, x] = self.anatomy.point([0.0, 4.0, 72.0 * side.sign()]);
        let level = self.anatomy.dome(side) + 14.0;
        let over = lung_of(side) as u16;
        let (half_y, half_x) = (self.rng.random_range(42.0..54.0), self.rng.random_range(32.0..42.0));
        let voxels = self.canvas.rows([[level - 30.0, y - half_y], [level + 30.0, y + half_y]], Paint::lesion(35.0, over), |z, row| {
            let left = 1.0 - ((row - y) / half_y).powi(2);
            let within = (z - level - tilt * (row - y)).abs() < thickness / 2.0;
            (within && left > 0.0).then(|| (x - half_x * left.sqrt(), x + half_x * left.sqrt()))
        });
        self.found_at(8, "lung", (Some(side), Some(Lobe::Lower)), voxels, thickness);
    }

    /// A calcified ball: nothing else in the lung is as dense.
    fn nodule(&mut self) {
        let (side, lobe) = self.free_lobe();
        let size = self.size(28, 36);
        let site = self.anatomy.lobe_site(side, lobe);
        let centre = self.near(site, 8.0);
        let voxels = self.canvas.ball(centre, size / 2.0, Paint::lesion(550.0, LUNGS));
        self.found_at(9, "lung", (Some(side), Some(lobe)), voxels, size);
    }

    /// Hazy areas in two lobes.
    fn ground_glass(&mut self) {
        for _ in 0..2 {
            let (side, lobe) = self.free_lobe();
            let site = self.anatomy.lobe_site(side, lobe);
            let (mut voxels, over) = (VoxelBox::EMPTY, lung_of(side) as u16);
            for _ in 0..3 {
                let centre = self.near(site, 12.0);
                let radii = std::array::from_fn(|_| self.rng.random_range(30.0..42.0));
                let paint = Paint::lesion(self.rng.random_range(-500.0..-430.0), over);
                voxels.join(self.canvas.ellipsoid(centre, radii, paint));
            }
            self.found_at(10, "lung", (Some(side), Some(lobe)), voxels, 60.0);
        }
    }

    /// Dense strands in the apex of one lung or both.
    fn fibrotic_sequela(&mut self) {
        for side in self.sides() {
            let (mut voxels, over) = (VoxelBox::EMPTY, lung_of(side) as u16);
            for _ in 0..10 {
                let mut end = || {
                    let at = [
                        self.rng.random_range(86.0..112.0),
                        self.rng.random_range(-40.0..40.0),
                        self.rng.random_range(38.0..90.0) * side.sign(),
                    ];
                    self.anatomy.point(at)
                };
                let ends = [end(), end()];
                voxels.join(self.canvas.tube(ends, self.rng.random_range(4.0..5.5), Paint::lesion(140.0, over)));
            }
            self.found_at(11, "lung", (Some(side), Some(Lobe::Upper)), voxels, 40.0);
        }
    }

    /// An airless part of a lobe in which the bronchi still hold air.
    fn consolidation(&mut self) {
        let (side, lobe) = self.free_lobe();
        let site = self.anatomy.lobe_site(side, lobe);
        let centre = self.near(site, 6.0);
        let over = lung_of(side) as u16;
        let radii = std::array::from_fn(|_| self.rng.random_range(34.0..42.0));
        let voxels = self.canvas.ellipsoid(centre, radii, Paint::lesion(45.0, over));
        for _ in 0..3 {
            let end = self.near(centre, 20.0);
            self.canvas.tube([centre, end], 3.0, Paint::lesion(-800.0, over));
        }
        self.found_at(15, "lung", (Some(side), Some(lobe)), voxels, 70.0);
    }

    /// Geographic areas of denser lung in both lungs.
    fn mosaic(&mut self) {
        let mut voxels = VoxelBox::EMPTY;
        for area in 0..24 {
            let side = BOTH[area % 2];
            let at =
                [self.rng.random_range(-40.0..95.0), self.rng.random_range(-55.0..55.0), self.rng.random_range(35.0..100.0) * side.sign()];
            let radii = std::array::from_fn(|_| self.rng.random_range(12.0..20.0));
            voxels.join(self.canvas.ellipsoid(self.anatomy.point(at), radii, Paint::lesion(-640.0, LUNGS)));
        }
        self.found(13, "lung", voxels, 32.0);
    }

    /// Airways from both hila that can be seen: with thick walls, or wide.
    fn bronchi(&mut self, finding: usize, lumen_mm: f64, wall_mm: f64) {
        let mut voxels = VoxelBox::EMPTY;
        for side in BOTH {
            for _ in 0..6 {
                let ends = self.anatomy.bronchovascular(side, &mut self.rng);
                voxels.join(self.canvas.tube(ends, lumen_mm + wall_mm, Paint::lesion(0.0, LUNGS)));
                self.canvas.tube(ends, lumen_mm, Paint::lesion(-990.0, LUNGS));
            }
        }
        self.found(finding, "lung", voxels, 2.0 * lumen_mm);
    }

    /// Thin walls between lobules in the lower parts of both lungs.
    fn septal_thickening(&mut self) {
        let mut voxels = VoxelBox::EMPTY;
        for side in BOTH {
            for septum in 0..6 {
                let [z, y, x] = self.anatomy.point([-70.0 + 18.0 * f64::from(septum), 0.0, 62.0 * side.sign()]);
                voxels.join(self.canvas.block([z, y, x], [2.5, 70.0, 50.0], Paint::lesion(-350.0, LUNGS)));
                let [_, y, x] = self.anatomy.point([0.0, -54.0 + 21.0 * f64::from(septum), 62.0 * side.sign()]);
                voxels.join(self.canvas.block([-25.0, y, x], [50.0, 2.5, 50.0], Paint::lesion(-350.0, LUNGS)));
            }
        }
        self.found(17, "lung", voxels, 5.0);
    }
}
