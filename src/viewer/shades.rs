//! Volumes in a page: Hounsfield units in 256 shades, predicted from their neighbours, deflated, in base64.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::DeflateEncoder;

/// From here on upward, a shade stands for so many Hounsfield units: air coarsely, soft tissue finely, so that a narrow window still has a hundred.
const STEPS: [(f64, f64); 3] = [(f64::NEG_INFINITY, 16.0), (-200.0, 4.0), (300.0, 10.0)];

/// The Hounsfield units of at most 256 shades over `range_hu`, rising.
pub fn shades(range_hu: [f64; 2]) -> Vec<f32> {
    let with = |stretch: f64| {
        let mut levels = vec![range_hu[0]];
        while let Some(&last) = levels.last().filter(|last| **last < range_hu[1]) {
            let step = STEPS.iter().rev().find(|(from, _)| last >= *from).map_or(16.0, |(_, step)| *step);
            levels.push((last + step * stretch).min(range_hu[1]));
        }
        levels
    };
    let mut stretch = 1.0;
    let mut levels = with(stretch);
    while levels.len() > 256 {
        stretch *= 1.05;
        levels = with(stretch);
    }
    levels.into_iter().map(|level| level as f32).collect()
}

/// The nearest shade of each value.
pub fn shade(values: &[f32], levels: &[f32]) -> Vec<u8> {
    let nearest = |value: &f32| {
        let above = levels.partition_point(|level| level < value).min(levels.len() - 1);
        let below = above.saturating_sub(1);
        if value - levels[below] < levels[above] - value { below as u8 } else { above as u8 }
    };
    values.iter().map(nearest).collect()
}

/// Shades (z, y, x) as base64: each slice's differences from the median edge predictor (JPEG-LS, ITU-T T.87 A.3), deflated.
pub fn pack(shades: &[u8], shape: [usize; 3]) -> String {
    let [_, h, w] = shape;
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    for slice in shades.chunks_exact(h * w) {
        let differences: Vec<u8> = (0..h * w).map(|at| slice[at].wrapping_sub(predicted(slice, at, w))).collect();
        encoder.write_all(&differences).expect("a vector takes every byte");
    }
    STANDARD.encode(encoder.finish().expect("a vector takes every byte"))
}

/// From the left, upper and upper left neighbours; 0 stands outside of the slice.
fn predicted(slice: &[u8], at: usize, w: usize) -> u8 {
    let (left, up) = (!at.is_multiple_of(w), at >= w);
    let value = |inside: bool, back: usize| if inside { i16::from(slice[at - back]) } else { 0 };
    let (a, b, c) = (value(left, 1), value(up, w), value(left && up, w + 1));
    let predicted = match () {
        () if c >= a.max(b) => a.min(b),
        () if c <= a.min(b) => a.max(b),
        () => a + b - c,
    };
    predicted as u8
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn shades_are_fine_in_soft_tissue_and_cover_the_range() {
        let levels = shades([-1000.0, 1000.0]);
        assert!(levels.len() <= 256 && levels[0] == -1000.0 && *levels.last().unwrap() == 1000.0);
        let within = |low: f32, high: f32| levels.iter().filter(|level| (low..=high).contains(*level)).count();
        assert!(within(-160.0, 240.0) >= 100, "a mediastinal window has {} shades", within(-160.0, 240.0));
        assert!(shades([-2000.0, 4000.0]).len() <= 256);
        assert_eq!(shade(&[-1000.0, -993.0, -991.0, 41.0, 43.0, 5000.0], &levels)[..3], [0, 0, 1]);
        let soft = shade(&[41.0, 43.0], &levels).map_levels(&levels);
        assert!(soft.iter().zip([41.0, 43.0]).all(|(a, b)| (a - b).abs() <= 2.0), "{soft:?}");
    }

    trait Levels {
        fn map_levels(&self, levels: &[f32]) -> Vec<f32>;
    }

    impl Levels for Vec<u8> {
        fn map_levels(&self, levels: &[f32]) -> Vec<f32> {
            self.iter().map(|shade| levels[usize::from(*shade)]).collect()
        }
    }

    #[test]
    fn what_is_packed_is_unpacked_and_smooth_volumes_shrink() {
        let shape = [3, 20, 30];
        let shades: Vec<u8> = (0..1800).map(|i| ((i % 30) * 4 + (i / 30 % 20) * 3 + i / 600) as u8).collect();
        let packed = pack(&shades, shape);
        let bytes = STANDARD.decode(&packed).unwrap();
        let mut differences = Vec::new();
        flate2::read::DeflateDecoder::new(bytes.as_slice()).read_to_end(&mut differences).unwrap();
        let mut back = Vec::new();
        for slice in differences.chunks_exact(600) {
            let mut values = vec![0u8; 600];
            (0..600).for_each(|at| values[at] = slice[at].wrapping_add(predicted(&values, at, 30)));
            back.extend(values);
        }
        assert_eq!(back, shades);
        assert!(packed.len() < 300, "{}", packed.len());
    }
}
