//! An interrupted run ends like an unbroken one, byte for byte.

use std::path::Path;

use ctscribe::config::Config;
use ctscribe::generate::{DecoderKind, observe};
use ctscribe::train::{train_language, train_report_for, train_structure_for};

use crate::tiny;

fn same_bytes(a: &Path, b: &Path, file: &str) {
    let read = |root: &Path| std::fs::read(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    assert!(read(a) == read(b), "{file} differs");
}

fn structure(config: &Config, run: &Path, pieces: &[u64]) {
    for (index, piece) in pieces.iter().enumerate() {
        train_structure_for(config, tiny::shared(), run, index > 0, Some(*piece)).unwrap();
    }
}

fn report(config: &Config, run: &Path, kind: DecoderKind, pieces: &[u64]) {
    for (index, piece) in pieces.iter().enumerate() {
        train_report_for(config, tiny::shared(), run, kind, index > 0, Some(*piece)).unwrap();
    }
}

#[test]
fn both_stages_and_both_decoders_resume_to_the_same_bytes() {
    let config = tiny::config(&["train_structure.training.keep_checkpoints=2"]);
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (whole, broken) = (tiny::run(whole.path(), &config), tiny::run(broken.path(), &config));
    structure(&config, &whole, &[6]);
    structure(&config, &broken, &[1, 3, 2]);
    same_bytes(&whole, &broken, "structure/model.safetensors");
    same_bytes(&whole, &broken, "structure/checkpoints/00000006/optimizer.safetensors");
    for run in [&whole, &broken] {
        train_language(&config, tiny::shared(), run, false).unwrap();
        observe(&config, tiny::shared(), run, |_| {}).unwrap();
    }
    same_bytes(&whole, &broken, "language/model.safetensors");
    for (kind, files) in [
        (DecoderKind::Llama, ["llama/adapter/projector.safetensors", "llama/adapter/adapter_model.safetensors"]),
        (DecoderKind::Bert, ["bert/model.safetensors", "bert/checkpoints/00000006/optimizer.safetensors"]),
    ] {
        report(&config, &whole, kind, &[6]);
        report(&config, &broken, kind, &[2, 4]);
        files.iter().for_each(|file| same_bytes(&whole, &broken, file));
    }
}

#[test]
fn a_run_goes_on_only_when_asked_and_only_under_its_own_numbers() {
    let (config, root) = (tiny::config(&[]), tempfile::tempdir().unwrap());
    let run = tiny::run(root.path(), &config);
    structure(&config, &run, &[2]);
    let again = train_structure_for(&config, tiny::shared(), &run, false, Some(1)).unwrap_err().to_string();
    assert!(again.contains("--resume"), "{again}");
    let other = tiny::config(&["seed=8"]);
    let changed = train_structure_for(&other, tiny::shared(), &run, true, Some(1)).unwrap_err().to_string();
    assert!(changed.contains("another configuration"), "{changed}");
}
