//! One plane of a prepared volume: linear along all three axes, without a gather.
//!
//! Source lines run along x, and CT-CLIP's planes along y. So sixteen lines of the output are made at a time and turned on the way:
//! then both remaining steps work on sixteen neighbours at once.

use super::Volume;
use super::prepare::{Axis, Clip, Layout, PreparationConfig};

/// Output lines made together.
const LANES: usize = 16;

/// The two source slices of an output plane.
pub(super) struct Slices<'a> {
    low: &'a [f32],
    high: &'a [f32],
    /// Of `high`.
    weight: f32,
    /// Voxels of a line.
    width: usize,
    /// Applied to source voxels.
    clip: Option<[f32; 2]>,
}

impl<'a> Slices<'a> {
    pub(super) fn new(volume: &'a Volume, (low, high, weight): (usize, usize, f64), config: &PreparationConfig) -> Self {
        let [_, ny, nx] = volume.shape;
        let slice = |z: usize| &volume.values[z * ny * nx..(z + 1) * ny * nx];
        let clip = (config.clip == Clip::BeforeResampling).then(|| config.clip_hu.map(|bound| bound as f32));
        Slices { low: slice(low), high: slice(high), weight: weight as f32, width: nx, clip }
    }

    /// Source line `y`, mixed along z.
    fn line(&self, y: usize, out: &mut [f32]) {
        let line = y * self.width..(y + 1) * self.width;
        let (low, high) = (&self.low[line.clone()], &self.high[line]);
        let (a, b) = (1.0 - self.weight, self.weight);
        match self.clip {
            Some([from, to]) => {
                let mixed = low.iter().zip(high).map(|(l, h)| a * within(*l, from, to) + b * within(*h, from, to));
                out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value);
            }
            None => out.iter_mut().zip(low.iter().zip(high)).for_each(|(out, (l, h))| *out = a * l + b * h),
        }
    }
}

/// As `clamp`, in the form of two instructions; voxels are finite.
#[inline(always)]
fn within(value: f32, from: f32, to: f32) -> f32 {
    let value = if value < from { from } else { value };
    if value > to { to } else { value }
}

/// From resampled Hounsfield units to the model's input.
struct Window {
    clip: [f32; 2],
    window: [f32; 2],
    middle: f32,
    half: f32,
    pad: f32,
}

impl Window {
    fn new(config: &PreparationConfig) -> Self {
        let [low, high] = config.window_hu.unwrap_or(config.clip_hu);
        let [middle, half] = config.window_hu.map_or([0.0, 1000.0], |[low, high]| [(low + high) / 2.0, (high - low) / 2.0]);
        Window {
            clip: config.clip_hu.map(|bound| bound as f32),
            window: [low as f32, high as f32],
            middle: middle as f32,
            half: half as f32,
            pad: config.pad as f32,
        }
    }

    #[inline(always)]
    fn of(&self, value: f32) -> f32 {
        let value = within(within(value, self.clip[0], self.clip[1]), self.window[0], self.window[1]);
        (value - self.middle) / self.half
    }
}

/// Fills an output plane from its two slices.
pub(super) fn fill(plane: &mut [f32], slices: &Slices, (x, y): (&Axis, &Axis), config: &PreparationConfig) {
    let window = Window::new(config);
    let (wx, wy) = (x.taps.len(), y.taps.len());
    let mut tile = vec![[0f32; LANES]; slices.width];
    let mut lines = Vec::new();
    for first in (0..wy).step_by(LANES) {
        let lanes = LANES.min(wy - first);
        let inside = turn_lines(slices, &y.taps[first..first + lanes], &mut lines, &mut tile);
        for (ix, tap) in x.taps.iter().enumerate() {
            let mut out = [window.pad; LANES];
            if let Some((x0, x1, weight)) = *tap {
                let (a, b) = (1.0 - weight as f32, weight as f32);
                let (t0, t1) = (&tile[x0], &tile[x1]);
                for lane in 0..LANES {
                    let value = window.of(a * t0[lane] + b * t1[lane]);
                    out[lane] = if inside[lane] { value } else { window.pad };
                }
            }
            match config.layout {
                Layout::Zxy => plane[ix * wy + first..][..lanes].copy_from_slice(&out[..lanes]),
                Layout::Zyx => (0..lanes).for_each(|lane| plane[(first + lane) * wx + ix] = out[lane]),
            }
        }
    }
}

/// Mixes the source lines of up to [`LANES`] output lines along z and y, and lays them down with the lane fastest. Which lanes are no padding.
fn turn_lines(slices: &Slices, taps: &[Option<(usize, usize, f64)>], lines: &mut Vec<f32>, tile: &mut [[f32; LANES]]) -> [bool; LANES] {
    let (width, mut inside) = (slices.width, [false; LANES]);
    let used = || taps.iter().flatten();
    let (Some(first), Some(last)) = (used().map(|tap| tap.0).min(), used().map(|tap| tap.1).max()) else { return inside };
    lines.resize((last + 1 - first) * width, 0.0);
    lines.chunks_exact_mut(width).enumerate().for_each(|(line, out)| slices.line(first + line, out));
    for (lane, tap) in taps.iter().enumerate() {
        let Some((y0, y1, weight)) = *tap else { continue };
        inside[lane] = true;
        let (a, b) = (1.0 - weight as f32, weight as f32);
        let line = |y: usize| lines[(y - first) * width..][..width].iter();
        tile.iter_mut().zip(line(y0).zip(line(y1))).for_each(|(tile, (l, h))| tile[lane] = a * l + b * h);
    }
    inside
}
