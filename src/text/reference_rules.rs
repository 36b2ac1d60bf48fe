//! The authors' splitter, step by step (reference.md 2); where theirs raises, this one goes on.

use serde::Deserialize;

use super::structures::{Assignment, Labelled};

/// One structure of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keywords {
    name: String,
    keywords: Vec<String>,
    absent: String,
}

/// The rules; the last structure gathers what belongs to no other.
#[derive(Debug)]
pub struct ReferenceRules {
    structures: Vec<Keywords>,
}

/// Longer reports lose their end.
const LONGEST: usize = 240;
const KEPT: usize = 220;

/// A piece that begins so belongs to the piece before.
const CONTINUATIONS: [&str; 19] = [
    "the nodules",
    "and",
    "the largest",
    "in addition",
    "the appearance",
    "however",
    "again",
    "it",
    "with",
    "surrounding",
    "which",
    "about",
    "especially",
    "after",
    "signs",
    "left",
    "the size",
    "size",
    "ct ",
];

impl ReferenceRules {
    pub(super) fn new(structures: Vec<Keywords>) -> Self {
        ReferenceRules { structures }
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.structures.iter().map(|structure| structure.name.as_str()).collect()
    }

    /// The pieces of a report with their structures.
    pub(super) fn labelled(&self, report: &str) -> Labelled {
        self.label_all(&pieces(report))
    }

    /// Given pieces with their structures.
    pub(super) fn label_all(&self, pieces: &[String]) -> Labelled {
        let mut labels: Vec<Vec<usize>> = pieces.iter().map(|piece| self.label(piece)).collect();
        self.inherit(pieces, &mut labels);
        pieces.iter().cloned().zip(labels).collect()
    }

    pub(super) fn assign(&self, report: &str) -> Assignment {
        let (pieces, labels): (Vec<String>, Vec<Vec<usize>>) = self.labelled(report).into_iter().unzip();
        let others = self.structures.len() - 1;
        let text = |s: usize| -> String {
            let own = pieces.iter().zip(&labels).filter(|(_, labels)| if s == others { **labels == [others] } else { labels.contains(&s) });
            let text: String = own.map(|(piece, _)| if s == others { format!(" {piece}") } else { format!(" {piece},") }).collect();
            if text.is_empty() { self.structures[s].absent.clone() } else { text }
        };
        let unassigned = pieces.iter().zip(&labels).filter(|(_, labels)| labels.is_empty()).map(|(piece, _)| piece.clone()).collect();
        Assignment { texts: (0..self.structures.len()).map(|s| Some(text(s))).collect(), unassigned }
    }

    fn label(&self, piece: &str) -> Vec<usize> {
        let lower = piece.to_lowercase();
        let spoken = |structure: &Keywords| structure.keywords.iter().any(|keyword| lower.contains(keyword.as_str()));
        (0..self.structures.len()).filter(|&s| spoken(&self.structures[s])).collect()
    }

    /// Pieces without a structure, or of "others" only, may take the labels of the piece before (for the first: the last).
    fn inherit(&self, pieces: &[String], labels: &mut [Vec<usize>]) {
        let others = self.structures.len() - 1;
        let count = pieces.len();
        for i in 0..count {
            if !(labels[i].is_empty() || labels[i] == [others]) {
                continue;
            }
            let previous = if i == 0 { count - 1 } else { i - 1 };
            let lower = pieces[i].trim().to_lowercase();
            let continues = CONTINUATIONS.iter().any(|start| starts(&lower, start));
            let seen = i > 0 && (lower.ends_with("detected") || lower.ends_with("observed"));
            let comma = pieces[previous].trim().ends_with(',');
            let between = i > 0 && i + 1 < count && returns(labels, i);
            if continues || seen || comma || between {
                labels[i] = labels[previous].clone();
            }
        }
    }
}

/// A plain prefix; "ct " stands for "ct value" and "ct diameter".
fn starts(lower: &str, start: &str) -> bool {
    if start == "ct " { lower.starts_with("ct value") || lower.starts_with("ct diameter") } else { lower.starts_with(start) }
}

/// Whether, walking forward, the previous piece's labels come again before any other.
fn returns(labels: &[Vec<usize>], i: usize) -> bool {
    for later in &labels[i + 1..] {
        if *later == labels[i - 1] {
            return true;
        }
        if !later.is_empty() {
            return false;
        }
    }
    false
}

/// Steps 1 to 3: cut, split on full stops, glue what does not begin with a blank to the piece before.
fn pieces(report: &str) -> Vec<String> {
    let words: Vec<&str> = report.split(' ').collect();
    let cut = if words.len() > LONGEST { format!("{}.", words[..KEPT].join(" ")) } else { report.to_string() };
    let mut pieces: Vec<String> = cut.split('.').filter(|piece| piece.chars().count() > 1).map(String::from).collect();
    while let Some(at) = (1..pieces.len()).find(|&at| !pieces[at].starts_with(' ')) {
        let glued = pieces[at].clone();
        pieces[at - 1] = format!("{}.{glued}", pieces[at - 1]);
        let first = pieces.iter().position(|piece| *piece == glued).unwrap_or(at);
        pieces.remove(first);
    }
    pieces
}
