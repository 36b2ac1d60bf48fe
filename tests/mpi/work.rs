//! Two processes do a run's whole work as one process does it.

use std::fs;
use std::path::{Path, PathBuf};

use ctscribe::config::Config;
use ctscribe::train::RunFolder;
use serde_json::Value;

use crate::launched::{mpirun_is_there, run, succeed, text};
use crate::tiny;

/// Both stages, both decoders: dropout and augmentation on, micro-batches for two, the best checkpoint taken at the end.
const SETS: [&str; 11] = [
    "train_structure.training.batch=8",
    "train_structure.training.micro_batch=2",
    "train_structure.training.checkpoint_every=2",
    "train_structure.intensity_offset=0.05",
    "llama.training.batch=8",
    "llama.training.micro_batch=2",
    "llama.training.checkpoint_every=3",
    "bert.training.batch=8",
    "bert.training.micro_batch=4",
    "bert.training.watch={samples: 1, studies: 2}",
    "bert.training.best={metric: validation_loss, direction: min, keep: 1}",
];

/// The stages of a run, in order.
const STAGES: [&[&str]; 5] = [
    &["train", "language"],
    &["train", "structure"],
    &["observe"],
    &["train", "report", "--decoder", "llama"],
    &["train", "report", "--decoder", "bert"],
];

/// A run folder in `root`, whose `stages` `size` processes go through on a device.
fn trained(root: &Path, size: usize, config: &Config, stages: &[&[&str]], device: &str) -> PathBuf {
    let run = tiny::run(&root.join(size.to_string()), config);
    let data = tiny::shared().root();
    for stage in stages {
        let said = succeed(size, &[stage, &["--data", text(data), "--run", text(&run), "--device", device][..]].concat());
        assert_eq!(said.lines().count(), 1, "one rank speaks: {said}");
    }
    run
}

/// Every file below a run but clocks: `metrics.jsonl` without what the clock and the machine say.
fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(run).sort_by_file_name().into_iter().map(Result::unwrap);
    let mut files = Vec::new();
    for entry in entries.filter(|entry| entry.file_type().is_file()) {
        let name = entry.path().strip_prefix(run).unwrap().display().to_string();
        if name.contains("tfevents") || name.ends_with("curves.svg") {
            continue;
        }
        let bytes = match &name {
            name if name.ends_with("metrics.jsonl") => measured(entry.path().parent().unwrap()),
            name if name.starts_with("observations") => tiny::contents(entry.path()),
            _ => fs::read(entry.path()).unwrap(),
        };
        files.push((name, bytes));
    }
    files
}

fn measured(stage: &Path) -> Vec<u8> {
    let mut lines = RunFolder::create(stage).unwrap().metrics().unwrap();
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        line.retain(|key, _| !["seconds_a_step", "studies_per_second", "tokens_per_second", "peak_memory_mib"].contains(&key.as_str()));
    }
    serde_json::to_vec(&lines).unwrap()
}

/// Fails unless two runs hold the same files, byte for byte.
#[track_caller]
pub fn assert_same_files(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&one), names(&other));
    let differing: Vec<&String> = one.iter().zip(&other).filter(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0).collect();
    assert!(differing.is_empty(), "differ: {differing:?}");
}

#[test]
fn two_processes_train_observe_and_write_what_one_does() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let [one, two] = [1, 2].map(|size| trained(root.path(), size, &tiny::config(&SETS), &STAGES, "cpu"));
    assert!(files(&one).iter().filter(|(name, _)| name.contains("checkpoints/")).count() > 10);
    assert_same_files(&one, &two);
    scores_are_the_same(&one, &two);
    scans_get_the_same_reports(root.path(), &one);
}

/// Sums go over NCCL there. `scripts/check-cuda run` has a driver that shows two devices; where none are, the ranks have nothing to run on.
#[cfg(feature = "nccl")]
#[test]
fn two_processes_on_two_devices_train_what_one_does_on_one() {
    if !mpirun_is_there() || !ctscribe::ranks::Nccl::has_gpu(1) {
        eprintln!("skipped: two ranks need mpirun and two CUDA devices");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let few = ["train_structure.training.steps=2", "language.training.steps=2", "llama.training.steps=2", "language.model.head_dim=32"];
    let config = tiny::config(&[&SETS[..], &few].concat());
    let [one, two] = [1, 2].map(|size| trained(root.path(), size, &config, &STAGES[..4], "cuda:0"));
    assert_same_files(&one, &two);
}

/// Scores without the time and memory that writing took.
fn scores_are_the_same(one: &Path, two: &Path) {
    let data = tiny::shared().root();
    let scored = |size: usize, run: &Path, visual: &str| -> Value {
        let said = succeed(size, &["evaluate", "--data", text(data), "--run", text(run), "--visual", visual, "--json"]);
        let mut value: Value = serde_json::from_str(&said).unwrap();
        let keys = if visual == "own" { &mut value } else { &mut value["evaluation"] };
        keys.as_object_mut().unwrap().remove("writing").unwrap();
        value
    };
    for visual in ["own", "shuffle"] {
        assert_eq!(scored(1, one, visual), scored(2, two, visual), "{visual}");
    }
    let reports = |run: &Path| fs::read(run.join("llama/reports/test-shuffled.jsonl")).unwrap();
    assert!(reports(one) == reports(two));
}

/// Three scans over two processes, one of them no scan: printed in order, the same files, the same exit code.
fn scans_get_the_same_reports(root: &Path, run_folder: &Path) {
    let dataset = tiny::shared().root().parent().unwrap().join("dataset/dataset/valid_fixed");
    let found = walkdir::WalkDir::new(dataset).sort_by_file_name().into_iter().flatten().map(|entry| entry.into_path());
    let mut scans: Vec<PathBuf> = found.filter(|path| path.to_string_lossy().ends_with(".nii.gz")).take(3).collect();
    let broken = root.join("broken.nii.gz");
    fs::write(&broken, b"no scan").unwrap();
    scans.insert(1, broken);
    let generated = |size: usize| {
        let out = root.join(format!("reports-{size}"));
        let arguments: Vec<&str> = scans.iter().map(|scan| text(scan)).collect();
        let (code, printed, err) = run(size, &[&["generate", "--run", text(run_folder), "--out", text(&out)], &arguments[..]].concat());
        assert_eq!(code, 3, "{err}");
        assert!(err.contains("1 of 4 failed") && err.contains("broken.nii.gz"), "{err}");
        let mut texts: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
        texts.sort();
        let texts: Vec<_> = texts.iter().filter(|path| path.extension().is_some_and(|ending| ending == "txt")).collect();
        (printed, texts.into_iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>())
    };
    let (one, two) = (generated(1), generated(2));
    assert!(one.1.len() == 3 && one.0.matches("# ").count() == 3, "{}", one.0);
    assert_eq!(one, two);
}

#[test]
fn what_ranks_do_not_share_is_refused() {
    if !mpirun_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let (code, _, err) = run(2, &["demo", "--quick", "--out", text(&out)]);
    assert!(code != 0 && err.contains("only prepare, train, observe, generate and evaluate share their work"), "{err}");
    let (code, _, err) = run(2, &["fetch", "--config", "phantom", "--out", text(&out)]);
    assert!(code != 0 && err.contains("fetch keeps to one disk budget and brings several volumes at once (--workers)"), "{err}");
    assert!(!out.exists());
}

#[test]
fn a_batch_of_too_few_micro_batches_is_refused_before_the_first_step() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let run_folder = tiny::run(root.path(), &tiny::config(&["train_structure.training.micro_batch=8"]));
    let (code, _, err) = run(2, &["train", "structure", "--data", text(tiny::shared().root()), "--run", text(&run_folder)]);
    assert!(code != 0 && err.contains("is 1 piece(s) of work, too few for 2 ranks"), "{err}");
    assert!(!run_folder.join("structure/checkpoints").exists());
}
