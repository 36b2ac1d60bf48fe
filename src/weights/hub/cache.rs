//! The cache that Hugging Face's tools share: blobs by hash, a snapshot a commit that links to them, refs from branches to commits.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use crate::weights::write_aside;
use crate::{Error, Result};

use super::{Remote, incomplete};

/// One repository's folder in the cache.
#[derive(Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// `models--OWNER--NAME`; `datasets--OWNER--NAME` for `datasets/OWNER/NAME`.
    pub(super) fn new(cache: &Path, repository: &str) -> Self {
        let typed = if repository.starts_with("datasets/") { repository.to_string() } else { format!("models/{repository}") };
        let name = typed.replace('/', "--");
        RepoCache { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The content of a hash.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The part of a blob that is here.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        incomplete(&self.blob(etag))
    }

    /// Held while a blob is fetched, against another process that fetches the same; Python's tools take the same lock.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        for folder in [&self.locks, &self.root.join("blobs")] {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        file.lock().map_err(|e| Error::io(&path, e))?;
        Ok(file)
    }

    /// The file at a revision: a branch by its ref, or a commit.
    pub(super) fn find(&self, revision: &str, path: &str) -> Option<PathBuf> {
        let named = fs::read_to_string(self.reference(revision)).ok().map(|commit| commit.trim().to_string());
        let file = self.snapshot(&named.unwrap_or_else(|| revision.to_string()), path);
        file.is_file().then_some(file)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision)
    }

    fn snapshot(&self, commit: &str, path: &str) -> PathBuf {
        self.root.join("snapshots").join(commit).join(path)
    }

    /// Notes which commit a branch is at, and links the blob into the commit's snapshot.
    pub(super) fn link(&self, remote: &Remote, revision: &str, path: &str) -> Result<PathBuf> {
        if revision != remote.commit {
            let reference = self.reference(revision);
            create_parent(&reference)?;
            write_aside(&reference, remote.commit.as_bytes())?;
        }
        let (blob, file) = (self.blob(&remote.etag), self.snapshot(&remote.commit, path));
        if file.is_file() {
            return Ok(file);
        }
        create_parent(&file)?;
        let up: PathBuf = Path::new(path).components().map(|_| Component::ParentDir).chain([Component::ParentDir]).collect();
        match symlink(&up.join("blobs").join(&remote.etag), &file) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::file(&file, "a link without its blob: the cache is damaged; delete it and fetch again"));
            }
            // file systems without links: the file itself lies in the snapshot, as Python's tools do
            Err(_) => fs::copy(&blob, &file).map(|_| ()).map_err(|e| Error::io(&file, e))?,
        }
        Ok(file)
    }
}

fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))
}

/// A symbolic link at `link` to `target`.
#[cfg(unix)]
pub(crate) fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// A symbolic link at `link` to `target`.
#[cfg(windows)]
pub(crate) fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}
