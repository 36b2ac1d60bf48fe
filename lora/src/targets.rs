//! Which modules are meant: names, patterns, layers. Python's `re` is followed, look-around included.

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

/// Modules by name or by pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// The last parts of paths: `q_proj`, `self_attn.q_proj`.
    Names(Vec<String>),
    /// A regular expression that the whole path matches, or `all-linear`: every linear module but the head.
    Pattern(String),
}

impl Targets {
    /// Whether every linear module but the head is meant.
    pub fn is_all_linear(&self) -> bool {
        matches!(self, Targets::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear"))
    }

    /// Why nothing can be found by it.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Targets::Names(names) if names.is_empty() => Some("names no module".to_string()),
            Targets::Pattern(pattern) if pattern.is_empty() => Some("names no module".to_string()),
            Targets::Pattern(pattern) => Pattern::whole(pattern).err(),
            Targets::Names(_) => None,
        }
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Targets::Names(names) => write!(f, "{}", names.join(", ")),
            Targets::Pattern(pattern) => write!(f, "{pattern}"),
        }
    }
}

/// A compiled pattern.
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// What the whole path matches (`re.fullmatch`).
    pub(crate) fn whole(pattern: &str) -> Result<Self, String> {
        Pattern::compile(pattern, &format!(r"\A(?:{pattern})\z"))
    }

    /// What ends the path after a dot: PEFT 0.13.2 matches `.*\.KEY$`, KEY without brackets of its own around it.
    pub(crate) fn end(key: &str) -> Result<Self, String> {
        Pattern::compile(key, &format!(r"\A(?:.*\.{key}$)"))
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        // an expression that gives up (too much backtracking) has not matched
        self.0.is_match(path).unwrap_or(false)
    }

    fn compile(own: &str, whole: &str) -> Result<Self, String> {
        Regex::new(whole).map(Pattern).map_err(|e| format!("{own} is not a regular expression: {e}"))
    }
}

/// The number of the layer that `path` lies in; `list`: the name of the list that it stands in, any if there is none.
pub(crate) fn layer_index(path: &str, list: Option<&str>) -> Result<Option<usize>, String> {
    let list = list.unwrap_or(r"[^.]*");
    let regex = Regex::new(&format!(r"\A.*\.{list}\.(\d+)\.")).map_err(|e| format!("{list} is not a regular expression: {e}"))?;
    let captures = regex.captures(path).ok().flatten();
    Ok(captures.and_then(|captures| captures.get(1)?.as_str().parse().ok()))
}
