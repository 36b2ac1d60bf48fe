//! What is frozen is the same file after training.

use std::collections::BTreeMap;
use std::path::Path;

use ctscribe::generate::{DecoderKind, MODEL, observe};
use ctscribe::train::{train_language, train_report, train_structure};
use sha2::{Digest, Sha256};

use crate::tiny;

/// SHA-256 of what training adapters reads.
fn hashes(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = ["language/model.safetensors", "language/config.json", "language/tokenizer.json", MODEL];
    files.iter().map(|file| (file.to_string(), Sha256::digest(std::fs::read(run.join(file)).unwrap()).to_vec())).collect()
}

#[test]
fn the_base_and_stage_one_are_the_same_files_after_adapters_were_trained() {
    let config = tiny::config(&["train_structure.training.steps=1", "llama.training.recompute=true"]);
    let root = tempfile::tempdir().unwrap();
    let run = tiny::run(root.path(), &config);
    train_structure(&config, tiny::shared(), &run, false).unwrap();
    train_language(&config, tiny::shared(), &run, false).unwrap();
    observe(&config, tiny::shared(), &run, |_| {}).unwrap();
    let before = hashes(&run);
    train_report(&config, tiny::shared(), &run, DecoderKind::Llama, false).unwrap();
    assert_eq!(hashes(&run), before);
}
