//! A tiny run up to where stage two begins.

use std::path::PathBuf;

use ctscribe::config::Config;
use ctscribe::generate::observe;
use ctscribe::train::{train_language, train_structure};

use crate::tiny;

/// A run whose studies are observed, with a language model, and the folder that it lies in.
pub fn run(config: &Config) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let run = tiny::run(root.path(), config);
    train_structure(config, tiny::shared(), &run, false).unwrap();
    train_language(config, tiny::shared(), &run, false).unwrap();
    observe(config, tiny::shared(), &run, |_| {}).unwrap();
    (root, run)
}
