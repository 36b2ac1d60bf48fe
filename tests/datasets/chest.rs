//! A small body that needs no data, and what all subjects share.

use std::fs;
use std::path::Path;

use ctscribe::config::Config;
use ctscribe::data::{Cache, Dataset, LocalFiles, Preparation, PreparationReport};
use ctscribe::ranks::Alone;
use ctscribe::volume::{Volume, write_nifti};

/// Slices, rows, columns.
pub const SHAPE: [usize; 3] = [24, 40, 50];
/// Millimetres z, y, x.
pub const SPACING: [f64; 3] = [6.0, 5.5, 5.5];

/// Air, lung, fat, muscle and bone in layers, in Hounsfield units; `seed` moves them a little.
pub fn chest(seed: usize) -> Vec<i16> {
    let layers = [(-1000, 15), (-850, 11), (-100, 7), (45, 14), (300, 3)];
    let line: Vec<i16> = layers.iter().flat_map(|(hu, count)| vec![*hu; *count]).collect();
    (0..SHAPE[0] * SHAPE[1])
        .flat_map(|row| (0..SHAPE[2]).map(move |x| (row, x)))
        .map(|(row, x)| line[(x + row / 97 + seed) % 50] + (row % 5) as i16)
        .collect()
}

/// Writes voxels as CT-RATE's files are.
pub fn write(path: &Path, values: &[i16], spacing_mm: [f64; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_nifti(path, values, SHAPE, spacing_mm, &Volume::lps_affine(spacing_mm, [0.0; 3])).unwrap();
}

/// The phantom preset with other keys.
pub fn config(set: &[&str]) -> Config {
    Config::load("phantom", &set.iter().map(|key| key.to_string()).collect::<Vec<_>>()).unwrap()
}

/// Prepares with so many workers.
pub fn prepared(dataset: &Dataset, config: &Config, root: &Path, workers: usize) -> (PreparationReport, Cache) {
    let preparation = Preparation { dataset, config: &config.volume, root, supply: &LocalFiles, workers, ranks: &Alone };
    let report = preparation.run(&|_| {}).unwrap();
    (report, Cache::open(root).unwrap())
}

/// The rows of prepare.csv by volume.
pub fn verdicts(root: &Path) -> std::collections::BTreeMap<String, Vec<String>> {
    let mut reader = csv::Reader::from_path(root.join("prepare.csv")).unwrap();
    let rows = reader.records().map(|row| row.unwrap().iter().map(String::from).collect::<Vec<_>>());
    rows.map(|row| (row[0].clone(), row)).collect()
}
