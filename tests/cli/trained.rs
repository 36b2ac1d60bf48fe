//! A tiny run, trained once by the binary itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// Everything small: the commands are under test, not what is learned.
const SETS: [&str; 15] = [
    "train_structure.training.steps=2",
    "train_structure.training.batch=4",
    "language.model.hidden_size=32",
    "language.model.intermediate_size=64",
    "language.model.num_hidden_layers=1",
    "language.model.num_attention_heads=2",
    "language.model.num_key_value_heads=2",
    "language.model.head_dim=16",
    "language.training.steps=2",
    "llama.training.steps=2",
    "bert.training.steps=2",
    "bert.model.num_hidden_layers=1",
    "llama.generation.max_new_tokens=16",
    "bert.generation.max_new_tokens=16",
    "seed=5",
];

/// A trained run with its dataset and cache.
pub struct Trained {
    root: TempDir,
}

impl Trained {
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The first held-out volume.
    pub fn scan(&self) -> PathBuf {
        let files = walkdir::WalkDir::new(self.path("data/dataset/valid_fixed")).sort_by_file_name().into_iter().flatten();
        files.map(|entry| entry.path().to_path_buf()).find(|path| path.to_string_lossy().ends_with("_1.nii.gz")).unwrap()
    }
}

/// The program.
pub fn ctscribe() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ctscribe"))
}

/// Runs the program; its exit code, stdout and stderr.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = ctscribe().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
pub fn succeed(arguments: &[&str]) -> String {
    let (code, out, err) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}\n{out}\n{err}");
    out
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let trained = Trained { root: tempfile::tempdir().unwrap() };
        let (data, cache, run) = (trained.path("data"), trained.path("cache"), trained.path("run"));
        let (data, cache, run) = (text(&data), text(&cache), text(&run));
        succeed(&["phantom", "--out", data, "--train", "8", "--valid", "3"]);
        let mut first = vec!["prepare", data, "--out", cache, "--config", "phantom"];
        first.extend(["--set", "seed=5"]);
        succeed(&first);
        let sets: Vec<&str> = SETS.iter().flat_map(|set| ["--set", set]).collect();
        let mut structure = vec!["train", "structure", "--data", cache, "--run", run, "--config", "phantom"];
        structure.extend(&sets);
        succeed(&structure);
        succeed(&["train", "language", "--data", cache, "--run", run]);
        succeed(&["observe", "--data", cache, "--run", run]);
        succeed(&["train", "report", "--decoder", "llama", "--data", cache, "--run", run]);
        succeed(&["train", "report", "--decoder", "bert", "--data", cache, "--run", run]);
        trained
    })
}
