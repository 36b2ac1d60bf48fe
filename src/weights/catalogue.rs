//! `weights.toml`: the external weights that presets name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const CATALOGUE: &str = include_str!("../../weights.toml");

/// One external weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// What it is for.
    #[serde(rename = "use")]
    pub purpose: String,
    /// Its licence.
    pub licence: String,
    /// The prefix of the tensors that are used, and what it becomes in the model.
    #[serde(default)]
    pub renaming: BTreeMap<String, String>,
    /// Where its files lie.
    pub from: Vec<CatalogueSource>,
}

/// Files of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueSource {
    /// On the Hugging Face hub; `datasets/...` for a dataset's repository.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Whether its page must be accepted first.
    pub gated: bool,
    /// Files in the repository.
    pub files: Vec<CatalogueFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueFile {
    /// Where it lies in the repository.
    pub path: String,
    /// Its SHA-256, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl CatalogueFile {
    /// What it is called in our folder: the path's last part.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

impl CatalogueEntry {
    /// Its files with the repositories they lie in.
    pub fn files(&self) -> impl Iterator<Item = (&CatalogueSource, &CatalogueFile)> {
        self.from.iter().flat_map(|source| source.files.iter().map(move |file| (source, file)))
    }
}

/// All entries by name.
pub fn catalogue() -> Result<BTreeMap<String, CatalogueEntry>> {
    toml::from_str(CATALOGUE).map_err(|e| Error::file("weights.toml", e.to_string()))
}

/// One entry; an unknown name is answered with the known ones.
pub fn entry(name: &str) -> Result<CatalogueEntry> {
    let mut entries = catalogue()?;
    let names = entries.keys().cloned().collect::<Vec<_>>().join(", ");
    entries.remove(name).ok_or_else(|| Error::field("weights.toml", name, format!("no such entry; there are {names}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::converted_name;

    #[test]
    fn every_weight_that_a_preset_names_is_what_fetching_leaves() {
        let entries = catalogue().unwrap();
        for preset in ["ct-rate-llama2-7b", "ct-rate-bert", "reference-code", "ctrg-548k"] {
            let text = std::fs::read_to_string(format!("{}/configs/{preset}.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
            for part in text.split(" weights/").skip(1) {
                let path: String = part.chars().take_while(|c| c.is_alphanumeric() || "-_./".contains(*c)).collect();
                let (name, file) = path.split_once('/').map_or((path.as_str(), None), |(name, file)| (name, Some(file)));
                let entry = entries.get(name).unwrap_or_else(|| panic!("{preset}: weights/{name}"));
                let left =
                    |file: &str| entry.files().any(|(_, own)| own.name() == file || converted_name(own.name()).as_deref() == Some(file));
                assert!(file.is_none_or(left), "{preset}: weights/{path}");
            }
        }
    }

    #[test]
    fn hashes_are_whole_and_an_unknown_name_is_answered_with_the_known_ones() {
        for (name, entry) in catalogue().unwrap() {
            let mut hashes = entry.files().filter_map(|(_, file)| file.sha256.as_deref());
            assert!(hashes.all(|hash| hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit())), "{name}");
        }
        let message = entry("llama").unwrap_err().to_string();
        assert!(message.starts_with("weights.toml: llama: no such entry") && message.contains("llama-2-7b-chat"), "{message}");
    }
}
