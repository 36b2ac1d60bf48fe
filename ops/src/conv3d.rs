//! Depthwise 3-D convolution, kernel 3x3x3 (CT-ViT's position generator).

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::composed;
use crate::cpu::{Values, fused, made_in_pieces, sum_partials, sum_rows, values};
use crate::simd::vectorised;

/// How the first axis is padded; the other two have one zero on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvPadding {
    /// Two zeros in front, none behind: a position sees itself and the two before it.
    Causal,
    /// One zero on each side.
    Same,
}

/// Depthwise cross-correlation. x: (B, T, H, W, C), weight: (C, 1, 3, 3, 3), bias: (C) -> (B, T, H, W, C).
pub fn depthwise_conv3d(x: &Tensor, weight: &Tensor, bias: &Tensor, padding: ConvPadding) -> Result<Tensor> {
    let front = match padding {
        ConvPadding::Causal => 2,
        ConvPadding::Same => 1,
    };
    or_cuda!(crate::cuda::depthwise_conv3d(x, weight, bias, front));
    if !fused(&[x, weight, bias]) {
        return composed::depthwise_conv3d(x, weight, bias, padding);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Depthwise { front })
}

const TAPS: usize = 27;

/// (T, H, W, C) of one batch element.
type Size = (usize, usize, usize, usize);

/// Calls `f(tap, output, input, values)` for each row of positions of plane `t` that a tap connects; the plane's first value is output 0.
#[inline(always)]
fn for_rows(t: usize, (depth, h, w, c): Size, front: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    for tap in 0..TAPS {
        let (dt, dh, dw) = (tap / 9, tap / 3 % 3, tap % 3);
        let Some(source) = (t + dt).checked_sub(front).filter(|&source| source < depth) else { continue };
        let (from, to) = (1usize.saturating_sub(dw), w.min(w + 1 - dw));
        for y in 0..h {
            let Some(source_y) = (y + dh).checked_sub(1).filter(|&source| source < h) else { continue };
            if from < to {
                let input = ((source * h + source_y) * w + from + dw - 1) * c;
                f(tap, (y * w + from) * c, input, (to - from) * c);
            }
        }
    }
}

/// Channels, and positions of a row, whose sums stay in registers.
const CHANNELS: usize = 16;
const POSITIONS: usize = 8;

/// Sums of `N` channels from `channel` on of the positions of a row from `first` on: over rows of positions, each with its first value and its
/// first tap.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "what a plane is made of")]
fn sums_of<const N: usize>(
    x: &[f32],
    taps: &[f32],
    bias: &[f32],
    rows: &[(usize, usize)],
    first: usize,
    w: usize,
    c: usize,
    channel: usize,
) -> [[f32; N]; POSITIONS] {
    let block = |values: &[f32], at: usize| -> [f32; N] { *values[at + channel..].first_chunk().expect("the channels are there") };
    let mut sums = [block(bias, 0); POSITIONS];
    for &(row, tap) in rows {
        let taps: [[f32; N]; 3] = [block(taps, tap), block(taps, tap + c), block(taps, tap + 2 * c)];
        // by index, so that they are unrolled; a tap's positions begin one to the left of the output's
        for from in 0..POSITIONS + 2 {
            if (first + from).wrapping_sub(1) < w {
                let x = block(x, row + (first + from - 1) * c);
                for dw in 0..3 {
                    if (dw..POSITIONS + dw).contains(&from) {
                        for i in 0..N {
                            sums[from - dw][i] = x[i].mul_add(taps[dw][i], sums[from - dw][i]);
                        }
                    }
                }
            }
        }
    }
    sums
}

vectorised! {
    /// Writes plane `t` of the cross-correlation of x, one batch element, each position starting from `bias`. taps: (27, C).
    fn write_plane(x: &[f32], t: usize, size: Size, taps: &[f32], bias: &[f32], front: usize, out: &mut [f32]) {
        let (depth, h, w, c) = size;
        for y in 0..h {
            // rows of positions that rows of three taps connect: first value of each, and its first tap
            let mut rows = [(0, 0); TAPS / 3];
            let mut count = 0;
            for (row, tap) in (0..TAPS).step_by(3).enumerate() {
                let source = (t + row / 3).checked_sub(front).filter(|&source| source < depth);
                let source_y = (y + row % 3).checked_sub(1).filter(|&source| source < h);
                if let (Some(source), Some(source_y)) = (source, source_y) {
                    rows[count] = ((source * h + source_y) * w * c, tap * c);
                    count += 1;
                }
            }
            for first in (0..w).step_by(POSITIONS) {
                let mut channel = 0;
                while channel + CHANNELS <= c {
                    let sums = sums_of::<CHANNELS>(x, taps, bias, &rows[..count], first, w, c, channel);
                    for (position, sums) in sums.iter().enumerate().take(w - first) {
                        out[(y * w + first + position) * c + channel..][..CHANNELS].copy_from_slice(sums);
                    }
                    channel += CHANNELS;
                }
                while channel < c {
                    let sums = sums_of::<1>(x, taps, bias, &rows[..count], first, w, c, channel);
                    for (position, sums) in sums.iter().enumerate().take(w - first) {
                        out[(y * w + first + position) * c + channel] = sums[0];
                    }
                    channel += 1;
                }
            }
        }
    }

    /// Adds what plane `t` says of the taps' gradient, (27, C), to `dtaps`.
    fn add_tap_gradient(x: &[f32], t: usize, size: Size, grad: &[f32], front: usize, dtaps: &mut [f32]) {
        let c = size.3;
        for_rows(t, size, front, |tap, output, input, n| {
            let dtaps = &mut dtaps[tap * c..][..c];
            for (g, x) in grad[output..][..n].chunks_exact(c).zip(x[input..][..n].chunks_exact(c)) {
                for ((dtap, &x), &g) in dtaps.iter_mut().zip(x).zip(g) {
                    *dtap += x * g;
                }
            }
        });
    }
}

/// The whole cross-correlation, each position starting from `bias`.
fn correlate(x: &[f32], size: Size, taps: &[f32], bias: &[f32], front: usize) -> Vec<f32> {
    let (depth, h, w, c) = size;
    let plane = h * w * c;

    made_in_pieces(x.len(), plane.max(1), |i, y| write_plane(&x[i / depth * depth * plane..], i % depth, size, taps, bias, front, y))
}

/// (rows, columns) as (columns, rows).
fn turned(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

struct Depthwise {
    /// Zeros before the first plane; as many short of two come after the last.
    front: usize,
}

impl Depthwise {
    /// Gradient of the weight, (C, 27): partial sums over fixed groups of planes, added in order.
    fn weight_gradient(&self, x: &[f32], size: Size, grad: &[f32]) -> Vec<f32> {
        let (depth, h, w, c) = size;
        let plane = h * w * c;
        let planes = x.len() / plane;
        let group = planes.div_ceil(32);
        let mut partials = vec![0.0; planes.div_ceil(group) * TAPS * c];
        partials.par_chunks_mut(TAPS * c).enumerate().for_each(|(i, dtaps)| {
            for plane_number in i * group..planes.min((i + 1) * group) {
                let x = &x[plane_number / depth * depth * plane..];
                add_tap_gradient(x, plane_number % depth, size, &grad[plane_number * plane..][..plane], self.front, dtaps);
            }
        });
        turned(&sum_partials(&partials, TAPS * c), c)
    }
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise-conv3d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, t, h, w, c) = xl.shape().dims5()?;
        if wl.dims() != [c, 1, 3, 3, 3] || bl.dims() != [c] {
            bail!("depthwise conv: x is {:?}, weight {:?}, bias {:?}", xl.shape(), wl.shape(), bl.shape());
        }
        let taps = turned(values(weight, wl)?, TAPS);
        let y = correlate(values(x, xl)?, (t, h, w, c), &taps, values(bias, bl)?, self.front);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, t, h, w, c) = x.dims5()?;
        let size = (t, h, w, c);
        let grad = grad.contiguous()?;
        let (x_values, grad) = (Values::of(x)?, Values::of(&grad)?);
        // The adjoint of a correlation: the taps in reverse, the padding's two ends exchanged.
        let taps = turned(&Values::of(weight)?, TAPS);
        let reversed: Vec<f32> = taps.chunks_exact(c).rev().flatten().copied().collect();
        let dx = || correlate(&grad, size, &reversed, &vec![0.0; c], 2 - self.front);
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        let dx = x.track_op().then(|| tensor(dx(), x)).transpose()?;
        let dw = weight.track_op().then(|| tensor(self.weight_gradient(&x_values, size, &grad), weight)).transpose()?;
        let db = bias.track_op().then(|| tensor(sum_rows(&grad, c), bias)).transpose()?;
        Ok((dx, dw, db))
    }
}
