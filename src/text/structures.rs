//! Which structures a sentence speaks of.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::{Error, Result};

use super::reference_rules::ReferenceRules;

const OURS: &str = include_str!("../../prompts/structures.yaml");
const REFERENCE: &str = include_str!("../../prompts/structures-reference.yaml");

/// A report's text by structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// For each structure its sentences, or `None` where the report does not mention it.
    pub texts: Vec<Option<String>>,
    /// Sentences of no structure.
    pub unassigned: Vec<String>,
}

/// The rules of a structure file.
#[derive(Debug)]
pub enum Structures {
    /// Regular expressions (ours).
    Rules(Rules),
    /// The authors' keywords and inheritance.
    Reference(ReferenceRules),
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum File {
    Rules { version: u32, split: String, window_header: String, carry: String, structures: Vec<Rule> },
    Reference { version: u32, structures: Vec<super::reference_rules::Keywords> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    include: String,
    strip: Option<String>,
    keep: Option<String>,
    exclude: Option<String>,
}

/// Our rules, compiled.
#[derive(Debug)]
pub struct Rules {
    split: Regex,
    window_header: Regex,
    carry: Regex,
    structures: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    name: String,
    include: Regex,
    strip: Option<Regex>,
    keep: Option<Regex>,
    exclude: Option<Regex>,
}

impl Structures {
    /// `ours`, `reference`, or the path of a rule file.
    pub fn load(which: &str) -> Result<Self> {
        match which {
            "ours" => Structures::parse("structures.yaml", OURS),
            "reference" => Structures::parse("structures-reference.yaml", REFERENCE),
            path => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io(Path::new(path), e))?;
                Structures::parse(path, &text)
            }
        }
    }

    fn parse(source: &str, text: &str) -> Result<Self> {
        let file: File = yaml_serde::from_str(text).map_err(|e| Error::file(source, e.to_string()))?;
        let (File::Rules { version, .. } | File::Reference { version, .. }) = &file;
        if *version != 1 {
            return Err(Error::field(source, "version", format!("{version}; expected 1")));
        }
        match file {
            File::Reference { structures, .. } => Ok(Structures::Reference(ReferenceRules::new(structures))),
            File::Rules { split, window_header, carry, structures, .. } => {
                let compile = |field: &str, pattern: &str| {
                    let built = RegexBuilder::new(pattern).case_insensitive(true).size_limit(1 << 26).build();
                    built.map_err(|e| Error::field(source, field.to_string(), format!("not a regular expression: {e}")))
                };
                let rule = |rule: &Rule| -> Result<Compiled> {
                    let optional = |field: &str, pattern: &Option<String>| {
                        pattern.as_ref().map(|pattern| compile(&format!("{}.{field}", rule.name), pattern)).transpose()
                    };
                    Ok(Compiled {
                        name: rule.name.clone(),
                        include: compile(&format!("{}.include", rule.name), &rule.include)?,
                        strip: optional("strip", &rule.strip)?,
                        keep: optional("keep", &rule.keep)?,
                        exclude: optional("exclude", &rule.exclude)?,
                    })
                };
                Ok(Structures::Rules(Rules {
                    split: compile("split", &split)?,
                    window_header: compile("window_header", &window_header)?,
                    carry: compile("carry", &carry)?,
                    structures: structures.iter().map(rule).collect::<Result<_>>()?,
                }))
            }
        }
    }

    /// The structures' names, in the order of the queries.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Structures::Rules(rules) => rules.structures.iter().map(|rule| rule.name.as_str()).collect(),
            Structures::Reference(rules) => rules.names(),
        }
    }

    /// Splits a report by structure.
    pub fn assign(&self, report: &str) -> Assignment {
        match self {
            Structures::Rules(rules) => rules.assign(report),
            Structures::Reference(rules) => rules.assign(report),
        }
    }
}

impl Rules {
    /// A report's sentences, marks kept.
    pub fn sentences(&self, report: &str) -> Vec<String> {
        let flat = report.split_whitespace().collect::<Vec<_>>().join(" ");
        let (mut sentences, mut start) = (Vec::new(), 0);
        for found in self.split.captures_iter(&flat) {
            let mark = found.get(1).map_or(0, |mark| mark.end());
            sentences.push(flat[start..mark].trim().to_string());
            start = found.get(0).map_or(mark, |whole| whole.end());
        }
        sentences.push(flat[start..].trim().to_string());
        sentences.retain(|sentence| sentence.chars().any(char::is_alphanumeric));
        sentences
    }

    /// The structures of each sentence; a continuation takes those of the sentence before.
    pub fn label(&self, sentences: &[String]) -> Vec<Vec<usize>> {
        let mut labels: Vec<Vec<usize>> = Vec::new();
        for sentence in sentences {
            let body = self.window_header.replace(sentence, "");
            let body = if body.trim().is_empty() { sentence.as_str() } else { body.as_ref() };
            let mut own: Vec<usize> = (0..self.structures.len()).filter(|&index| self.structures[index].matches(body)).collect();
            if own.is_empty() && self.carry.is_match(body) {
                own = labels.last().cloned().unwrap_or_default();
            }
            labels.push(own);
        }
        labels
    }

    fn assign(&self, report: &str) -> Assignment {
        let sentences = self.sentences(report);
        let mut texts: Vec<Option<String>> = vec![None; self.structures.len()];
        let mut unassigned = Vec::new();
        for (sentence, labels) in sentences.iter().zip(self.label(&sentences)) {
            if labels.is_empty() {
                unassigned.push(sentence.clone());
            }
            for label in labels {
                let text = texts[label].get_or_insert_with(String::new);
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(sentence);
            }
        }
        Assignment { texts, unassigned }
    }
}

impl Compiled {
    fn matches(&self, sentence: &str) -> bool {
        if self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(sentence)) {
            return false;
        }
        let stripped = self.strip.as_ref().map_or(sentence.into(), |strip| strip.replace_all(sentence, " "));
        self.include.is_match(&stripped) || self.keep.as_ref().is_some_and(|keep| keep.is_match(sentence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_is_kept_or_accounted_for() {
        let structures = Structures::load("ours").unwrap();
        let report = "Trachea is open. Heart size is increased. It measures 15.5 cm. No pleural effusion. Clinical correlation.";
        let assignment = structures.assign(report);
        let named: Vec<(&str, &str)> =
            structures.names().into_iter().zip(&assignment.texts).filter_map(|(name, text)| Some((name, text.as_deref()?))).collect();
        assert_eq!(
            named,
            [
                ("trachea_bronchi", "Trachea is open."),
                ("heart", "Heart size is increased. It measures 15.5 cm."),
                ("pleura", "No pleural effusion. Clinical correlation.")
            ]
        );
        assert!(assignment.unassigned.is_empty());
        assert_eq!(structures.assign("Contrast was given.").unassigned, ["Contrast was given."]);
    }

    #[test]
    fn a_bad_rule_names_file_and_field() {
        let text = "kind: rules\nversion: 1\nsplit: '[.]'\nwindow_header: x\ncarry: x\nstructures:\n  - {name: lung, include: '('}\n";
        let message = Structures::parse("mine.yaml", text).unwrap_err().to_string();
        assert!(message.starts_with("mine.yaml: lung.include: not a regular expression"), "{message}");
    }
}
