//! Splits that others' numbers are given on, by name, with a hash that results carry.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Split;

/// A split that is published somewhere, whatever part of it is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NamedSplit {
    /// Every volume of CT-RATE's validation reports: 3,039 (CT-CLIP, BTB3D, AbSteering).
    #[serde(rename = "ct-rate-valid-volumes")]
    CtRateValidVolumes,
    /// The first reconstruction of each scan there: 1,564 (VLM3D, Reg2RG, SPECTRE).
    #[serde(rename = "ct-rate-valid-scans")]
    CtRateValidScans,
    /// Of these, the ones whose findings have at least 500 characters (the authors' code).
    #[serde(rename = "ct-rate-valid-500-characters")]
    CtRateValid500,
    /// CTRG-Chest-548K's `test`.
    #[serde(rename = "ctrg-test")]
    CtrgTest,
}

impl NamedSplit {
    /// All of them.
    pub const ALL: [NamedSplit; 4] =
        [NamedSplit::CtRateValidVolumes, NamedSplit::CtRateValidScans, NamedSplit::CtRateValid500, NamedSplit::CtrgTest];

    /// The name that results carry.
    pub fn name(self) -> &'static str {
        match self {
            NamedSplit::CtRateValidVolumes => "ct-rate-valid-volumes",
            NamedSplit::CtRateValidScans => "ct-rate-valid-scans",
            NamedSplit::CtRateValid500 => "ct-rate-valid-500-characters",
            NamedSplit::CtrgTest => "ctrg-test",
        }
    }
}

/// Studies of a cache: by use, or by a published split's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Subset {
    /// Training, validation or test.
    Split(Split),
    /// A published split.
    Named(NamedSplit),
}

impl Subset {
    /// `train`, `validation`, `test`, or the published split's name.
    pub fn name(self) -> &'static str {
        match self {
            Subset::Split(Split::Train) => "train",
            Subset::Split(Split::Validation) => "validation",
            Subset::Split(Split::Test) => "test",
            Subset::Named(named) => named.name(),
        }
    }
}

impl From<Split> for Subset {
    fn from(split: Split) -> Self {
        Subset::Split(split)
    }
}

impl fmt::Display for Subset {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Subset {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let all = [Split::Train, Split::Validation, Split::Test].map(Subset::Split).into_iter().chain(NamedSplit::ALL.map(Subset::Named));
        let names = all.clone().map(Subset::name).collect::<Vec<_>>().join(", ");
        all.into_iter().find(|subset| subset.name() == text).ok_or_else(|| format!("there are {names}"))
    }
}

/// The whole of a split, as `splits.json` of a cache keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitList {
    /// How many studies.
    pub studies: usize,
    /// SHA-256 of their sorted names.
    pub sha256: String,
    /// Their names, sorted.
    pub names: Vec<String>,
}

impl SplitList {
    /// Of these studies.
    pub fn new(mut names: Vec<String>) -> Self {
        names.sort();
        SplitList { studies: names.len(), sha256: split_sha256(names.iter().map(String::as_str)), names }
    }
}

/// Named splits and their studies.
pub type NamedSplits = BTreeMap<NamedSplit, SplitList>;

/// Which split a result is on, and whether all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitRecord {
    /// The split's name.
    pub name: String,
    /// Studies of the whole split.
    pub studies: usize,
    /// SHA-256 of the whole split's sorted study names.
    pub sha256: String,
    /// Studies of it that the result is not on: not prepared, or not asked for.
    pub missing: usize,
}

/// SHA-256 of study names, sorted, one a line: what a split is.
pub fn split_sha256<T: AsRef<str> + Ord>(names: impl Iterator<Item = T>) -> String {
    let mut names: Vec<T> = names.collect();
    names.sort_unstable();
    let lines: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    Sha256::digest(lines.join("\n").as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_is_known_by_its_name_and_a_hash_does_not_depend_on_the_order() {
        assert_eq!("test".parse(), Ok(Subset::Split(Split::Test)));
        assert_eq!("ct-rate-valid-scans".parse(), Ok(Subset::Named(NamedSplit::CtRateValidScans)));
        assert!("valid".parse::<Subset>().unwrap_err().contains("ct-rate-valid-volumes"));
        for named in NamedSplit::ALL {
            assert_eq!(serde_json::to_value(Subset::Named(named)).unwrap(), named.name());
        }
        assert_eq!(SplitList::new(vec!["b".into(), "a".into()]), SplitList::new(vec!["a".into(), "b".into()]));
    }
}
