//! Reading volumes: every NIfTI type, DICOM as scanners write it, real scans, broken files, Hounsfield decisions.

mod bad_dicom;
mod bad_nifti;
mod codecs;
mod compressed;
mod dicom;
mod dicom_file;
mod hounsfield;
mod nifti;
mod nifti_file;
mod orientation;
mod real;

use std::path::{Path, PathBuf};

use ctscribe::volume::read;

/// The data folder entry `name`, or `None` (said on stderr) where the data are absent.
fn data(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data")).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// Asserts that reading fails with one line that names the file `named` and contains every word.
#[track_caller]
fn assert_refused(path: &Path, named: &Path, words: &[&str]) {
    let line = read(path).expect_err("it was read").to_string();
    assert!(line.starts_with(&format!("{}: ", named.display())), "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in: {line}");
    }
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.len() < 400, "{line}");
}
