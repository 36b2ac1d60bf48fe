//! An interrupted run ends like an unbroken one, byte for byte.

use std::path::Path;

use ctscribe::config::Config;
use ctscribe::generate::{DecoderKind, observe};
use ctscribe::train::{BestCheckpoints, Call, Ended, RunFolder, train_language, train_report_for, train_structure_for};

use crate::tiny;

/// Fails unless `file` is the same in both folders.
pub fn same_bytes(a: &Path, b: &Path, file: &str) {
    let read = |root: &Path| std::fs::read(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    assert!(read(a) == read(b), "{file} differs");
}

fn piece_of(resume: bool, steps: u64) -> Call<'static> {
    Call { stop_after: Some(steps), ..Call::alone(resume) }
}

fn structure(config: &Config, run: &Path, pieces: &[u64]) {
    for (index, piece) in pieces.iter().enumerate() {
        train_structure_for(config, tiny::shared(), run, piece_of(index > 0, *piece)).unwrap();
    }
}

fn report(config: &Config, run: &Path, kind: DecoderKind, pieces: &[u64]) {
    for (index, piece) in pieces.iter().enumerate() {
        train_report_for(config, tiny::shared(), run, kind, piece_of(index > 0, *piece)).unwrap();
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

/// As `metrics.jsonl` has it, without what the clock and the machine say.
pub fn measured(folder: &Path) -> Vec<serde_json::Value> {
    let mut lines = RunFolder::create(folder).unwrap().metrics().unwrap();
    for line in lines.iter_mut().filter_map(|line| line.as_object_mut()) {
        line.retain(|key, _| !["seconds_a_step", "studies_per_second", "tokens_per_second", "peak_memory_mib"].contains(&key.as_str()));
    }
    lines
}

#[test]
fn a_run_that_selects_and_stops_early_resumes_to_the_same_bytes() {
    let sets = [
        "train_structure.training.steps=12",
        "train_structure.training.checkpoint_every=2",
        "train_structure.training.explode_factor=10.0",
        "train_structure.training.best={metric: queue_similarity, direction: min, keep: 2}",
        // nothing is better by a hundred: the second checkpoint after the first ends it
        "train_structure.training.early_stop={metric: validation_loss, direction: min, patience: 2, min_delta: 100.0}",
        "bert.training.checkpoint_every=2",
        "bert.training.watch={samples: 1, studies: 2}",
        "bert.training.best={metric: validation_loss, direction: max, keep: 1}",
    ];
    let config = tiny::config(&sets);
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (whole, broken) = (tiny::run(whole.path(), &config), tiny::run(broken.path(), &config));
    structure(&config, &whole, &[12]);
    structure(&config, &broken, &[1, 2, 2, 7, 7]);
    for run in [&whole, &broken] {
        train_language(&config, tiny::shared(), run, false).unwrap();
        observe(&config, tiny::shared(), run, |_| {}).unwrap();
    }
    report(&config, &whole, DecoderKind::Bert, &[6]);
    report(&config, &broken, DecoderKind::Bert, &[3, 3]);
    for file in
        ["structure/model.safetensors", "structure/best.json", "structure/finished.json", "bert/model.safetensors", "bert/best.json"]
    {
        same_bytes(&whole, &broken, file);
    }
    let ended: Ended = serde_json::from_str(&std::fs::read_to_string(whole.join("structure/finished.json")).unwrap()).unwrap();
    assert!(ended.stopped_early.is_some() && ended.steps == 6, "{ended:?}");
    for stage in ["structure", "bert"] {
        assert_eq!(measured(&whole.join(stage)), measured(&broken.join(stage)));
        let steps = |run: &Path| RunFolder::create(run.join(stage)).unwrap().checkpoint_steps();
        assert_eq!(steps(&whole), steps(&broken));
    }
    // the finished model is the best checkpoint's
    let best: BestCheckpoints = serde_json::from_str(&std::fs::read_to_string(whole.join("bert/best.json")).unwrap()).unwrap();
    let kept = RunFolder::create(whole.join("bert")).unwrap().checkpoint(best.checkpoints[0].step).unwrap().model;
    let finished = ctscribe::weights::open(&whole.join("bert/model.safetensors")).unwrap();
    assert!(best.checkpoints[0].step < 6, "the largest loss is the untrained model's");
    for (name, tensor) in kept {
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&finished[&name]), values(&tensor), "{name}");
    }
}

#[test]
fn a_run_goes_on_only_when_asked_and_only_under_its_own_numbers() {
    let (config, root) = (tiny::config(&[]), tempfile::tempdir().unwrap());
    let run = tiny::run(root.path(), &config);
    structure(&config, &run, &[2]);
    let again = train_structure_for(&config, tiny::shared(), &run, piece_of(false, 1)).unwrap_err().to_string();
    assert!(again.contains("--resume"), "{again}");
    let other = tiny::config(&["seed=8"]);
    let changed = train_structure_for(&other, tiny::shared(), &run, piece_of(true, 1)).unwrap_err().to_string();
    assert!(changed.contains("another configuration"), "{changed}");
}
