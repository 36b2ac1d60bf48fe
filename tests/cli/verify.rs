//! Killed runs resume byte for byte; a checkpoint that cannot be written loses no earlier one.

use std::fs;
use std::process::Command;

use ctscribe::config::Config;
use ctscribe::data::Cache;
use ctscribe::train::{Call, RunFolder, train_structure_for};
use serde_json::Value;

use crate::trained::{run, succeed, text, trained};

#[test]
fn runs_killed_at_random_moments_end_like_unbroken_ones() {
    let (data, run_folder) = (trained().path("cache"), trained().path("run"));
    for stage in ["structure", "llama"] {
        let out = succeed(&[
            "verify",
            "resume",
            "--data",
            text(&data),
            "--run",
            text(&run_folder),
            "--stage",
            stage,
            "--steps",
            "8",
            "--kills",
            "3",
            "--json",
        ]);
        let verdict: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(verdict["kills"], 3);
        let equal: Vec<&str> = verdict["equal"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(equal.contains(&"metrics.jsonl") && equal.contains(&"checkpoints/00000008/optimizer.safetensors"), "{equal:?}");
    }
}

/// Where no file may grow past a limit, as on a full disk: small enough for metrics and curves, too small for tensors.
fn on_a_full_disk(arguments: &[&str]) -> (bool, String) {
    let command = "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\"";
    let output = Command::new("bash").args(["-c", command, env!("CARGO_BIN_EXE_ctscribe")]).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn on_a_full_disk_no_earlier_checkpoint_and_no_finished_model_is_lost() {
    let (root, data) = (tempfile::tempdir().unwrap(), trained().path("cache"));
    let sets = ["train_structure.training.steps=4", "train_structure.training.batch=4", "train_structure.training.checkpoint_every=1"];
    let config = Config::load("phantom", &sets.map(String::from)).unwrap();
    let cache = Cache::open(&data).unwrap();
    let begun = |name: &str| {
        let run_folder = root.path().join(name);
        fs::create_dir_all(&run_folder).unwrap();
        fs::write(run_folder.join("config.yaml"), config.to_yaml().unwrap()).unwrap();
        train_structure_for(&config, &cache, &run_folder, Call { stop_after: Some(2), ..Call::alone(false) }).unwrap();
        run_folder
    };
    let (whole, broken) = (begun("whole"), begun("broken"));
    let resume =
        |folder: &std::path::Path| ["train", "structure", "--data", text(&data), "--run", text(folder), "--resume"].map(String::from);
    let arguments = resume(&broken);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (succeeded, said) = on_a_full_disk(&arguments);
    assert!(!succeeded && said.contains("checkpoints"), "{said}");
    assert_eq!(RunFolder::create(broken.join("structure")).unwrap().latest_checkpoint().unwrap().unwrap().state.step, 2);
    for folder in [&whole, &broken] {
        succeed(&resume(folder).iter().map(String::as_str).collect::<Vec<_>>());
    }
    let model = |folder: &std::path::Path| fs::read(folder.join("structure/model.safetensors")).unwrap();
    assert!(model(&whole) == model(&broken), "the run that met a full disk ended otherwise");
    // the finished model is written again and cannot be: the old one stays
    assert!(!on_a_full_disk(&arguments).0);
    assert!(model(&whole) == model(&broken), "the finished model was touched");
}

#[test]
fn a_run_folder_that_cannot_be_written_is_named() {
    let (root, data) = (tempfile::tempdir().unwrap(), trained().path("cache"));
    let run_folder = root.path().join("run");
    fs::create_dir_all(run_folder.join("structure")).unwrap();
    // a file where the checkpoints' folder should be: not even root can write below it
    fs::write(run_folder.join("structure/checkpoints"), "").unwrap();
    let sets = ["--set", "train_structure.training.steps=1", "--set", "train_structure.training.batch=4"];
    let arguments = [&["train", "structure", "--data", text(&data), "--run", text(&run_folder), "--config", "phantom"], &sets[..]].concat();
    let (code, _, err) = run(&arguments);
    assert!(code == 1 && err.contains("structure/checkpoints"), "{err}");
}
