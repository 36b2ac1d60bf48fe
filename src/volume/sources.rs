//! Files, DICOM folders and trees of them, as a list of scans.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::dicom::is_dicom;
use crate::{Error, Result};

/// Every scan under `paths`: NIfTI files, and folders that hold DICOM slices. A path named outright is kept whatever it is.
pub fn find_scans(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut scans = Vec::new();
    for path in paths {
        if !path.is_dir() {
            scans.push(path.clone());
            continue;
        }
        let mut found = BTreeSet::new();
        for entry in WalkDir::new(path).sort_by_file_name() {
            let entry = entry.map_err(|e| Error::file(path, e.to_string()))?;
            let file = entry.path();
            if is_nifti(file) {
                found.insert(file.to_path_buf());
            } else if entry.file_type().is_file() && is_dicom(file) {
                found.insert(file.parent().unwrap_or(path).to_path_buf());
            }
        }
        if found.is_empty() {
            return Err(Error::file(path, "holds neither NIfTI files nor DICOM slices"));
        }
        scans.extend(found);
    }
    Ok(scans)
}

fn is_nifti(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".nii") || name.ends_with(".nii.gz")
}

/// A scan's name: its file's or folder's, without `.nii` or `.nii.gz`.
pub fn scan_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".nii").to_string()
}
