//! Killed runs resume byte for byte; a checkpoint that cannot be written loses no earlier one.

use std::fs;
use std::process::Command;

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

/// Where no file may grow past a limit, as on a full disk.
#[test]
fn a_checkpoint_that_cannot_be_written_is_an_error_and_the_earlier_one_stays() {
    let (root, data) = (tempfile::tempdir().unwrap(), trained().path("cache"));
    let run_folder = root.path().join("run");
    let steps = |steps: u64| format!("train_structure.training.steps={steps}");
    let arguments = |resume: bool| {
        let mut all =
            vec!["train".to_string(), "structure".into(), "--data".into(), text(&data).into(), "--run".into(), text(&run_folder).into()];
        if resume {
            all.push("--resume".into());
        } else {
            let sets = [steps(4), "train_structure.training.batch=4".into(), "train_structure.training.checkpoint_every=1".into()];
            all.extend(["--config".to_string(), "phantom".into()]);
            all.extend(sets.into_iter().flat_map(|set| ["--set".to_string(), set]));
        }
        all
    };
    let limited = |blocks: usize, resume: bool| {
        let command = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        Command::new("bash").args(["-c", &command, env!("CARGO_BIN_EXE_ctscribe")]).args(arguments(resume)).output().unwrap()
    };
    // small enough for the configuration and the metrics, too small for the tensors
    let output = limited(300, false);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("checkpoints"), "{said}");
    assert!(
        fs::read_dir(run_folder.join("structure/checkpoints"))
            .unwrap()
            .flatten()
            .all(|entry| entry.file_name().to_string_lossy().starts_with('.'))
    );
    let (code, _, err) = run(&arguments(true).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 0, "{err}");
    let whole = fs::read(run_folder.join("structure/model.safetensors")).unwrap();
    // the run is finished: nothing is left to write but the same model, and a failure to write it leaves the old one
    let output = limited(300, true);
    assert!(!output.status.success());
    assert!(fs::read(run_folder.join("structure/model.safetensors")).unwrap() == whole, "the finished model was touched");
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
