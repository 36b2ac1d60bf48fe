//! One file's bytes: from where an earlier attempt stopped, hashed as they come, refused if they are others than promised.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::Response;

use crate::{Error, Result};

use super::client::{Client, Fault, Refusal};
use super::{HubFile, Remote, Watch};

/// Bytes at once.
const CHUNK: usize = 1 << 18;

/// What the bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// A large file's etag, or the catalogue's.
    Sha256(String),
    /// A small file's etag: git's id of the blob.
    GitBlob(String),
}

impl Expected {
    /// The catalogue's hash must be the hub's where the hub tells one; a hash of neither kind promises nothing.
    fn of(file: &HubFile, remote: &Remote, sha256: Option<&str>) -> Result<Option<Self>> {
        let hex = |length: usize| remote.etag.len() == length && remote.etag.chars().all(|c| c.is_ascii_hexdigit());
        let etag = remote.etag.to_lowercase();
        match sha256.map(str::to_lowercase) {
            Some(wanted) if hex(64) && wanted != etag => {
                Err(file.error(format!("the repository holds another file than weights.toml names: sha256 {etag}, expected {wanted}")))
            }
            Some(wanted) => Ok(Some(Expected::Sha256(wanted))),
            None if hex(64) => Ok(Some(Expected::Sha256(etag))),
            None if hex(40) => Ok(Some(Expected::GitBlob(etag))),
            None => Ok(None),
        }
    }
}

/// Both hashes of what is here so far.
struct Hashes {
    sha256: Sha256,
    git: Sha1,
}

impl Hashes {
    /// git hashes `blob SIZE`, a zero byte, and the content.
    fn new(size: u64) -> Self {
        Hashes { sha256: Sha256::new(), git: Sha1::new_with_prefix(format!("blob {size}\0")) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.git.update(bytes);
    }

    /// The hash of the expected kind, where it is another.
    fn other_than(self, expected: &Expected) -> Option<String> {
        let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (found, wanted) = match expected {
            Expected::Sha256(wanted) => (hex(&self.sha256.finalize()), wanted),
            Expected::GitBlob(wanted) => (hex(&self.git.finalize()), wanted),
        };
        (found != *wanted).then(|| format!("hash {found}, expected {wanted}"))
    }
}

/// A file that is being filled.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    hashes: Hashes,
    at: u64,
    size: u64,
}

impl<'a> Partial<'a> {
    /// What an earlier attempt left is hashed and kept, unless it is longer than the file.
    fn open(path: &'a Path, size: u64) -> Result<Self> {
        let io = |e| Error::io(path, e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let file = File::options().create(true).read(true).append(true).open(path).map_err(io)?;
        let mut partial = Partial { path, file, hashes: Hashes::new(size), at: 0, size };
        if partial.file.metadata().map_err(io)?.len() > size {
            partial.restart()?;
        }
        let mut buffer = vec![0; CHUNK];
        partial.file.rewind().map_err(io)?;
        loop {
            let read = partial.file.read(&mut buffer).map_err(io)?;
            if read == 0 {
                return Ok(partial);
            }
            partial.hashes.update(&buffer[..read]);
            partial.at += read as u64;
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(self.path, e))?;
        (self.at, self.hashes) = (0, Hashes::new(self.size));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(self.path, e))?;
        self.hashes.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// An attempt's end: a fault of the connection, or an error of this machine.
enum Stop {
    Fault(Fault),
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Error(error)
    }
}

impl Client {
    /// Fills `path` with the file and verifies it; what an earlier call left there is gone on with. On a wrong hash the file is removed: once more
    /// from the beginning where part of it was of an earlier call, else an error.
    pub(super) fn download(&self, file: &HubFile, remote: &Remote, sha256: Option<&str>, path: &Path, watch: Watch) -> Result<()> {
        let expected = Expected::of(file, remote, sha256)?;
        loop {
            let mut partial = Partial::open(path, remote.size)?;
            let resumed = partial.at > 0;
            self.fill(file, remote, &mut partial, watch)?;
            partial.file.sync_all().map_err(|e| Error::io(path, e))?;
            let Some(wrong) = expected.as_ref().and_then(|expected| partial.hashes.other_than(expected)) else { return Ok(()) };
            fs::remove_file(path).map_err(|e| Error::io(path, e))?;
            if !resumed {
                return Err(file.error(format!("what came is not what was promised ({wrong}); it was removed")));
            }
        }
    }

    fn fill(&self, file: &HubFile, remote: &Remote, partial: &mut Partial, watch: Watch) -> Result<()> {
        let mut patience = self.patience();
        while partial.at < partial.size {
            let before = partial.at;
            let stop = match self.attempt(file, remote, partial, watch) {
                Ok(()) => continue,
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Fault(fault)) => fault,
            };
            if partial.at > before {
                patience.renew();
            }
            patience.wait(stop).map_err(|refusal| match refusal {
                Refusal::Unreachable(what) => {
                    file.error(format!("{what}; {} of {} bytes are kept and gone on with next time", partial.at, partial.size))
                }
                Refusal::Answered(what) | Refusal::Absent(what) => file.error(what),
            })?;
        }
        watch(partial.at, partial.size);
        Ok(())
    }

    /// One connection, as far as it brings us.
    fn attempt(&self, file: &HubFile, remote: &Remote, partial: &mut Partial, watch: Watch) -> std::result::Result<(), Stop> {
        let response = self.open(file, &remote.commit, partial.at).map_err(Stop::Fault)?;
        if partial.at > 0 && !goes_on(&response, partial.at) {
            // the server knows no ranges, or has another file: from the beginning
            partial.restart()?;
            if response.status().as_u16() != 200 {
                return Err(Stop::Fault(Fault::Again(format!("another range than asked for ({})", response.status()), None)));
            }
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; CHUNK];
        while partial.at < partial.size {
            let cut = |why: String| Stop::Fault(Fault::Again(format!("the connection was cut: {why}"), None));
            match body.read(&mut buffer).map_err(|e| cut(e.to_string()))? {
                0 => return Err(cut(format!("{} of {} bytes", partial.at, partial.size))),
                read if partial.at + read as u64 > partial.size => {
                    partial.restart()?;
                    return Err(Stop::Fault(Fault::Again(format!("more than the {} bytes that the hub told", partial.size), None)));
                }
                read => partial.append(&buffer[..read])?,
            }
            watch(partial.at, partial.size);
        }
        Ok(())
    }
}

/// Whether the answer begins at byte `at`.
fn goes_on(response: &Response<Body>, at: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    response.status().as_u16() == 206 && range.is_none_or(|range| range.starts_with(&format!("bytes {at}-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_s_hash_is_git_s_blob_id() {
        // git hash-object of "hello\n"
        let mut hashes = Hashes::new(6);
        hashes.update(b"hello\n");
        assert_eq!(hashes.other_than(&Expected::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_string())), None);
    }
}
