//! Two processes prepare what one prepares: the same cache, the same words, the same exit code.

use std::fs;
use std::path::{Path, PathBuf};

use crate::dicom_file::{DicomFile, Pixels, RLE};
use crate::launched::{mpirun_is_there, run, text};
use crate::tiny;

/// A list of studies below `root`: phantoms; and a file that is no scan, a series whose pixels make their decoder panic, a study without its
/// file, a row without a name.
pub fn dataset(root: &Path) -> PathBuf {
    let phantoms = tiny::shared().root().parent().unwrap().join("dataset/dataset");
    let found = walkdir::WalkDir::new(phantoms).sort_by_file_name().into_iter().flatten().map(|entry| entry.into_path());
    let mut scans: Vec<PathBuf> = found.filter(|path| path.to_string_lossy().ends_with(".nii.gz")).take(16).collect();
    fs::write(root.join("no-scan.nii.gz"), b"no scan").unwrap();
    fs::create_dir(root.join("series")).unwrap();
    for (z, fragment) in [(0.0, vec![0; 20]), (1.0, vec![0; 2])] {
        let slice = DicomFile::slice([40, 30], z, &[]).with_pixels(RLE, Pixels::Fragment(fragment));
        slice.write(&root.join("series"), &format!("{z}"));
    }
    scans.splice(3..3, ["no-scan.nii.gz", "series", "absent.nii.gz"].map(|name| root.join(name)));
    let rows = scans.iter().enumerate().map(|(index, scan)| format!("s{index:02},{},The lungs are clear.\n", scan.display()));
    let list = root.join("list.csv");
    fs::write(&list, format!("study,path,report\n{},none.nii.gz,A report.\n", rows.collect::<String>())).unwrap();
    list
}

/// One volume at a time: a kill must find some that are not prepared.
pub fn prepare<'a>(list: &'a Path, cache: &'a Path) -> Vec<&'a str> {
    vec!["prepare", text(list), "--source", "csv", "--out", text(cache), "--config", "phantom", "--workers", "1"]
}

/// Every file of a cache.
fn files(cache: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(cache).sort_by_file_name().into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(|entry| (entry.path().strip_prefix(cache).unwrap().display().to_string(), fs::read(entry.path()).unwrap())).collect()
}

/// Fails unless two caches hold the same files, byte for byte.
#[track_caller]
pub fn assert_same_cache(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    let differing: Vec<&String> = one.iter().zip(&other).filter(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0).collect();
    assert!(differing.is_empty(), "differ: {differing:?}");
}

/// The lines of stderr that are about studies: not the progress, nor what the launcher adds.
fn about_studies(err: &str) -> Vec<&str> {
    err.lines()
        .filter(|line| !line.starts_with("srun: "))
        .filter(|line| (line.starts_with("study s") || line.starts_with('s') || line.contains("list.csv")) && line.contains(": "))
        .collect()
}

#[test]
fn two_processes_prepare_what_one_prepares_and_pass_over_the_same_studies() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let list = dataset(root.path());
    let cache = |size: usize| root.path().join(format!("cache-{size}"));
    let prepared = |size: usize| {
        let (code, out, err) = run(size, &prepare(&list, &cache(size)));
        assert_eq!(code, 3, "{err}");
        assert!(out.starts_with("16 prepared, 0 kept, 2 failed, 1 left out, 1 unreadable rows;"), "one rank speaks: {out}");
        assert_eq!(out.lines().count(), 1, "one rank speaks: {out}");
        assert!(err.contains("panicked at"), "the decoder's panic ends no rank: {err}");
        assert_eq!(err.matches("error: 3 of 18 failed").count(), 1, "{err}");
        (out.replace(text(&cache(size)), "CACHE"), about_studies(&err).join("\n"))
    };
    let (one, two, three) = (prepared(1), prepared(2), prepared(3));
    assert!(one.1.lines().count() >= 3, "{}", one.1);
    assert_eq!(one, two);
    assert_eq!(one, three);
    assert_same_cache(&cache(1), &cache(2));
    assert_same_cache(&cache(1), &cache(3));
}

#[test]
fn a_rank_that_cannot_write_its_volumes_lists_them_as_one_process_does() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (list, cache) = (dataset(root.path()), root.path().join("cache"));
    fs::create_dir_all(cache.join("volumes/s01.safetensors")).unwrap();
    let (code, out, err) = run(2, &prepare(&list, &cache));
    assert_eq!(code, 3, "{err}");
    assert!(out.starts_with("15 prepared, 0 kept, 3 failed"), "{out}");
    assert!(err.contains("s01: ") && fs::read_to_string(cache.join("prepare.csv")).unwrap().contains("s01,failed"), "{err}");
}

#[test]
fn a_cache_of_another_preparation_is_refused_before_any_volume() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (list, cache) = (dataset(root.path()), root.path().join("cache"));
    fs::create_dir(&cache).unwrap();
    fs::copy(tiny::shared().root().join("preparation.json"), cache.join("preparation.json")).unwrap();
    let other = ["--set", "volume.target_spacing_mm=[9.0, 9.0, 9.0]"];
    let (code, _, err) = run(2, &[&prepare(&list, &cache)[..], &other].concat());
    assert!(code != 0 && err.contains("the cache was prepared with other `volume` keys"), "{err}");
    assert_eq!(fs::read_dir(cache.join("volumes")).unwrap().count(), 0);
}
