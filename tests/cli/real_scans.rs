//! Real chest CTs, where they are at hand: every one gets a report; what is not a chest gets a warning.

use std::path::PathBuf;

use crate::trained::{run, text, trained};

fn data(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/ct")).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

#[test]
fn real_chests_get_reports_and_the_abdomen_a_warning() {
    let run_folder = trained().path("run");
    for name in ["lung1_image.nii.gz", "Chest_CT.nii.gz", "Chest_CT_dicom"] {
        let Some(path) = data(name) else { return };
        let (code, out, err) = run(&["generate", text(&path), "--run", text(&run_folder)]);
        assert_eq!(code, 0, "{name}: {err}");
        assert!(!out.trim().is_empty() && !err.contains("does not look like a chest"), "{name}: {err}");
    }
    let Some(abdomen) = data("abdomen_not_chest_ras_int32.nii.gz") else { return };
    let (_, _, err) = run(&["generate", text(&abdomen), "--run", text(&run_folder)]);
    assert!(err.contains("does not look like a chest"), "{err}");
}

#[test]
fn a_scan_reads_alike_as_nifti_and_as_dicom() {
    let (Some(nifti), Some(dicom)) = (data("Chest_CT.nii.gz"), data("Chest_CT_dicom")) else { return };
    let run_folder = trained().path("run");
    let report = |path: &PathBuf| run(&["generate", text(path), "--run", text(&run_folder)]).1;
    assert_eq!(report(&nifti), report(&dicom));
}
