//! How rules read a table of reports: what they cover, and how they agree with labels.

mod labels;
mod page;
mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::structures::{Labelled, Structures};

pub use labels::{LabelAudit, audit_labels};
pub use reports::{Study, read_labels, read_studies};

/// Labels found and expected: in both, found only, expected only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Agreement {
    /// Found and expected.
    pub hit: usize,
    /// Found only.
    pub extra: usize,
    /// Expected only.
    pub missed: usize,
}

impl Agreement {
    /// Counts one label.
    pub fn count(&mut self, found: bool, expected: bool) {
        match (found, expected) {
            (true, true) => self.hit += 1,
            (true, false) => self.extra += 1,
            (false, true) => self.missed += 1,
            (false, false) => {}
        }
    }

    /// Share of what was found that was expected.
    pub fn precision(&self) -> f64 {
        share(self.hit, self.hit + self.extra)
    }

    /// Share of what was expected that was found.
    pub fn recall(&self) -> f64 {
        share(self.hit, self.hit + self.missed)
    }

    /// Their harmonic mean.
    pub fn f1(&self) -> f64 {
        share(2 * self.hit, 2 * self.hit + self.extra + self.missed)
    }

    /// All labels counted together.
    pub fn sum<'a>(parts: impl Iterator<Item = &'a Agreement>) -> Agreement {
        parts.fold(Agreement::default(), |sum, part| Agreement {
            hit: sum.hit + part.hit,
            extra: sum.extra + part.extra,
            missed: sum.missed + part.missed,
        })
    }
}

/// NaN where there is nothing to share.
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// What the rules make of a table's sentences.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// Reports of the table.
    pub reports: usize,
    /// Their sentences.
    pub sentences: usize,
    /// Sentences of no structure, of one, and of several.
    pub by_count: [usize; 3],
    /// Characters of the reports, blanks not counted.
    pub characters: usize,
    /// Of these, how many stand in no sentence (the authors' splitter drops marks and long reports' ends).
    pub characters_lost: usize,
    /// The structures in the order of the queries.
    pub structures: Vec<StructureAudit>,
    /// All structures' labels together, where the table has labels.
    pub micro: Option<Agreement>,
    /// Sentences of no structure with how often each comes, the commonest first.
    pub unassigned: Vec<(String, usize)>,
    /// Every report's sentences with their structures.
    #[serde(skip)]
    pub assigned: Vec<(String, Labelled)>,
}

/// A structure's share of a table.
#[derive(Debug, Clone, Serialize)]
pub struct StructureAudit {
    /// Its name.
    pub name: String,
    /// Sentences that speak of it.
    pub sentences: usize,
    /// Reports that mention it.
    pub reports: usize,
    /// Agreement with the table's labels, where it has any.
    pub agreement: Option<Agreement>,
}

/// Reads every study by the rules of `structures`.
pub fn audit_structures(structures: &Structures, studies: &[Study]) -> Audit {
    let assigned: Vec<(String, Labelled)> = studies.iter().map(|study| (study.name.clone(), study.assign(structures))).collect();
    let all = || assigned.iter().flat_map(|(_, sentences)| sentences);
    let with = |least: usize, most: usize| all().filter(|(_, own)| (least..=most).contains(&own.len())).count();
    let characters = studies.iter().map(Study::characters).sum::<usize>();
    let kept: usize = all().map(|(sentence, _)| reports::characters(sentence)).sum();
    let labelled = studies.iter().any(|study| study.expected.is_some());
    let one = |index: usize, name: &str| StructureAudit {
        name: name.to_string(),
        sentences: all().filter(|(_, own)| own.contains(&index)).count(),
        reports: assigned.iter().filter(|(_, sentences)| sentences.iter().any(|(_, own)| own.contains(&index))).count(),
        agreement: labelled.then(|| agreement(studies, &assigned, index, name)),
    };
    let structures: Vec<StructureAudit> = structures.names().into_iter().enumerate().map(|(index, name)| one(index, name)).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    all().filter(|(_, own)| own.is_empty()).for_each(|(sentence, _)| *counts.entry(sentence.as_str()).or_default() += 1);
    let mut unassigned: Vec<(String, usize)> = counts.into_iter().map(|(sentence, count)| (sentence.to_string(), count)).collect();
    unassigned.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Audit {
        reports: studies.len(),
        sentences: all().count(),
        by_count: [with(0, 0), with(1, 1), with(2, usize::MAX)],
        characters,
        characters_lost: characters.saturating_sub(kept),
        micro: labelled.then(|| Agreement::sum(structures.iter().filter_map(|structure| structure.agreement.as_ref()))),
        structures,
        unassigned,
        assigned,
    }
}

fn agreement(studies: &[Study], assigned: &[(String, Labelled)], index: usize, name: &str) -> Agreement {
    let mut agreement = Agreement::default();
    for (study, (_, sentences)) in studies.iter().zip(assigned) {
        let none = Vec::new();
        for ((_, own), expected) in sentences.iter().zip(study.expected.as_ref().unwrap_or(&none)) {
            agreement.count(own.contains(&index), expected.contains(name));
        }
    }
    agreement
}

/// The names that a table's labels use and the structures do not.
pub fn unknown_labels(structures: &Structures, studies: &[Study]) -> Vec<String> {
    let names = structures.names();
    let labels: BTreeSet<&String> = studies.iter().filter_map(|study| study.expected.as_ref()).flatten().flatten().collect();
    labels.into_iter().filter(|label| !names.contains(&label.as_str())).cloned().collect()
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let percent = |part: usize, whole: usize| 100.0 * share(part, whole);
        let [none, one, several] = self.by_count;
        writeln!(
            f,
            "{} reports, {} sentences, {} characters ({} in no sentence)",
            self.reports, self.sentences, self.characters, self.characters_lost
        )?;
        let shares = [none, one, several].map(|count| percent(count, self.sentences));
        writeln!(
            f,
            "of no structure {none} ({:.1} %), of one {one} ({:.1} %), of several {several} ({:.1} %)",
            shares[0], shares[1], shares[2]
        )?;
        let scores =
            |agreement: &Option<Agreement>| agreement.map_or(String::new(), |a| format!("{:>11.3}{:>8.3}", a.precision(), a.recall()));
        let heads = if self.micro.is_some() { "  precision  recall" } else { "" };
        writeln!(f, "\n{:<26}{:>10}{:>12}{heads}", "structure", "sentences", "of reports")?;
        for structure in &self.structures {
            let StructureAudit { name, sentences, reports, agreement } = structure;
            writeln!(f, "{name:<26}{sentences:>10}{:>10.1} %{}", percent(*reports, self.reports), scores(agreement))?;
        }
        if self.micro.is_some() {
            writeln!(f, "{:<48}{}", "micro", scores(&self.micro))?;
        }
        writeln!(f, "\nof no structure, the commonest:")?;
        self.unassigned.iter().take(20).try_for_each(|(sentence, count)| writeln!(f, "{count:>5}  {sentence}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn studies(text: &str) -> Vec<Study> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        std::fs::write(&path, text).unwrap();
        read_studies(&path).unwrap()
    }

    #[test]
    fn the_counts_add_up_and_labels_are_compared() {
        let table = "Volumename,Anatomies,Sentence\na,heart|mediastinum,Heart size is normal.\nb,lung,Both lungs are clear.\na,bone,Contrast was given.\n";
        let studies = studies(table);
        let structures = Structures::load("ours").unwrap();
        assert!(unknown_labels(&structures, &studies).is_empty());
        let audit = audit_structures(&structures, &studies);
        assert_eq!((audit.reports, audit.sentences, audit.by_count, audit.characters_lost), (2, 3, [1, 2, 0], 0));
        assert_eq!(audit.micro, Some(Agreement { hit: 2, extra: 0, missed: 2 }));
        assert_eq!(audit.unassigned, [("Contrast was given.".to_string(), 1)]);
        assert!(audit.to_string().contains("micro"));
    }

    #[test]
    fn the_page_holds_every_sentence_and_escapes_it() {
        let studies = studies("AccessionNo,report_text\nx,Heart size <5 cm. Contrast was given.\n");
        let audit = audit_structures(&Structures::load("ours").unwrap(), &studies);
        let page = audit.page("a table").unwrap();
        assert!(page.contains("Heart size &lt;5 cm.") && page.contains("Contrast was given.") && !page.contains("http"));
    }

    #[test]
    fn findings_and_impressions_make_one_report_and_a_table_without_text_is_refused() {
        let both = studies("VolumeName,Findings_EN,Impressions_EN\nx,Heart is normal.,No nodule.\ny,Not given.,\n");
        assert_eq!((both.len(), both[0].text.as_str()), (1, "Heart is normal. No nodule."));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        std::fs::write(&path, "a,b\n1,2\n").unwrap();
        let message = read_studies(&path).unwrap_err().to_string();
        assert!(message.contains("no column report_text, Findings_EN or Sentence"), "{message}");
    }
}
