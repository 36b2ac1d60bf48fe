//! How the labeller agrees with a table's labels.

use std::fmt;

use serde::Serialize;

use crate::Result;
use crate::text::{FINDINGS, Labeller};

use super::{Agreement, Study};

/// The labeller against labels.
#[derive(Debug, Clone, Serialize)]
pub struct LabelAudit {
    /// The labeller's name.
    pub labeller: String,
    /// Reports compared.
    pub reports: usize,
    /// Finding by finding.
    pub findings: Vec<(&'static str, Agreement)>,
    /// The mean of the findings' F1; findings that are neither found nor expected do not count.
    pub macro_f1: f64,
    /// F1 of all labels together.
    pub micro_f1: f64,
}

/// Compares a labeller with the studies' own labels; studies without labels do not count.
pub fn audit_labels<'a>(studies: impl IntoIterator<Item = &'a Study>, labeller: &Labeller) -> Result<LabelAudit> {
    let labelled: Vec<(&str, [bool; 18])> = studies.into_iter().filter_map(|study| Some((study.text.as_str(), study.labels?))).collect();
    let found = labeller.label(&labelled.iter().map(|(text, _)| *text).collect::<Vec<_>>())?;
    let mut findings: Vec<(&'static str, Agreement)> = FINDINGS.iter().map(|name| (*name, Agreement::default())).collect();
    for ((_, expected), found) in labelled.iter().zip(found) {
        let both = found.into_iter().zip(*expected);
        findings.iter_mut().zip(both).for_each(|((_, counts), (found, expected))| counts.count(found, expected));
    }
    let scores: Vec<f64> = findings.iter().map(|(_, counts)| counts.f1()).filter(|f1| !f1.is_nan()).collect();
    let micro = Agreement::sum(findings.iter().map(|(_, counts)| counts));
    let macro_f1 = scores.iter().sum::<f64>() / scores.len() as f64;
    Ok(LabelAudit { labeller: labeller.name().to_string(), reports: labelled.len(), findings, macro_f1, micro_f1: micro.f1() })
}

impl fmt::Display for LabelAudit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{}, {} reports", self.labeller, self.reports)?;
        writeln!(f, "{:<36}{:>9}{:>11}{:>8}{:>8}", "finding", "labelled", "precision", "recall", "F1")?;
        for (name, counts) in &self.findings {
            let labelled = counts.hit + counts.missed;
            writeln!(f, "{name:<36}{labelled:>9}{:>11.3}{:>8.3}{:>8.3}", counts.precision(), counts.recall(), counts.f1())?;
        }
        writeln!(f, "macro F1 {:.4}, micro F1 {:.4}", self.macro_f1, self.micro_f1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_compared_finding_by_finding() {
        let study = |text: &str, labels: [bool; 18]| Study {
            name: String::new(),
            text: text.to_string(),
            sentences: None,
            expected: None,
            labels: Some(labels),
        };
        let (mut emphysema, mut both) = ([false; 18], [false; 18]);
        emphysema[7] = true;
        (both[7], both[8]) = (true, true);
        let studies = [study("Emphysema is seen.", emphysema), study("Emphysema and a consolidation are seen.", both)];
        let audit = audit_labels(&studies, &Labeller::Rules).unwrap();
        // Emphysema 2 of 2, atelectasis missed, consolidation extra.
        assert_eq!(audit.findings[7].1, Agreement { hit: 2, extra: 0, missed: 0 });
        assert!((audit.micro_f1 - 2.0 * 2.0 / (2.0 * 2.0 + 2.0)).abs() < 1e-12 && (audit.macro_f1 - 1.0 / 3.0).abs() < 1e-12);
    }
}
