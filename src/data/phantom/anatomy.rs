//! A chest without findings. Lengths in mm, points (z, y, x): z to the head, y to the back, x to the patient's left.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::canvas::{ANY, Canvas, Grid, LUNGS, Paint, Tissue, VoxelBox};
use super::{Lobe, PhantomConfig, Side};

/// The lungs' common half axes in y and x, and the distance of their axes from the midline.
const LUNG_Y: f64 = 74.0;
const LUNG_X: f64 = 56.0;
const LUNG_FROM_MIDLINE: f64 = 62.0;
/// How far the lung's rim reaches below the dome of the diaphragm.
const SULCUS: f64 = 45.0;

/// What differs between patients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anatomy {
    female: bool,
    /// Size against the standard chest, (z, y, x).
    scale: [f64; 3],
    fat_mm: f64,
    /// The diaphragm's domes, right and left.
    dome_mm: [f64; 2],
    /// A normal heart's size against the standard one, and where it lies.
    heart: f64,
    heart_shift: [f64; 3],
    lung_hu: f32,
    blood_hu: f32,
    stomach_air: bool,
    vessel_seed: u64,
}

impl Anatomy {
    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        Anatomy {
            female: rng.random_bool(0.45),
            scale: [rng.random_range(0.95..1.05), rng.random_range(0.94..1.05), rng.random_range(0.94..1.05)],
            fat_mm: rng.random_range(11.0..19.0),
            dome_mm: [rng.random_range(-57.0..-47.0), rng.random_range(-66.0..-56.0)],
            heart: rng.random_range(0.90..1.0),
            heart_shift: std::array::from_fn(|_| rng.random_range(-4.0..4.0)),
            lung_hu: rng.random_range(-835.0..-800.0),
            blood_hu: rng.random_range(38.0..50.0),
            stomach_air: rng.random_bool(0.5),
            vessel_seed: rng.random(),
        }
    }

    pub(super) fn female(&self) -> bool {
        self.female
    }

    /// Where the front wall lies on the ribs, beside the breastbone.
    pub(super) fn front_of_ribs(&self) -> f64 {
        -(108.0 * self.scale[1] - self.fat_mm - 7.0) * 0.93 - 5.0
    }

    /// A grid over the chest: the spacing is the scan's own, and the patient does not lie quite in the middle.
    pub(super) fn grid(config: &PhantomConfig, rng: &mut ChaCha8Rng) -> Grid {
        let in_plane = rng.random_range(0.9..1.1);
        let factors = [rng.random_range(0.9..1.1), in_plane, in_plane];
        // Scanners tell spacings to a few decimals.
        let spacing_mm: [f64; 3] = std::array::from_fn(|axis| (config.spacing_mm[axis] * factors[axis] * 1000.0).round() / 1000.0);
        let shape: [usize; 3] = std::array::from_fn(|axis| (config.field_of_view_mm[axis] / spacing_mm[axis]).round().max(2.0) as usize);
        let origin_mm = std::array::from_fn(|axis| {
            let shift: f64 = rng.random_range(-5.0..5.0);
            ((shift - spacing_mm[axis] * (shape[axis] - 1) as f64 / 2.0) * 1000.0).round() / 1000.0
        });
        Grid { shape, spacing_mm, origin_mm }
    }

    /// A point of the standard chest in this one.
    pub(super) fn point(&self, [z, y, x]: [f64; 3]) -> [f64; 3] {
        [z * self.scale[0], y * self.scale[1], x * self.scale[2]]
    }

    /// The trunk, the lungs, what lies under the diaphragm, bones.
    pub(super) fn paint_chest(&self, canvas: &mut Canvas) {
        self.paint_trunk(canvas);
        for side in [Side::Right, Side::Left] {
            self.paint_lung(canvas, side);
        }
        self.paint_cylinder(canvas, [0.0, 0.0], [70.0, 31.0], Paint::new(-95.0, Tissue::Cavity, LUNGS | Tissue::Cavity as u16));
        self.paint_abdomen(canvas);
        self.paint_bones(canvas);
        self.paint_lung_vessels(canvas);
    }

    fn paint_trunk(&self, canvas: &mut Canvas) {
        let bone_ring = self.fat_mm + 14.0;
        let skin = |z: f64| 1.0 - 0.25 * ((z - 100.0).max(0.0) / 50.0).powi(2);
        if self.female {
            for x in [-70.0, 70.0] {
                let [z, y, x] = self.point([5.0, -98.0, x]);
                canvas.ellipsoid([z, y, x], [45.0, 26.0, 46.0], Paint::new(-105.0, Tissue::Wall, ANY));
                canvas.ellipsoid([z, y - 4.0, x], [24.0, 14.0, 26.0], Paint::new(25.0, Tissue::Wall, ANY));
            }
        }
        for (depth, hu, tissue) in [(0.0, -105.0, Tissue::Wall), (self.fat_mm, 52.0, Tissue::Wall), (bone_ring, -95.0, Tissue::Cavity)] {
            let (half_y, half_x) = (108.0 * self.scale[1] - depth, 150.0 * self.scale[2] - depth);
            canvas.rows([[-1e3, -half_y], [1e3, half_y]], Paint::new(hu, tissue, ANY), |z, y| {
                let taper = skin(z);
                // A superellipse between ellipse and box: powers 2.5 and 8/3, by roots since `powf` would take a tenth of all time.
                let share = y.abs() / (half_y * taper);
                let left = 1.0 - share * share * share.sqrt();
                let fourth_root = left.max(0.0).sqrt().sqrt();
                let half = half_x * taper * fourth_root * fourth_root.sqrt();
                (left > 0.0).then_some((-half, half))
            });
        }
    }

    /// A vertical elliptic cylinder: centre and half axes (y, x) of the standard chest.
    fn paint_cylinder(&self, canvas: &mut Canvas, centre: [f64; 2], half: [f64; 2], paint: Paint) {
        let [_, centre_y, centre_x] = self.point([0.0, centre[0], centre[1]]);
        let [_, half_y, half_x] = self.point([0.0, half[0], half[1]]);
        canvas.rows([[-1e3, centre_y - half_y], [1e3, centre_y + half_y]], paint, |_, y| {
            let left = 1.0 - ((y - centre_y) / half_y).powi(2);
            (left > 0.0).then(|| (centre_x - half_x * left.sqrt(), centre_x + half_x * left.sqrt()))
        });
    }

    /// A cylinder that narrows to the apex; the diaphragm is painted over its base.
    fn paint_lung(&self, canvas: &mut Canvas, side: Side) {
        let tissue = lung_of(side);
        let [apex, half_y, half_x] = self.point([118.0, LUNG_Y, LUNG_X]);
        let [middle, _, centre_x] = self.point([20.0, 0.0, LUNG_FROM_MIDLINE * side.sign()]);
        let base = self.dome(side) - SULCUS;
        let paint = Paint::new(self.lung_hu, tissue, Tissue::Cavity as u16);
        canvas.rows([[base, -half_y], [apex, half_y]], paint, |z, y| {
            let narrow = 1.0 - ((z - middle).max(0.0) / (apex - middle)).powi(2);
            let left = narrow - (y / half_y).powi(2);
            (left > 0.0).then(|| (centre_x - half_x * left.sqrt(), centre_x + half_x * left.sqrt()))
        });
    }

    /// The height of a diaphragm's dome.
    pub(super) fn dome(&self, side: Side) -> f64 {
        self.dome_mm[usize::from(side == Side::Left)] * self.scale[0]
    }

    /// Under the domes: liver on the right; stomach, spleen on the left.
    fn paint_abdomen(&self, canvas: &mut Canvas) {
        let over = LUNGS | Tissue::Cavity as u16;
        for (side, hu) in [(Side::Right, 58.0), (Side::Left, 42.0)] {
            let [_, half_y, half_x] = self.point([0.0, LUNG_Y, LUNG_X]);
            let [_, centre_y, centre_x] = self.point([0.0, -5.0, LUNG_FROM_MIDLINE * side.sign()]);
            let top = self.dome(side);
            let reach = 1.25 * half_y;
            canvas.rows([[-1e3, centre_y - reach], [top, centre_y + reach]], Paint::new(hu, Tissue::Organ, over), |z, y| {
                let left = (top - z) / SULCUS - ((y - centre_y) / half_y).powi(2);
                let half = half_x * left.clamp(0.0, 1.4).sqrt();
                (left > 0.0).then_some((centre_x - half, centre_x + half))
            });
        }
        let left_dome = self.dome(Side::Left);
        if self.stomach_air {
            let [_, y, x] = self.point([0.0, -32.0, 58.0]);
            canvas.ellipsoid([left_dome - 30.0, y, x], [16.0, 22.0, 24.0], Paint::new(-950.0, Tissue::Organ, Tissue::Organ as u16));
        }
    }

    fn paint_bones(&self, canvas: &mut Canvas) {
        let bone = |hu: f32| Paint::new(hu, Tissue::Bone, ANY);
        self.paint_cylinder(canvas, [69.0, 0.0], [16.0, 19.0], bone(200.0));
        self.paint_cylinder(canvas, [93.0, 0.0], [7.0, 12.0], bone(260.0));
        let inner = [108.0 * self.scale[1] - self.fat_mm - 7.0, 150.0 * self.scale[2] - self.fat_mm - 7.0];
        canvas.block([50.0 * self.scale[0], -inner[0], 0.0], [48.0 * self.scale[0], 5.0, 16.0], bone(240.0));
        for rib in 0..9 {
            let level = (100.0 - 24.0 * f64::from(rib)) * self.scale[0];
            for step in 0..48 {
                let angle = f64::from(step) / 48.0 * std::f64::consts::TAU;
                // A superellipse as the trunk's; ribs fall towards the front.
                let axis = |part: f64, half: f64| half * part.signum() * part.abs().powf(0.8);
                let (y, x) = (axis(angle.cos(), inner[0]), axis(angle.sin(), inner[1]));
                canvas.ball([level + 0.3 * y, y, x], 4.5, bone(420.0));
            }
        }
    }

    /// A few larger vessels from each hilum.
    fn paint_lung_vessels(&self, canvas: &mut Canvas) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.vessel_seed);
        for side in [Side::Right, Side::Left] {
            for _ in 0..5 {
                let [hilum, end] = self.bronchovascular(side, &mut rng);
                canvas.tube([hilum, end], rng.random_range(2.5..4.0), Paint::lesion(-150.0, LUNGS));
            }
        }
    }

    /// From a hilum into the lung.
    pub(super) fn bronchovascular(&self, side: Side, rng: &mut ChaCha8Rng) -> [[f64; 3]; 2] {
        let hilum = self.point([5.0, 5.0, 32.0 * side.sign()]);
        let end = [rng.random_range(-45.0..70.0), rng.random_range(-45.0..50.0), rng.random_range(50.0..95.0) * side.sign()];
        [hilum, self.point(end)]
    }

    /// The heart with its fat, `factor` times this patient's normal size; the voxels of its muscle.
    pub(super) fn paint_heart(&self, canvas: &mut Canvas, factor: f64, over: u16) -> VoxelBox {
        let (centre, radii) = self.heart(factor);
        canvas.ellipsoid(centre, radii.map(|radius| radius + 5.0), Paint::new(-95.0, Tissue::Cavity, over));
        canvas.ellipsoid(centre, radii, Paint::new(self.blood_hu, Tissue::Vessel, over))
    }

    /// The heart's centre and half axes.
    pub(super) fn heart(&self, factor: f64) -> ([f64; 3], [f64; 3]) {
        let [z, y, x] = self.heart_shift;
        // A larger heart grows to the left and down.
        let growth = factor - 1.0;
        let centre = self.point([-48.0 + z - 10.0 * growth, -22.0 + y, 15.0 + x + 22.0 * growth]);
        (centre, [44.0, 42.0, 53.0].map(|radius| radius * self.heart * factor))
    }

    /// Aorta, caval vein, pulmonary arteries, airways, gullet, thyroid.
    pub(super) fn paint_mediastinum(&self, canvas: &mut Canvas) {
        let blood = Paint::new(self.blood_hu, Tissue::Vessel, ANY);
        for pair in AORTA.windows(2) {
            canvas.tube([self.point(pair[0]), self.point(pair[1])], 12.5, blood);
        }
        let mut tube = |from: [f64; 3], to: [f64; 3], radius: f64, paint: Paint| {
            canvas.tube([self.point(from), self.point(to)], radius, paint);
        };
        tube([75.0, -8.0, -22.0], [-10.0, -8.0, -26.0], 8.0, blood);
        tube([-8.0, -32.0, 14.0], [16.0, -8.0, 14.0], 11.0, blood);
        for side in [-1.0, 1.0] {
            tube([14.0, -4.0, 8.0 * side], [6.0, 2.0, 38.0 * side], 8.5, blood);
        }
        tube([145.0, 42.0, 3.0], [-100.0, 42.0, 3.0], 7.0, Paint::new(35.0, Tissue::Organ, ANY));
        for (more, hu) in [(2.0, 30.0), (0.0, -990.0)] {
            let airway = Paint::new(hu, Tissue::Vessel, ANY);
            tube([145.0, 16.0, 0.0], [28.0, 20.0, 0.0], 8.5 + more, airway);
            for side in [-1.0, 1.0] {
                tube([28.0, 20.0, 0.0], [2.0, 18.0, 38.0 * side], 6.5 + more, airway);
            }
        }
        for side in [-1.0, 1.0] {
            let [z, y, x] = self.point([128.0, 2.0, 17.0 * side]);
            canvas.ellipsoid([z, y, x], [16.0, 9.0, 8.0], Paint::new(105.0, Tissue::Organ, ANY));
        }
    }

    /// About the middle of a lobe.
    pub(super) fn lobe_site(&self, side: Side, lobe: Lobe) -> [f64; 3] {
        let [z, y, x] = match lobe {
            Lobe::Upper => [62.0, -14.0, 68.0],
            Lobe::Middle => [-20.0, -42.0, 80.0],
            Lobe::Lower => [-20.0, 36.0, 72.0],
        };
        self.point([z, y, x * side.sign()])
    }
}

/// The aorta's axis, from the valve over the arch to the diaphragm.
pub(super) const AORTA: [[f64; 3]; 8] = [
    [-12.0, -18.0, -6.0],
    [20.0, -22.0, -14.0],
    [46.0, -14.0, -8.0],
    [54.0, 6.0, 6.0],
    [50.0, 30.0, 20.0],
    [32.0, 46.0, 25.0],
    [-40.0, 50.0, 25.0],
    [-150.0, 54.0, 14.0],
];

/// A side's lung.
pub(super) fn lung_of(side: Side) -> Tissue {
    match side {
        Side::Right => Tissue::RightLung,
        Side::Left => Tissue::LeftLung,
    }
}
