//! The hub's double: repositories of files, large ones behind a redirect to a second server, as the real hub keeps them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ctscribe::weights::hub::{Hub, HubFile, HubSettings, Token};
use sha2::{Digest, Sha256};

use crate::server::{Reply, Request, Server};

/// The commit that every revision stands for.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// git's id of a blob.
pub fn git_blob(content: &[u8]) -> String {
    use sha1::Digest;
    let mut hasher = sha1::Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hasher.update(content);
    hex(&hasher.finalize())
}

/// Bytes that look like weights.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// `/REPOSITORY/resolve/REVISION/PATH` taken apart.
pub fn resolved(path: &str) -> Option<(&str, &str, &str)> {
    let (repository, rest) = path.trim_start_matches('/').split_once("/resolve/")?;
    let (revision, file) = rest.split_once('/')?;
    Some((repository, revision, file))
}

/// The hub's answer on a large file: what it is, and where its bytes lie.
pub fn large(content: &[u8], location: &str) -> Reply {
    Reply::status(302)
        .with("X-Repo-Commit", COMMIT)
        .with("X-Linked-Etag", format!("\"{}\"", sha256(content)))
        .with("X-Linked-Size", content.len())
        .with("ETag", "\"of-the-redirect\"")
        .with("Location", location)
}

/// The hub's answer on a small file: itself.
pub fn small(request: &Request, content: &[u8]) -> Reply {
    Reply::range(request, content).with("X-Repo-Commit", COMMIT).with("ETag", format!("\"{}\"", git_blob(content)))
}

/// A hub with these files (by repository and path), those above `limit` bytes on a second server. Returns hub and store.
pub fn hub(files: BTreeMap<(String, String), Vec<u8>>, limit: usize) -> (Server, Server) {
    let stored = files.clone();
    let store = Server::start(move |request, _| {
        let found = stored.iter().find(|((_, path), _)| request.path.ends_with(path.as_str()));
        found.map_or(Reply::status(404), |(_, content)| Reply::range(request, content))
    });
    let address = store.address.clone();
    let hub = Server::start(move |request, _| {
        let Some((repository, _, path)) = resolved(&request.path) else { return Reply::status(404) };
        match files.get(&(repository.to_string(), path.to_string())) {
            None => Reply::status(404).with("X-Error-Code", "EntryNotFound"),
            Some(content) if content.len() > limit => large(content, &format!("{address}/store/{path}")),
            Some(content) => small(request, content),
        }
    });
    (hub, store)
}

/// Settings for a hub at `endpoint` with its cache in `root`: quick retries, no token.
pub fn settings(endpoint: &str, root: &Path) -> HubSettings {
    HubSettings {
        endpoint: endpoint.to_string(),
        cache: root.join("hub"),
        token: None,
        offline: false,
        silence: Duration::from_secs(5),
        retries: 3,
        pause: Duration::from_millis(2),
        certificates: None,
    }
}

pub fn open(settings: HubSettings) -> Hub {
    Hub::new(settings).unwrap()
}

pub fn token(settings: HubSettings) -> HubSettings {
    HubSettings { token: Some(Token::new("hf_secret", "HF_TOKEN")), ..settings }
}

pub fn file(path: &str) -> HubFile {
    HubFile { repository: "owner/model".to_string(), revision: "main".to_string(), path: path.to_string() }
}
