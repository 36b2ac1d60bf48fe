//! PyTorch archives written once more as safetensors: opened by memory-mapping tools, hashed, and never unpickled again.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

use super::files::archive_tensors;
use super::{metadata, save, sha256};

/// The metadata's key for the archive's SHA-256.
const SOURCE: &str = "converted_from_sha256";

/// What an archive is called once converted: `pytorch_model.bin` becomes `model.safetensors`, `x.pt` `x.safetensors`; `None` for no archive.
pub fn converted_name(name: &str) -> Option<String> {
    let (stem, extension) = name.rsplit_once('.')?;
    let stem = stem.strip_prefix("pytorch_").filter(|_| extension == "bin").unwrap_or(stem);
    ["pt", "pth", "bin"].contains(&extension).then(|| format!("{stem}.safetensors"))
}

/// Writes the tensors of `archive` beside it as safetensors, under the names that they have there, and returns the new file.
///
/// The pickle is read as data, nothing in it is called. One that has been converted before, and has not changed since, is left.
pub fn convert(archive: &Path) -> Result<PathBuf> {
    let name = archive.file_name().and_then(|name| name.to_str()).and_then(converted_name);
    let name = name.ok_or_else(|| Error::file(archive, "not a PyTorch archive: expected .pt, .pth or .bin"))?;
    let (out, hash) = (archive.with_file_name(name), sha256(archive)?);
    if out.is_file() && metadata(&out).is_ok_and(|metadata| metadata.get(SOURCE) == Some(&hash)) {
        return Ok(out);
    }
    let tensors: BTreeMap<_, _> = archive_tensors(archive)?.into_iter().collect();
    let notes = [("format", "pt".to_string()), (SOURCE, hash)];
    save(&out, &tensors, &HashMap::from(notes.map(|(key, value)| (key.to_string(), value))))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_s_name_becomes_the_one_that_transformers_uses() {
        let cases = [("pytorch_model.bin", Some("model.safetensors")), ("CT-CLIP_v2.pt", Some("CT-CLIP_v2.safetensors"))];
        for (name, expected) in
            cases.into_iter().chain([("RadBertClassifier.pth", Some("RadBertClassifier.safetensors")), ("vocab.txt", None)])
        {
            assert_eq!(converted_name(name).as_deref(), expected);
        }
    }

    #[test]
    fn what_is_no_archive_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("code.pt");
        // a pickle that would call os.system when unpickled
        std::fs::write(&path, b"cos\nsystem\n(S'touch /tmp/x'\ntR.").unwrap();
        let message = convert(&path).unwrap_err().to_string();
        assert!(message.contains("code.pt: not a PyTorch archive"), "{message}");
        assert!(convert(&folder.path().join("a.txt")).is_err() && !folder.path().join("code.safetensors").exists());
    }
}
