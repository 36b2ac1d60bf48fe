//! A rank that dies ends the run within seconds; what it had learned goes on.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ctscribe::data::Split;
use ctscribe::train::Order;

use crate::launched::{launch, mpirun_is_there, run, succeed, text};
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

/// The process of rank `rank` below `mpirun`.
fn process_of(mpirun: &Child, rank: usize) -> Option<u32> {
    let id = mpirun.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    let told = format!("OMPI_COMM_WORLD_RANK={rank}");
    let is_rank = |process: &u32| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == told.as_bytes())
    };
    children.split_whitespace().filter_map(|id| id.parse().ok()).find(is_rank)
}

/// Trains until there is a checkpoint, kills one rank; what the others said as they ended.
fn train_and_kill(data: &Path, run_folder: &Path, rank: usize) -> String {
    let log = run_folder.join("killed.log");
    let mut command = launch(2);
    command.args(["train", "structure", "--data", text(data), "--run", text(run_folder), "--resume"]);
    let mut mpirun = command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let checkpoints = || fs::read_dir(run_folder.join("structure/checkpoints")).map_or(0, |entries| entries.flatten().count());
    let (begun, before) = (Instant::now(), checkpoints());
    while checkpoints() <= before.min(1) {
        assert!(mpirun.try_wait().unwrap().is_none(), "ended on its own: {}", fs::read_to_string(&log).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = process_of(&mpirun, rank).expect("the rank runs");
    assert!(Command::new("kill").args(["-9", &process.to_string()]).status().unwrap().success());
    let killed = Instant::now();
    let status = loop {
        match mpirun.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
        assert!(killed.elapsed() < Duration::from_secs(20), "the other rank goes on");
    };
    assert!(!status.success());
    let said = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    said
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
        assert!(said.contains("signal 9 (Killed)"), "{said}");
        assert!(said.contains(&format!("rank {} of 2 was told to end", 1 - rank)) && said.contains("--resume"), "{said}");
    }
    succeed(2, &["train", "structure", "--data", text(data), "--run", text(&broken), "--resume"]);
    assert_same_files(&whole, &broken);
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
