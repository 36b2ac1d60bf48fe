//! What can go wrong with an adapter, and where.

use std::path::{Path, PathBuf};

/// What can go wrong with an adapter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensors(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// A key of `adapter_config.json` asks for what is not supported.
    #[error("{}: {key}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value and what would be read.
        what: String,
    },
    /// An adapter belongs to another base.
    #[error("{}: tensor {tensor}: {what}", path.display())]
    OtherBase {
        /// The adapter's folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What was expected and what was found.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Error::File { path: path.to_path_buf(), what: what.into() }
    }
}
