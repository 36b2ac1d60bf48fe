//! `weights fetch`: the files of a catalogue entry, from the hub's cache into the folder where presets look for them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result};

use super::files::tensor_names;
use super::hub::{Hub, HubFile, symlink};
use super::{CatalogueEntry, CatalogueFile, CatalogueSource, convert, converted_name, entry, sha256};

/// A file that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// In our folder.
    pub path: PathBuf,
    /// Bytes.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Where it came from: `REPOSITORY@REVISION/PATH`, or the archive that it was converted from.
    pub from: String,
}

/// Fetches what the catalogue lists under `name` into `folder`: linked to the hub's cache where links exist, else copied. Archives are converted.
/// `watch` hears of each file: its name, bytes here, bytes in all. A file that was put there by hand is kept, and must fit the catalogue's hash.
pub fn fetch(hub: &Hub, name: &str, folder: &Path, watch: &mut dyn FnMut(&str, u64, u64)) -> Result<Vec<Fetched>> {
    let entry = entry(name)?;
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut fetched = Vec::new();
    for (source, file) in entry.files() {
        let path = folder.join(file.name());
        if !is_by_hand(&path) {
            let cached = hub.fetch(&hub_file(source, file), file.sha256.as_deref(), &mut |done, total| watch(file.name(), done, total))?;
            place(&cached, &path)?;
        }
        fetched.push(described(path.clone(), format!("{}@{}/{}", source.repository, source.revision, file.path), file)?);
        if converted_name(file.name()).is_some() {
            let converted = convert(&path)?;
            expect_names(&entry, &converted)?;
            fetched.push(described(converted, file.name().to_string(), &CatalogueFile { path: String::new(), sha256: None })?);
        }
    }
    Ok(fetched)
}

/// Hashes what [`fetch`] left of `name` in `folder`, without the network: a missing or altered file is an error.
pub fn verify(name: &str, folder: &Path) -> Result<Vec<Fetched>> {
    let entry = entry(name)?;
    let one = |(source, file): (&CatalogueSource, &CatalogueFile)| {
        let path = folder.join(file.name());
        if !path.is_file() {
            return Err(Error::file(&path, format!("is absent; `ctscribe weights fetch {name}` brings it")));
        }
        let fetched = described(path.clone(), format!("{}@{}/{}", source.repository, source.revision, file.path), file)?;
        // a link leads to a blob that is called by its hash
        let blob = path.canonicalize().ok().and_then(|blob| Some(blob.file_name()?.to_str()?.to_string()));
        match blob.filter(|blob| blob.len() == 64 && blob.chars().all(|c| c.is_ascii_hexdigit()) && *blob != fetched.sha256) {
            Some(blob) => Err(Error::file(&path, format!("has changed since it was fetched: sha256 {}, expected {blob}", fetched.sha256))),
            None => Ok(fetched),
        }
    };
    entry.files().map(one).collect()
}

fn hub_file(source: &CatalogueSource, file: &CatalogueFile) -> HubFile {
    HubFile { repository: source.repository.clone(), revision: source.revision.clone(), path: file.path.clone() }
}

/// A file of its own, not a link of ours.
fn is_by_hand(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|entry| entry.file_type().is_file())
}

/// A link at `path` to the cached file, or a copy where there are no links.
fn place(cached: &Path, path: &Path) -> Result<()> {
    let target = cached.canonicalize().map_err(|e| Error::io(cached, e))?;
    if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).map_err(|e| Error::io(path, e))?;
    }
    if symlink(&target, path).is_err() {
        fs::copy(&target, path).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

fn described(path: PathBuf, from: String, file: &CatalogueFile) -> Result<Fetched> {
    let bytes = fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
    let found = sha256(&path)?;
    match &file.sha256 {
        Some(wanted) if *wanted != found => Err(Error::file(&path, format!("sha256 {found}, weights.toml expects {wanted}"))),
        _ => Ok(Fetched { path, bytes, sha256: found, from }),
    }
}

/// The checkpoint must hold tensors under the prefixes that the catalogue renames.
fn expect_names(entry: &CatalogueEntry, checkpoint: &Path) -> Result<()> {
    let names = tensor_names(checkpoint)?;
    match entry.renaming.keys().find(|prefix| !names.iter().any(|name| name.contains(prefix.as_str()))) {
        Some(prefix) => Err(Error::file(checkpoint, format!("none of its {} tensors is called {prefix}*: another model", names.len()))),
        None => Ok(()),
    }
}
