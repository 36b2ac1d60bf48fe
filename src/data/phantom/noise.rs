//! Scanner noise and sharpness.

use std::sync::LazyLock;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A field's voxels (z, y, x); powers of two, so that rolling is a mask.
const FIELD: [usize; 3] = [32, 64, 64];
const FIELDS: usize = 4;

/// Noise fields of unit variance, made once: drawing a normal number for each voxel would cost more than all the rest.
static BANK: LazyLock<Vec<Vec<f32>>> = LazyLock::new(|| {
    let mut rng = ChaCha8Rng::seed_from_u64(0x6e6f_6973);
    // Four uniform numbers add up to nearly a normal one; the variance of their sum is 1/3.
    let mut number = || ((0..4).map(|_| rng.random::<f32>()).sum::<f32>() - 2.0) * 3f32.sqrt();
    (0..FIELDS).map(|_| (0..FIELD.iter().product()).map(|_| number()).collect()).collect()
});

/// A scanner's image: noise of `sigma_hu` added, after a blur of `softness` (0 none, 0.25 much) along y and x; int16.
pub(super) fn develop(values: &mut [f32], shape: [usize; 3], softness: f32, sigma_hu: f32, rng: &mut ChaCha8Rng) -> Vec<i16> {
    if softness > 0.0 {
        blur(values, shape, softness);
    }
    let field = &BANK[rng.random_range(0..FIELDS)];
    let roll: [usize; 3] = std::array::from_fn(|axis| rng.random_range(0..FIELD[axis]));
    let flip: [bool; 3] = std::array::from_fn(|_| rng.random());
    let at = |axis: usize, index: usize| {
        let rolled = (index + roll[axis]) & (FIELD[axis] - 1);
        if flip[axis] { FIELD[axis] - 1 - rolled } else { rolled }
    };
    let columns: Vec<usize> = (0..shape[2]).map(|x| at(2, x)).collect();
    let mut image = Vec::with_capacity(values.len());
    for (row, line) in values.chunks_exact(shape[2]).enumerate() {
        let start = (at(0, row / shape[1]) * FIELD[1] + at(1, row % shape[1])) * FIELD[2];
        let noise = &field[start..start + FIELD[2]];
        // CT-RATE's files start at -1024 HU.
        image.extend(line.iter().zip(&columns).map(|(value, &x)| (value + sigma_hu * noise[x]).clamp(-1024.0, 3071.0) as i16));
    }
    image
}

/// Mixes each voxel with its two neighbours along y and x.
fn blur(values: &mut [f32], [_, height, width]: [usize; 3], softness: f32) {
    let keep = 1.0 - 2.0 * softness;
    for slice in values.chunks_exact_mut(height * width) {
        for line in slice.chunks_exact_mut(width) {
            let mut before = line[0];
            for x in 0..width {
                let (here, after) = (line[x], line[(x + 1).min(width - 1)]);
                line[x] = keep * here + softness * (before + after);
                before = here;
            }
        }
        let mut before = slice[..width].to_vec();
        for y in 0..height {
            for x in 0..width {
                let here = slice[y * width + x];
                let after = slice[(y + 1).min(height - 1) * width + x];
                slice[y * width + x] = keep * here + softness * (before[x] + after);
                before[x] = here;
            }
        }
    }
}
