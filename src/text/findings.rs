//! The 18 findings of CT-RATE, and a rule labeller for them.

use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

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
pub const LABELLER: &str = "ctscribe rules 1";

/// A clause speaks of a finding if this matches.
const PATTERNS: [&str; 18] = [
    r"catheter|pacemaker|\bpace\b|prosthe|stent\b|sternotomy|surgical material|metallic|suture|\bport\b|\btube\b|medical material|device|\bclips?\b",
    r"(aort|arterial|vascular|carotid|subclavian).*(calcifi|atheroma|plaque)|(calcifi|atheroma|plaque).*(aort|arterial|vascular|carotid|subclavian)",
    r"cardiomegaly|heart (size|contour)?.*(increased|enlarged|larger)|cardiac.*(increased|enlarged)|enlarged heart|cardiothoracic.*increased",
    r"pericardial.*(effusion|fluid)|effusion.*pericardi",
    r"coronary.*(calcifi|atheroma|plaque|stent)|(calcifi|atheroma|plaque).*coronary",
    r"hiatal.*hernia|hiatus hernia|hernia.*hiat",
    r"lymphadenopath|enlarged.*lymph|lymph nodes?.*(enlarged|pathological(ly)? (size|enlarged)|short (axis|diameter))",
    r"emphysem|\bbulla",
    r"atelecta",
    r"nodul",
    r"ground.?glass|opacit|infiltrat|density increase",
    r"fibrotic|fibrosis|sequela",
    r"pleural.*(effusion|fluid)|hydrothorax|effusion.*(hemithora|pleura)",
    r"mosaic",
    r"peribronchial|bronchial wall thick|thickening of the bronchial wall",
    r"consolidat",
    r"bronchiecta",
    r"interlobular|septal thick",
];

static COMPILED: LazyLock<Vec<Regex>> = LazyLock::new(|| PATTERNS.iter().map(|pattern| compile(pattern)).collect());
static NEGATION: LazyLock<Regex> = LazyLock::new(|| {
    compile(r"\b(no|not|without|neither|absence of|free of|negative for|normal|natural|unremarkable|preserved|resolved|has disappeared)\b")
});
static CLAUSE: LazyLock<Regex> = LazyLock::new(|| compile(r"[.;!?]\s+|\bhowever\b|\bbut\b|\balthough\b"));

fn compile(pattern: &str) -> Regex {
    RegexBuilder::new(pattern).case_insensitive(true).build().expect("the labeller's patterns are fixed and tested")
}

/// Which findings a report affirms: a clause that names the finding and holds no negation. Rules, not a trained classifier.
pub fn label_report(report: &str) -> [bool; 18] {
    let mut labels = [false; 18];
    let clauses: Vec<&str> = CLAUSE.split(report).filter(|clause| !NEGATION.is_match(clause)).collect();
    for (label, pattern) in labels.iter_mut().zip(COMPILED.iter()) {
        *label = clauses.iter().any(|clause| pattern.is_match(clause));
    }
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
        assert_eq!(names("Calcific plaques are observed in the coronary arteries."), ["Coronary artery wall calcification"]);
    }
}
