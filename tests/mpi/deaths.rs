//! A rank that dies ends the run within seconds; what it had learned goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ctscribe::data::Split;
use ctscribe::train::Order;
use ctscribe::volume::{Volume, write_nifti};

use crate::launched::{launch, mpirun_is_there, process_of, run, succeed, text, told_of_a_kill};
use crate::preparing::{assert_same_cache, prepare};
use crate::tiny;
use crate::work::assert_same_files;

const STEPS: &str = "train_structure.training.steps=60";
const SETS: [&str; 5] = [
    STEPS,
    "train_structure.training.batch=8",
    "train_structure.training.micro_batch=2",
    "train_structure.training.checkpoint_every=5",
    "train_structure.training.keep_checkpoints=2",
];

/// Kills one rank of `command` when there is what `come` asks for; what the others said as they ended, within seconds.
fn kill_when(come: impl Fn() -> bool, mut command: Command, log: &Path, rank: usize) -> String {
    let mut launcher = command.stdout(Stdio::null()).stderr(fs::File::create(log).unwrap()).spawn().unwrap();
    let begun = Instant::now();
    while !come() {
        assert!(launcher.try_wait().unwrap().is_none(), "ended on its own: {}", fs::read_to_string(log).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(120), "what the kill waits for did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = process_of(&command, rank).expect("the rank runs");
    assert!(Command::new("kill").args(["-9", &process.to_string()]).status().unwrap().success());
    let killed = Instant::now();
    let status = loop {
        match launcher.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
        assert!(killed.elapsed() < Duration::from_secs(20), "the other rank goes on");
    };
    assert!(!status.success());
    let said = fs::read_to_string(log).unwrap();
    fs::remove_file(log).unwrap();
    said
}

/// Trains until there is a checkpoint, kills one rank; what the others said as they ended.
fn train_and_kill(data: &Path, run_folder: &Path, rank: usize) -> String {
    let log = run_folder.join("killed.log");
    let mut command = launch(2);
    command.args(["train", "structure", "--data", text(data), "--run", text(run_folder), "--resume"]);
    let checkpoints = || fs::read_dir(run_folder.join("structure/checkpoints")).map_or(0, |entries| entries.flatten().count());
    let before = checkpoints();
    kill_when(|| checkpoints() > before.min(1), command, &log, rank)
}

#[test]
fn a_killed_rank_ends_the_run_and_the_resumed_run_ends_like_an_unbroken_one() {
    if !mpirun_is_there() {
        return;
    }
    let (root, data) = (tempfile::tempdir().unwrap(), tiny::shared().root());
    let config = tiny::config(&SETS);
    let (whole, broken) = (tiny::run(&root.path().join("whole"), &config), tiny::run(&root.path().join("broken"), &config));
    succeed(1, &["train", "structure", "--data", text(data), "--run", text(&whole)]);
    for rank in [1, 0] {
        let said = train_and_kill(data, &broken, rank);
        assert!(said.contains(told_of_a_kill()), "{said}");
        assert!(said.contains(&format!("rank {} of 2 was told to end", 1 - rank)) && said.contains("--resume"), "{said}");
    }
    succeed(2, &["train", "structure", "--data", text(data), "--run", text(&broken), "--resume"]);
    assert_same_files(&whole, &broken);
}

/// A list of 96 studies of one scan: so many that a kill finds some that are not prepared.
fn slow_studies(root: &Path) -> PathBuf {
    let (shape, spacing_mm) = ([160, 256, 256], [1.5, 1.3, 1.3]);
    let values: Vec<i16> =
        (0..shape.iter().product()).map(|at: usize| [-1000, -850, -100, 45, 300][at / 64 % 5] + (at % 7) as i16).collect();
    write_nifti(&root.join("scan.nii.gz"), &values, shape, spacing_mm, &Volume::lps_affine(spacing_mm, [0.0; 3])).unwrap();
    let rows: String = (0..96).map(|index| format!("s{index:02},scan.nii.gz,The lungs are clear.\n")).collect();
    let list = root.join("slow.csv");
    fs::write(&list, format!("study,path,report\n{rows}")).unwrap();
    list
}

#[test]
fn a_killed_rank_ends_preparation_and_a_second_call_keeps_what_was_prepared() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (data, whole, broken) = (slow_studies(root.path()), root.path().join("whole"), root.path().join("broken"));
    let volumes = |cache: &Path| {
        let entries = fs::read_dir(cache.join("volumes")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".safetensors")).count()
    };
    succeed(1, &prepare(&data, &whole));
    for rank in [1, 0] {
        let mut command = launch(2);
        command.args(prepare(&data, &broken));
        let before = volumes(&broken);
        let said = kill_when(|| volumes(&broken) > before, command, &root.path().join("killed.log"), rank);
        assert!(said.contains(told_of_a_kill()) && said.contains(&format!("rank {} of 2 was told to end", 1 - rank)), "{said}");
        assert!(said.contains("the same command goes on from what is written"), "{said}");
        assert!(!broken.join("studies.jsonl").exists(), "a cache that is not whole cannot be opened");
    }
    let before = volumes(&broken);
    assert!((2..volumes(&whole)).contains(&before), "{before}");
    let said = succeed(2, &prepare(&data, &broken));
    assert!(said.contains(&format!("{} prepared, {before} kept", volumes(&whole) - before)), "{said}");
    // what was kept is called so in prepare.csv, as in a second call of one process
    for cache in [&whole, &broken] {
        succeed(1, &prepare(&data, cache));
    }
    assert_same_cache(&whole, &broken);
}

#[test]
fn an_error_of_one_rank_is_told_once_and_ends_the_others() {
    if !mpirun_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let run_folder = tiny::run(root.path(), &tiny::config(&SETS));
    let data = root.path().join("cache");
    copy(tiny::shared().root(), &data);
    // the last study of the first batch is the second rank's
    let studies = tiny::shared().split(Split::Train);
    let lost = &studies[Order::new(studies.len(), tiny::config(&SETS).seed).batch(0, 8)[7]].name;
    fs::remove_file(data.join("volumes").join(format!("{lost}.safetensors"))).unwrap();
    let begun = Instant::now();
    let (code, _, err) = run(2, &["train", "structure", "--data", text(&data), "--run", text(&run_folder)]);
    assert!(code != 0 && begun.elapsed() < Duration::from_secs(60));
    assert!(err.contains("error: rank 1 of 2: ") && err.contains(lost.as_str()), "{err}");
    assert!(!err.contains("error: rank 0 of 2: "), "{err}");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}
