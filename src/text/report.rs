//! Which sections make a report, and the text around visual tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which sections make the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sections {
    /// Findings only (the reference; CT-CLIP's training script).
    Findings,
    /// Findings, a blank, impression.
    FindingsAndImpression,
}

/// A section's text on one line; "Not given." and empty cells are no text.
fn section(text: &str) -> Option<String> {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let absent = flat.is_empty() || flat.eq_ignore_ascii_case("not given.") || flat.eq_ignore_ascii_case("nan");
    (!absent).then_some(flat)
}

/// The report of these sections, or `None` where nothing was given.
pub fn report_text(findings: &str, impression: &str, sections: Sections) -> Option<String> {
    match sections {
        Sections::Findings => section(findings),
        Sections::FindingsAndImpression => {
            let parts: Vec<String> = [findings, impression].into_iter().filter_map(section).collect();
            (!parts.is_empty()).then(|| parts.join(" "))
        }
    }
}

/// The text before and after the visual tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptText {
    /// Before them, after the beginning token.
    pub before: String,
    /// After them, before the report.
    pub after: String,
}

const PROMPTS: &str = include_str!("../../prompts/report.yaml");

impl PromptText {
    /// `none`, `ours`, `reference`, or the path of a YAML file with `before` and `after`.
    pub fn load(which: &str) -> Result<Self> {
        let prompts: BTreeMap<String, PromptText> = yaml_serde::from_str(PROMPTS).map_err(|e| Error::file("report.yaml", e.to_string()))?;
        if let Some(prompt) = prompts.get(which) {
            return Ok(prompt.clone());
        }
        let path = Path::new(which);
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        yaml_serde::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_given_is_left_out() {
        let both = Sections::FindingsAndImpression;
        assert_eq!(report_text("Heart is\nnormal.", "Not given.", both).as_deref(), Some("Heart is normal."));
        assert_eq!(report_text("A.", "B.", both).as_deref(), Some("A. B."));
        assert_eq!(report_text("", "B.", Sections::Findings), None);
    }
}
