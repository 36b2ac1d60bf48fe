//! The 18 findings of CT-RATE, and a rule labeller for them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

/// CT-RATE's findings, in its order (peers.md c.1).
pub const FINDINGS: [&str; 18] = [
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
];

/// What the labeller is called in results.
pub const LABELLER: &str = "ctscribe rules 2";

const RULES: &str = include_str!("../../prompts/findings.yaml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    clause: String,
    joint: String,
    verb: String,
    history: String,
    pseudo: String,
    negation: String,
    findings: BTreeMap<String, Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    include: String,
    strip: Option<String>,
}

/// The rules, compiled.
struct Labeller {
    clause: Regex,
    joint: Regex,
    verb: Regex,
    history: Regex,
    pseudo: Regex,
    negation: Regex,
    includes: RegexSet,
    findings: Vec<(Regex, Option<Regex>)>,
}

static OURS: LazyLock<Labeller> = LazyLock::new(|| Labeller::new(RULES));

fn compile(pattern: &str) -> Regex {
    // 3,039 reports of 276 words on one core (EPYC): 2.1 s with Unicode's tables, 0.85 s on bytes, 0.23 s where the set's automaton need not
    // be thrown away and built again, as it is at the default 2 MB.
    RegexBuilder::new(pattern)
        .unicode(false)
        .case_insensitive(true)
        .size_limit(1 << 26)
        .build()
        .expect("the labeller's patterns are fixed and tested")
}

impl Labeller {
    fn new(text: &str) -> Self {
        let file: File = yaml_serde::from_str(text).expect("the labeller's file is fixed and tested");
        assert_eq!((file.version, file.findings.len()), (1, FINDINGS.len()), "the labeller's file is fixed and tested");
        let rules: Vec<&Rule> = FINDINGS.iter().map(|name| &file.findings[*name]).collect();
        let includes = RegexSetBuilder::new(rules.iter().map(|rule| &rule.include))
            .unicode(false)
            .case_insensitive(true)
            .size_limit(1 << 26)
            .dfa_size_limit(1 << 26)
            .build();
        Labeller {
            clause: compile(&file.clause),
            joint: compile(&file.joint),
            verb: compile(&file.verb),
            history: compile(&file.history),
            pseudo: compile(&file.pseudo),
            negation: compile(&file.negation),
            includes: includes.expect("the labeller's patterns are fixed and tested"),
            findings: rules.iter().map(|rule| (compile(&rule.include), rule.strip.as_deref().map(compile))).collect(),
        }
    }

    /// Shows `visit` each clause of a report, on one line, that may speak of a finding: as far as a denial reaches, without history.
    fn clauses(&self, report: &[u8], visit: &mut dyn FnMut(&[u8])) {
        let mut visit = |clause: &[u8]| visit(&self.history.replace_all(clause, b" "));
        for part in self.clause.split(report).filter(|part| self.includes.is_match(part)) {
            let mut start = 0;
            for joint in self.joint.find_iter(part) {
                if self.verb.is_match(&part[start..joint.start()]) && self.verb.is_match(&part[joint.end()..]) {
                    visit(&part[start..joint.start()]);
                    start = joint.end();
                }
            }
            visit(&part[start..]);
        }
    }

    fn denies(&self, clause: &[u8]) -> bool {
        self.negation.is_match(&self.pseudo.replace_all(clause, b" "))
    }

    /// Findings whose words a clause holds, of those that `wanted` lets through.
    fn named(&self, clause: &[u8], wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let holds = |finding: &usize| {
            let (include, strip) = &self.findings[*finding];
            strip.as_ref().is_none_or(|strip| include.is_match(&strip.replace_all(clause, b" ")))
        };
        self.includes.matches(clause).into_iter().filter(|finding| wanted(*finding)).filter(holds).collect()
    }
}

/// A clause of a report that speaks of findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clause {
    /// Its text.
    pub(super) text: String,
    /// Whether it denies them.
    pub(super) denied: bool,
    /// Which findings.
    pub(super) findings: Vec<usize>,
}

/// The clauses of a report that speak of findings, in their order.
pub(super) fn clauses(report: &str) -> Vec<Clause> {
    let mut clauses = Vec::new();
    OURS.clauses(flat(report).as_bytes(), &mut |clause| {
        let findings = OURS.named(clause, |_| true);
        if !findings.is_empty() {
            clauses.push(Clause { text: String::from_utf8_lossy(clause).into_owned(), denied: OURS.denies(clause), findings });
        }
    });
    clauses
}

fn flat(report: &str) -> String {
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Which findings a report affirms, by the rules of prompts/findings.yaml; no trained classifier.
pub fn label_report(report: &str) -> [bool; 18] {
    let mut labels = [false; 18];
    OURS.clauses(flat(report).as_bytes(), &mut |clause| {
        if !OURS.denies(clause) {
            OURS.named(clause, |finding| !labels[finding]).into_iter().for_each(|finding| labels[finding] = true);
        }
    });
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(report: &str) -> Vec<&'static str> {
        label_report(report).iter().zip(FINDINGS).filter(|(label, _)| **label).map(|(_, name)| name).collect()
    }

    #[test]
    fn affirmed_findings_are_found_and_denied_ones_are_not() {
        let report = "Heart size is increased. Pericardial effusion was not detected. Pleural effusion measuring 22 mm is observed on the left. No nodule was seen.";
        assert_eq!(names(report), ["Cardiomegaly", "Pleural effusion"]);
        assert!(names("Heart size is normal. Trachea is open. Lungs are clear.").is_empty());
        assert_eq!(names("Both coronary arteries hold calcific plaques."), ["Coronary artery wall calcification"]);
    }

    #[test]
    fn a_denial_reaches_over_its_clause_and_no_further() {
        assert_eq!(names("There is no pleural effusion, but atelectasis is seen."), ["Atelectasis"]);
        assert_eq!(names("Aeration is normal and a few bronchiectatic changes are seen."), ["Bronchiectasis"]);
        assert_eq!(names("Emphysema is seen and no consolidation was detected."), ["Emphysema"]);
        assert!(names("No nodule, opacity or consolidation and no bronchiectasis.").is_empty());
    }

    #[test]
    fn what_only_looks_like_a_denial_is_none() {
        assert_eq!(names("Lymph nodes that do not reach a pathological size are seen at the hilum."), ["Lymphadenopathy"]);
        assert_eq!(names("A consolidation cannot be excluded in the left lower lobe."), ["Consolidation"]);
        assert_eq!(names("A nodule not seen in the previous examination is present."), ["Lung nodule"]);
        assert_eq!(names("The heart looks a good deal larger than normal."), ["Cardiomegaly"]);
        assert_eq!(names("Emphysema shows no significant change."), ["Emphysema"]);
    }

    #[test]
    fn what_is_over_does_not_count() {
        assert!(names("The consolidation described before is no longer seen.").is_empty());
        assert!(names("Ground glass areas have completely regressed.").is_empty());
        assert!(names("In a patient with a history of pleural effusion, the lungs are clear.").is_empty());
        assert_eq!(names("The consolidation has partly regressed."), ["Consolidation"]);
    }

    #[test]
    fn a_word_within_a_word_or_of_another_organ_is_not_the_finding() {
        assert!(names("The appearance is consistent with a cyst.").is_empty());
        assert!(names("A hypodense nodule is seen in the right lobe of the thyroid.").is_empty());
        assert_eq!(names("Fibroatelectatic bands are seen on both sides."), ["Pulmonary fibrotic sequela"]);
        assert_eq!(names("Calcified plaques are seen in the coronary vascular structures."), ["Coronary artery wall calcification"]);
    }
}
