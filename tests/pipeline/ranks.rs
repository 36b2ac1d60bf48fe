//! Several ranks learn what one process learns of the same batches, byte for byte, and give the same reports.

use std::path::Path;

use ctscribe::assess::{Question, evaluate_run_shared};
use ctscribe::config::Config;
use ctscribe::data::{Split, Subset};
use ctscribe::evaluate::Instruments;
use ctscribe::generate::{DecoderKind, Visual, observe_shared};
use ctscribe::ranks::{Alone, Communicator};
use ctscribe::train::{Call, RunFolder, train_language_for, train_report_for, train_structure_for};

use crate::resume::{measured, same_bytes};
use crate::tiny;
use crate::together::together;

/// Pieces enough for four ranks, dropout and augmentation on, checkpoints in between.
const SETS: [&str; 13] = [
    "train_structure.training.batch=8",
    "train_structure.training.micro_batch=2",
    "train_structure.training.checkpoint_every=3",
    "train_structure.intensity_offset=0.05",
    "llama.training.batch=8",
    "llama.training.micro_batch=2",
    "llama.training.checkpoint_every=3",
    "bert.training.batch=8",
    "bert.training.micro_batch=2",
    "bert.training.checkpoint_every=3",
    "bert.training.watch={samples: 1, studies: 2}",
    "bert.training.best={metric: validation_loss, direction: min, keep: 1}",
    "language.training.micro_batch=8",
];

fn config(more: &[&str]) -> Config {
    tiny::config(&SETS.iter().chain(more).copied().collect::<Vec<_>>())
}

/// The whole job of a run; in `pieces` of so many steps.
fn work(config: &Config, run: &Path, pieces: &[u64], ranks: &dyn Communicator) {
    let cache = tiny::shared();
    train_language_for(config, cache, run, Call { resume: false, stop_after: None, ranks }).unwrap();
    let calls = || pieces.iter().enumerate().map(|(index, piece)| Call { resume: index > 0, stop_after: Some(*piece), ranks });
    calls().for_each(|call| drop(train_structure_for(config, cache, run, call).unwrap()));
    let observed = observe_shared(config, cache, run, ranks, |_| {}).unwrap();
    assert_eq!((observed.observed, observed.failed.len()), (cache.studies.len(), 0));
    for kind in [DecoderKind::Llama, DecoderKind::Bert] {
        calls().for_each(|call| drop(train_report_for(config, cache, run, kind, call).unwrap()));
        let question = Question { split: Subset::Split(Split::Test), visual: Visual::Own, limit: None };
        evaluate_run_shared((config, cache, run), kind, question, (&Instruments::default(), ranks), &mut |_| {}).unwrap();
    }
}

const FILES: [&str; 10] = [
    "language/model.safetensors",
    "language/tokenizer.json",
    "structure/model.safetensors",
    "structure/checkpoints/00000006/optimizer.safetensors",
    "llama/adapter/adapter_model.safetensors",
    "llama/checkpoints/00000006/optimizer.safetensors",
    "bert/model.safetensors",
    "bert/best.json",
    "llama/reports/test.jsonl",
    "bert/reports/test.jsonl",
];

#[track_caller]
fn assert_same_run(one: &Path, other: &Path) {
    FILES.iter().for_each(|file| same_bytes(one, other, file));
    for study in &tiny::shared().studies {
        let file = format!("observations/{}.safetensors", study.name);
        assert!(tiny::contents(&one.join(&file)) == tiny::contents(&other.join(&file)), "{file} differs");
    }
    for stage in ["structure", "llama", "bert"] {
        assert_eq!(measured(&one.join(stage)), measured(&other.join(stage)), "{stage}");
        let steps = |run: &Path| RunFolder::create(run.join(stage)).unwrap().checkpoint_steps();
        assert_eq!(steps(one), steps(other));
    }
}

#[test]
fn ranks_learn_what_one_process_learns_of_the_same_batches() {
    // three ranks have shares of 1, 1 and 2 of the 4 micro-batches
    let config = config(&[]);
    let root = tempfile::tempdir().unwrap();
    let folder = |name: &str| tiny::run(&root.path().join(name), &config);
    let one = folder("one");
    work(&config, &one, &[6], &Alone);
    for size in [2, 3, 4] {
        let run = folder(&size.to_string());
        together(size, |ranks| work(&config, &run, &[4, 2], ranks));
        assert_same_run(&one, &run);
    }
}
