//! Which structures a sentence speaks of.

use std::borrow::Cow;
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

/// Sentences in their order, each with its structures.
pub type Labelled = Vec<(String, Vec<usize>)>;

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
    #[serde(default)]
    yields: Vec<Yield>,
}

/// Words that count only where none of the structures `to` is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Yield {
    words: String,
    to: Vec<String>,
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
    yields: Vec<(Regex, Vec<usize>)>,
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
                let names: Vec<String> = structures.iter().map(|rule| rule.name.clone()).collect();
                Ok(Structures::Rules(Rules {
                    split: compile(source, "split", &split)?,
                    window_header: compile(source, "window_header", &window_header)?,
                    carry: compile(source, "carry", &carry)?,
                    structures: structures.into_iter().map(|rule| rule.compile(source, &names)).collect::<Result<_>>()?,
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

    /// A report's sentences in their order, each with its structures.
    pub fn labelled(&self, report: &str) -> Labelled {
        match self {
            Structures::Rules(rules) => {
                let sentences = rules.sentences(report);
                let labels = rules.label(&sentences);
                sentences.into_iter().zip(labels).collect()
            }
            Structures::Reference(rules) => rules.labelled(report),
        }
    }
}

fn compile(source: &str, field: &str, pattern: &str) -> Result<Regex> {
    let built = RegexBuilder::new(pattern).case_insensitive(true).size_limit(1 << 26).build();
    built.map_err(|e| Error::field(source, field.to_string(), format!("not a regular expression: {e}")))
}

impl Rule {
    fn compile(self, source: &str, names: &[String]) -> Result<Compiled> {
        let name = self.name;
        let field = |field: &str| format!("{name}.{field}");
        let optional = |which: &str, pattern: Option<String>| pattern.map(|pattern| compile(source, &field(which), &pattern)).transpose();
        let index = |other: &String| {
            let found = names.iter().position(|name| name == other);
            found.ok_or_else(|| Error::field(source, field("yields.to"), format!("{other} is not a structure of the file")))
        };
        let yields = self.yields.iter().map(|words| {
            let to = words.to.iter().map(index).collect::<Result<_>>()?;
            Ok((compile(source, &field("yields.words"), &words.words)?, to))
        });
        Ok(Compiled {
            include: compile(source, &field("include"), &self.include)?,
            strip: optional("strip", self.strip)?,
            keep: optional("keep", self.keep)?,
            exclude: optional("exclude", self.exclude)?,
            yields: yields.collect::<Result<_>>()?,
            name: name.clone(),
        })
    }
}

impl Rules {
    /// A report's sentences, marks kept: joined by blanks they are the report again.
    pub fn sentences(&self, report: &str) -> Vec<String> {
        let flat = report.split_whitespace().collect::<Vec<_>>().join(" ");
        let (mut sentences, mut start) = (Vec::<String>::new(), 0);
        let ends = self.split.captures_iter(&flat).map(|found| {
            let mark = found.get(1).map_or(0, |mark| mark.end());
            (mark, found.get(0).map_or(mark, |whole| whole.end()))
        });
        for (mark, next) in ends.chain([(flat.len(), flat.len())]) {
            let piece = flat[start..mark].trim();
            start = next;
            // Marks alone (a closing quote) belong to the sentence before, at the beginning to the one behind.
            let bare = |text: &str| !text.chars().any(char::is_alphanumeric);
            match sentences.last_mut() {
                _ if piece.is_empty() => {}
                Some(last) if bare(piece) || bare(last) => last.extend([" ", piece]),
                _ => sentences.push(piece.to_string()),
            }
        }
        sentences
    }

    /// The structures of each sentence; a continuation takes those of the sentence before.
    pub fn label(&self, sentences: &[String]) -> Vec<Vec<usize>> {
        let mut labels: Vec<Vec<usize>> = Vec::new();
        for sentence in sentences {
            let body = self.window_header.replace(sentence, "");
            let mut own = self.named(&body);
            if own.is_empty() && self.carry.is_match(&body) {
                own = labels.last().cloned().unwrap_or_default();
            }
            // What stands under the lung window and names nothing else speaks of the lung.
            if own.is_empty() {
                own = self.named(sentence);
            }
            labels.push(own);
        }
        labels
    }

    /// The structures that a sentence names: those that yield to others give way, unless none would be left.
    fn named(&self, sentence: &str) -> Vec<usize> {
        let texts: Vec<Option<Cow<str>>> = self.structures.iter().map(|structure| structure.read(sentence)).collect();
        let candidates: Vec<usize> = (0..texts.len()).filter(|&index| texts[index].is_some()).collect();
        if candidates.len() < 2 {
            return candidates;
        }
        let stays = |&index: &usize| {
            let structure = &self.structures[index];
            let yields = structure.yields.iter().filter(|(_, to)| to.iter().any(|&to| to != index && texts[to].is_some()));
            let text = texts[index].clone().unwrap_or_default();
            let text = yields.fold(text, |text, (words, _)| Cow::Owned(words.replace_all(&text, " ").into_owned()));
            structure.matches(sentence, &text)
        };
        let named: Vec<usize> = candidates.iter().copied().filter(stays).collect();
        if named.is_empty() { candidates } else { named }
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
    /// The sentence without what is not the structure's, where it still names the structure.
    fn read<'t>(&self, sentence: &'t str) -> Option<Cow<'t, str>> {
        if self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(sentence)) {
            return None;
        }
        let text = self.strip.as_ref().map_or(sentence.into(), |strip| strip.replace_all(sentence, " "));
        self.matches(sentence, &text).then_some(text)
    }

    fn matches(&self, sentence: &str, text: &str) -> bool {
        self.include.is_match(text) || self.keep.as_ref().is_some_and(|keep| keep.is_match(sentence))
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
    fn words_of_any_organ_yield_to_the_organ_that_is_named() {
        let Structures::Rules(rules) = Structures::load("ours").unwrap() else { panic!("our rules are rules") };
        let names = |sentence: &str| -> Vec<&str> {
            rules.label(&[sentence.to_string()])[0].iter().map(|&index| rules.structures[index].name.as_str()).collect()
        };
        assert_eq!(names("A nodule is seen on the left."), ["lung"]);
        assert_eq!(names("A nodule is seen in the left lobe of the thyroid."), ["thyroid"]);
        assert_eq!(names("A nodule in the left kidney and one in the left lung are seen."), ["lung", "abdomen"]);
        assert_eq!(names("Fluid, an effusion of 2 cm, lies in the pleural space of the right lung."), ["pleura"]);
        assert_eq!(names("A pleural effusion with atelectasis of the lung beside it is seen."), ["lung", "pleura"]);
        assert_eq!(names("An effusion of 5 mm surrounds the heart."), ["heart"]);
        assert_eq!(names("Enlarged lymph nodes are seen in the upper abdomen."), ["abdomen"]);
        assert_eq!(names("In the lung parenchyma window nothing else is seen."), ["lung"]);
    }

    #[test]
    fn marks_between_sentences_are_kept() {
        let Structures::Rules(rules) = Structures::load("ours").unwrap() else { panic!("our rules are rules") };
        assert_eq!(
            rules.sentences("\" . The lungs are clear. \" \" Normal chest.  ."),
            ["\" . The lungs are clear.", "\" \" Normal chest. ."]
        );
    }

    #[test]
    fn a_bad_rule_names_file_and_field() {
        let text = "kind: rules\nversion: 1\nsplit: '[.]'\nwindow_header: x\ncarry: x\nstructures:\n  - {name: lung, include: '('}\n";
        let message = Structures::parse("mine.yaml", text).unwrap_err().to_string();
        assert!(message.starts_with("mine.yaml: lung.include: not a regular expression"), "{message}");
        let text = text.replace("'('", "lung, yields: [{words: lobe, to: [livver]}]");
        let message = Structures::parse("mine.yaml", &text).unwrap_err().to_string();
        assert!(message.starts_with("mine.yaml: lung.yields.to: livver is not a structure"), "{message}");
    }
}
