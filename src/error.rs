//! One error type. Every variant says where: file, field, study or tensor; what was expected; what was found.

use std::path::{Path, PathBuf};

/// What can go wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file was read but does not hold what it should.
    #[error("{}: {what}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// One field (header entry, column, key) of a file is wrong.
    #[error("{}: {field}: {what}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The header entry, column or key.
        field: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A tensor of a checkpoint, adapter or model does not fit.
    #[error("{source_name}: tensor {tensor}: {what}")]
    Tensor {
        /// The checkpoint or model.
        source_name: String,
        /// The tensor's name.
        tensor: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A checkpoint holds other tensors than the model: all of them, listed.
    #[error("{source_name}: {what}")]
    Weights {
        /// The checkpoint.
        source_name: String,
        /// Missing, unexpected and misshapen tensors.
        what: String,
    },
    /// All faults of a configuration at once.
    #[error("{} has {} fault(s):\n  {}", source_name, faults.len(), faults.join("\n  "))]
    Config {
        /// The preset or file.
        source_name: String,
        /// One line a fault.
        faults: Vec<String>,
    },
    /// One study cannot be used.
    #[error("study {study}: {what}")]
    Study {
        /// The study's name.
        study: String,
        /// What was expected and what was found.
        what: String,
    },
    /// A file of the Hugging Face hub cannot be had.
    #[error("{repository} (revision {revision}): {file}: {what}")]
    Hub {
        /// `owner/name`, or `datasets/owner/name`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// Where the file lies in the repository.
        file: String,
        /// What the hub answered, and what to do about it.
        what: String,
    },
    /// A request that cannot be carried out.
    #[error("{0}")]
    Invalid(String),
    /// Some inputs failed; the others were served.
    #[error("{failed} of {total} failed: {list}")]
    SomeFailed {
        /// How many failed.
        failed: usize,
        /// Of how many.
        total: usize,
        /// Their names.
        list: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensors(#[from] candle_core::Error),
    /// An adapter could not be read or does not fit.
    #[error(transparent)]
    Adapter(#[from] ctscribe_lora::Error),
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An operating-system error at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A file whose content is wrong.
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// A field of a file that is wrong.
    pub fn field(path: impl AsRef<Path>, field: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Field { path: path.as_ref().to_path_buf(), field: field.into(), what: what.into() }
    }

    /// The process's exit code: 3 if some inputs were served, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::SomeFailed { .. } => 3,
            _ => 1,
        }
    }
}

/// An error and its causes in one line; a cause that its error already tells is not told twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = next.source();
    }
    line
}
