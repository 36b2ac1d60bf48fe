//! `weights.toml`: the external weights that presets name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const CATALOGUE: &str = include_str!("../../weights.toml");

/// One external weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// On the Hugging Face hub; `datasets/...` for a dataset's repository.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Files in the repository.
    pub files: Vec<String>,
    /// What it is for.
    #[serde(rename = "use")]
    pub purpose: String,
    /// Its licence.
    pub licence: String,
    /// Whether its page must be accepted first.
    pub gated: bool,
}

/// All entries by name.
pub fn catalogue() -> Result<BTreeMap<String, CatalogueEntry>> {
    toml::from_str(CATALOGUE).map_err(|e| Error::file("weights.toml", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_of_weights_that_a_preset_names_is_in_the_catalogue() {
        let entries = catalogue().unwrap();
        for preset in ["ct-rate-llama2-7b", "ct-rate-bert", "reference-code"] {
            let text = std::fs::read_to_string(format!("{}/configs/{preset}.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
            for part in text.split("weights/").skip(1) {
                let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
                assert!(entries.contains_key(&name), "{preset}: weights/{name}");
            }
        }
    }
}
