//! What a report states of findings, where, and whether it contradicts itself.

use std::sync::LazyLock;

use regex::Regex;

use super::findings::{FINDINGS, clauses};

/// A side of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The patient's left.
    Left,
    /// The patient's right.
    Right,
}

/// A finding affirmed or denied in a clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Its place in [`FINDINGS`].
    pub finding: usize,
    /// Affirmed, or denied.
    pub affirmed: bool,
    /// The sides that the clause names; a lingula is left, a middle lobe right.
    pub sides: Vec<Side>,
    /// Regions that the clause names, as bits of [`REGIONS`].
    regions: u32,
    /// Words that narrow what is said, as bits of [`QUALIFIERS`].
    qualifiers: u32,
    /// Whether the clause speaks of no other finding: then its sides are this one's.
    alone: bool,
    /// The clause.
    pub clause: String,
}

/// Regions inside a side: a denial in one says nothing of another.
const REGIONS: [&str; 13] = [
    r"\bupper lobe|\bupper zone",
    r"\bmiddle lobe|\bmiddle zone",
    r"\blower lobe|\blower zone",
    r"\blingul",
    r"\bapi(x|c)",
    r"\bbas(al|e|es)\b",
    r"\bhil(ar|um|us|i)\b",
    r"\baxill",
    r"\bmediastin|paratracheal|subcarinal|prevascular|aortopulmonary",
    r"supraclavicular|\bneck\b|cervical",
    r"\bsegment",
    r"\b(ascending|descending|arch|abdominal)\b",
    r"retrocrural|cardiophrenic|internal mammary|parasternal",
];

/// "No other nodule" denies none that was told; "no enlarged node" denies only enlarged ones.
const QUALIFIERS: [&str; 6] = [
    r"\b(other|another|additional|further|new|newly|else)\b",
    r"\benlarg|\bpatholog|lymphadenopath",
    r"\b(active|acute|current)",
    r"\b(significant|obvious|marked|massive|large|gross)",
    r"\b(solid|calcified|spiculated|suspicious|malignan\w*|metasta\w*|sign\w*|finding\w*|differentiation)\b",
    r"\b(diffuse|widespread|focal|local\w*)\b",
];

/// Denials that hold no word of the finding.
const NORMAL: [(usize, &str); 1] = [(
    2,
    r"\b(heart|cardiac)\b[^.;]{0,20}\bsizes? (is|are)( within)? (normal|natural)|\bheart has a (normal|natural) size|\bsize of the heart is( within)? (normal|natural)",
)];

const LEFT: &str = r"\bleft\b|\bbilateral|\bboth (lungs?|sides|hemithora\w*|pleura\w*|hil\w*|axill\w*|upper|lower|apic\w*)|\blingul";
const RIGHT: &str = r"\bright\b|\bbilateral|\bboth (lungs?|sides|hemithora\w*|pleura\w*|hil\w*|axill\w*|upper|lower|apic\w*)|\bmiddle lobe";
const NEGATED: &str = r"\b(no|not|without|none)\b";
const EARLIER: &str = r"\b(previous|earlier|prior|regress\w*|resol\w*|disappear\w*|described|differentiated|favor)\b";
const IMPOSSIBLE: &str =
    r"\bleft (lung )?middle lobe|middle lobe of (the )?left|\bright (lung )?lingul\w*|lingula\w*( segment)? of (the )?right";

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    sides: [(Side::Left, compile(LEFT)), (Side::Right, compile(RIGHT))],
    regions: REGIONS.map(compile),
    qualifiers: QUALIFIERS.map(compile),
    normal: NORMAL.map(|(finding, pattern)| (finding, compile(pattern))),
    negated: compile(NEGATED),
    earlier: compile(EARLIER),
    impossible: compile(IMPOSSIBLE),
});

struct Patterns {
    sides: [(Side, Regex); 2],
    regions: [Regex; 13],
    qualifiers: [Regex; 6],
    normal: [(usize, Regex); 1],
    negated: Regex,
    earlier: Regex,
    impossible: Regex,
}

fn compile(pattern: &str) -> Regex {
    Regex::new(&format!("(?i){pattern}")).expect("the patterns are fixed and tested")
}

fn bits(patterns: &[Regex], text: &str) -> u32 {
    patterns.iter().enumerate().filter(|(_, pattern)| pattern.is_match(text)).map(|(bit, _)| 1 << bit).sum()
}

/// What a report affirms and denies, in its order.
pub fn read_statements(report: &str) -> Vec<Statement> {
    let statement = |finding: usize, affirmed: bool, alone: bool, clause: &str| Statement {
        finding,
        affirmed,
        alone,
        sides: PATTERNS.sides.iter().filter(|(_, pattern)| pattern.is_match(clause)).map(|(side, _)| *side).collect(),
        regions: bits(&PATTERNS.regions, clause),
        qualifiers: bits(&PATTERNS.qualifiers, clause),
        clause: clause.to_string(),
    };
    let mut found = Vec::new();
    for clause in clauses(report) {
        let alone = clause.findings.len() == 1;
        found.extend(clause.findings.iter().map(|finding| statement(*finding, !clause.denied, alone, &clause.text)));
    }
    for (finding, pattern) in &PATTERNS.normal {
        found.extend(pattern.find_iter(report).map(|hit| statement(*finding, false, true, hit.as_str())));
    }
    found
}

/// Pairs of statements that cannot both hold: (affirmed, denied) of one finding at one place. One pair a finding.
pub fn contradictions(statements: &[Statement]) -> Vec<(&Statement, &Statement)> {
    let of = |finding: usize, affirmed: bool| statements.iter().filter(move |s| s.finding == finding && s.affirmed == affirmed);
    let pair = |finding: usize| {
        of(finding, true).find_map(|affirmed| of(finding, false).find(|denied| excludes(denied, affirmed)).map(|denied| (affirmed, denied)))
    };
    (0..FINDINGS.len()).filter_map(pair).collect()
}

/// Whether a denial leaves no room for what is affirmed.
fn excludes(denied: &Statement, affirmed: &Statement) -> bool {
    let all_sides = denied.sides.is_empty() || denied.sides.len() == 2;
    let sides = all_sides || (affirmed.alone && denied.sides.iter().any(|side| affirmed.sides.contains(side)));
    let regions = denied.regions == 0 || denied.regions & affirmed.regions != 0;
    // "right upper and left lower lobe" does not say which region is on which side
    let told_apart = denied.regions == 0 || affirmed.sides.len() < 2 || affirmed.regions.count_ones() < 2;
    let narrowed =
        denied.qualifiers & !affirmed.qualifiers == 0 && (denied.qualifiers == 0 || !PATTERNS.negated.is_match(&affirmed.clause));
    // what is compared with another examination, or weighed, is not simply denied or affirmed
    let now = ![denied, affirmed].iter().any(|statement| PATTERNS.earlier.is_match(&statement.clause));
    sides && regions && told_apart && narrowed && now
}

/// The sides on which a finding is affirmed, sorted; none where no clause names one.
pub fn sides_of(statements: &[Statement], finding: usize) -> Vec<Side> {
    let affirmed = statements.iter().filter(|statement| statement.affirmed && statement.finding == finding);
    let mut sides: Vec<Side> = affirmed.flat_map(|statement| statement.sides.clone()).collect();
    sides.sort_unstable();
    sides.dedup();
    sides
}

/// Places that no body has: a left middle lobe, a right lingula.
pub fn impossible_sides(report: &str) -> Vec<&str> {
    PATTERNS.impossible.find_iter(report).map(|hit| hit.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contradicted(report: &str) -> Vec<&'static str> {
        let statements = read_statements(report);
        contradictions(&statements).iter().map(|(affirmed, _)| FINDINGS[affirmed.finding]).collect()
    }

    #[test]
    fn a_finding_affirmed_and_denied_is_a_contradiction() {
        assert_eq!(contradicted("There is a left pleural effusion. No pleural effusion is seen."), ["Pleural effusion"]);
        assert_eq!(contradicted("Cardiomegaly is seen. Heart size is normal."), ["Cardiomegaly"]);
        assert_eq!(contradicted("Bilateral pleural effusion is present. No pleural effusion on the right."), ["Pleural effusion"]);
        assert_eq!(contradicted("Mediastinal lymphadenopathy is present. No enlarged lymph node is seen."), ["Lymphadenopathy"]);
        assert!(contradicted("The heart is enlarged. No pleural effusion is seen.").is_empty());
    }

    #[test]
    fn a_denial_elsewhere_or_of_others_is_none() {
        assert!(contradicted("There is a left pleural effusion. No pleural effusion on the right.").is_empty());
        assert!(contradicted("A nodule is seen in the right upper lobe. No nodule is seen in the lower lobes.").is_empty());
        assert!(contradicted("A nodule of 4 mm is seen. No other nodule is found.").is_empty());
        assert!(
            contradicted("Lymph nodes that do not reach a pathological size are seen. No pathological lymph node is found.").is_empty()
        );
    }

    #[test]
    fn sides_are_read_with_their_lobes() {
        let statements =
            read_statements("Consolidation is seen in the lingula. A nodule lies in the middle lobe. Both lungs show emphysema.");
        assert_eq!(sides_of(&statements, 15), [Side::Left]);
        assert_eq!(sides_of(&statements, 9), [Side::Right]);
        assert_eq!(sides_of(&statements, 7), [Side::Left, Side::Right]);
        assert_eq!(
            impossible_sides("Atelectasis in the left middle lobe; the right lingula is open."),
            ["left middle lobe", "right lingula"]
        );
        assert!(impossible_sides("Atelectasis in the right middle lobe and the left lingula.").is_empty());
    }
}
