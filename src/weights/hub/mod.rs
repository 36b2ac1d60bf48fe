//! The Hugging Face hub, spoken to thinly: one file of one repository at a time, into the cache that Hugging Face's own tools share.
//!
//! `hf-hub` 0.5 resumes but verifies nothing, reports a refusal without saying what to do and knows no Retry-After; 1.0 brings an asynchronous
//! runtime and some 190 crates. The protocol is four headers and a range, so it is written here over a blocking client.

mod cache;
mod client;
mod download;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

use cache::RepoCache;
pub(super) use cache::symlink;
use client::Client;

pub use settings::{HubSettings, Token};

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// `owner/name`, or `datasets/owner/name`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Where it lies in the repository.
    pub path: String,
}

/// What the hub says of a file before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The commit that the revision stands for.
    pub commit: String,
    /// SHA-256 of a large file, git's blob id of a small one.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

/// Bytes that are here, and bytes in all.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64);

/// A hub and the local cache of its files.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    settings: HubSettings,
}

impl HubFile {
    /// An error about this file.
    pub(crate) fn error(&self, what: impl Into<String>) -> Error {
        let HubFile { repository, revision, path } = self.clone();
        Error::Hub { repository, revision, file: path, what: what.into() }
    }
}

impl Hub {
    /// As the environment says ([`HubSettings::from_env`]).
    pub fn from_env() -> Result<Self> {
        Hub::new(HubSettings::from_env()?)
    }

    /// With these settings.
    pub fn new(settings: HubSettings) -> Result<Self> {
        Ok(Hub { client: Client::new(&settings)?, settings })
    }

    /// Whether nothing may be asked of the network.
    pub fn offline(&self) -> bool {
        self.settings.offline
    }

    /// The file in the cache, without a word to the network; `None` where it is not.
    pub fn cached(&self, file: &HubFile) -> Option<PathBuf> {
        self.cache(file).find(&file.revision, &file.path)
    }

    /// The file in the cache; fetched, verified and linked there first where it is not. `sha256`: what it must be, where that is known.
    ///
    /// Without a network a cached file serves, with a word on stderr; in offline mode nothing is asked.
    pub fn fetch(&self, file: &HubFile, sha256: Option<&str>, watch: Watch) -> Result<PathBuf> {
        if self.offline() {
            return self.cached(file).ok_or_else(|| file.error(self.absent_offline()));
        }
        let remote = match self.client.describe(file) {
            Ok(remote) => remote,
            Err(client::Refusal::Unreachable(why)) => {
                let cached = self.cached(file).ok_or_else(|| file.error(why.as_str()))?;
                eprintln!("{}: {}: the cached file is used: {why}", file.repository, file.path);
                return Ok(cached);
            }
            Err(refusal) => return Err(file.error(refusal.to_string())),
        };
        self.bring(file, &remote, sha256, watch)
    }

    fn absent_offline(&self) -> String {
        format!("HF_HUB_OFFLINE is set and the file is not in the cache {}; fetch it once with the network", self.settings.cache.display())
    }

    /// Into the cache, unless it is there.
    fn bring(&self, file: &HubFile, remote: &Remote, sha256: Option<&str>, watch: Watch) -> Result<PathBuf> {
        let cache = self.cache(file);
        let blob = cache.blob(&remote.etag);
        let _lock = cache.lock(&remote.etag)?;
        if !blob.is_file() {
            let partial = cache.partial(&remote.etag);
            self.client.download(file, remote, sha256, &partial, watch)?;
            fs::rename(&partial, &blob).map_err(|e| Error::io(&blob, e))?;
        }
        cache.link(remote, &file.revision, &file.path)
    }

    /// What the hub says of a file; `None`: there is no such file in the repository.
    pub fn find(&self, file: &HubFile) -> Result<Option<Remote>> {
        if self.offline() {
            return Err(file.error("HF_HUB_OFFLINE is set"));
        }
        match self.client.describe(file) {
            Ok(remote) => Ok(Some(remote)),
            Err(client::Refusal::Absent(_)) => Ok(None),
            Err(refusal) => Err(file.error(refusal.to_string())),
        }
    }

    /// A file that was found to `to`, past the cache: for what is deleted after use. What an interrupted call left beside it is gone on with.
    pub fn download(&self, file: &HubFile, remote: &Remote, to: &Path, watch: Watch) -> Result<()> {
        let partial = incomplete(to);
        self.client.download(file, remote, None, &partial, watch)?;
        fs::rename(&partial, to).map_err(|e| Error::io(to, e))
    }

    fn cache(&self, file: &HubFile) -> RepoCache {
        RepoCache::new(&self.settings.cache, &file.repository)
    }
}

/// Where the part of a file lies that is here already: `.incomplete` behind its name, as Hugging Face's own tools call it.
pub fn incomplete(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".incomplete");
    PathBuf::from(name)
}
