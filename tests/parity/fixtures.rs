//! Where the fixtures are, and how a number is compared.
#![allow(dead_code, reason = "each subject uses the helpers it needs")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

/// The fixture folder `name`, or `None` (said on stderr) where the fixtures are absent.
pub fn folder(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("CTSCRIBE_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/fixtures")), PathBuf::from);
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: {} is absent", folder.display());
    None
}

/// The data folder entry `name`, or `None` (said on stderr) where the data are absent.
pub fn data(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data")).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// All tensors of a safetensors file.
pub fn tensors(path: impl AsRef<std::path::Path>) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path.as_ref(), &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// The largest absolute difference of two tensors of one shape; NaN counts as infinite.
pub fn max_difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims(), "shapes differ");
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let differences = values(found).into_iter().zip(values(expected)).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) })
}

/// Asserts that every value agrees within `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let worst = max_difference(found, expected);
    assert!(worst <= tolerance, "{what}: differs by {worst:e}, tolerance {tolerance:e}");
}
