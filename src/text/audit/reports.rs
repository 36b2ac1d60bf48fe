//! Tables of reports, of labelled sentences and of labels, read by their columns' names.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use csv::StringRecord;

use crate::text::{FINDINGS, Labelled, Sections, Structures, report_text};
use crate::{Error, Result};

/// A report, or the given sentences of one.
#[derive(Debug, Clone)]
pub struct Study {
    /// What the table calls it, or its row's number.
    pub name: String,
    /// The report; given sentences joined by blanks.
    pub text: String,
    /// The sentences where the table gives them.
    pub sentences: Option<Vec<String>>,
    /// The structures' names that the table gives each sentence.
    pub expected: Option<Vec<BTreeSet<String>>>,
    /// The 18 labels where the table has them.
    pub labels: Option<[bool; 18]>,
}

/// Characters that are no blanks.
pub(super) fn characters(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).count()
}

impl Study {
    pub(super) fn characters(&self) -> usize {
        characters(&self.text)
    }

    /// The sentences in their order, each with its structures. The authors' splitter finds its own pieces in given sentences too.
    pub(super) fn assign(&self, structures: &Structures) -> Labelled {
        match (&self.sentences, structures) {
            (Some(sentences), Structures::Rules(rules)) => sentences.iter().cloned().zip(rules.label(sentences)).collect(),
            (Some(sentences), Structures::Reference(rules)) => rules.label_all(sentences),
            (None, _) => structures.labelled(&self.text),
        }
    }
}

struct Table {
    columns: HashMap<String, usize>,
    rows: Vec<StringRecord>,
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let fault = |e: csv::Error| Error::file(path, format!("not a table: {e}"));
        let mut reader = csv::Reader::from_path(path).map_err(fault)?;
        let columns = reader.headers().map_err(fault)?.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_string());
        let columns = columns.enumerate().map(|(index, name)| (name, index)).collect();
        Ok(Table { columns, rows: reader.records().collect::<std::result::Result<_, _>>().map_err(fault)? })
    }

    fn cell<'t>(&self, row: &'t StringRecord, column: &str) -> Option<&'t str> {
        row.get(*self.columns.get(column)?)
    }

    fn name(&self, number: usize, row: &StringRecord) -> String {
        let names = ["VolumeName", "Volumename", "AccessionNo"];
        names.iter().find_map(|column| self.cell(row, column)).map_or_else(|| format!("row {}", number + 1), String::from)
    }

    /// The 18 findings of a row, or `None` where the table lacks a column.
    fn labels(&self, row: &StringRecord) -> Option<[bool; 18]> {
        let cells: Option<Vec<bool>> =
            FINDINGS.iter().map(|finding| Some(matches!(self.cell(row, finding)?.trim(), "1" | "1.0"))).collect();
        cells?.try_into().ok()
    }
}

/// The studies of a CSV file with a column report_text, Findings_EN (and Impressions_EN) or Sentence (and Anatomies).
pub fn read_studies(path: &Path) -> Result<Vec<Study>> {
    let table = Table::read(path)?;
    let has = |column: &str| table.columns.contains_key(column);
    if has("Sentence") {
        return Ok(grouped(&table));
    }
    if !has("report_text") && !has("Findings_EN") {
        return Err(Error::file(path, "has no column report_text, Findings_EN or Sentence"));
    }
    let text = |row: &StringRecord| match table.cell(row, "report_text") {
        Some(text) => report_text(text, "", Sections::Findings),
        None => {
            let [findings, impression] = ["Findings_EN", "Impressions_EN"].map(|column| table.cell(row, column).unwrap_or_default());
            report_text(findings, impression, Sections::FindingsAndImpression)
        }
    };
    let study = |(number, row): (usize, &StringRecord)| {
        Some(Study { name: table.name(number, row), text: text(row)?, sentences: None, expected: None, labels: table.labels(row) })
    };
    Ok(table.rows.iter().enumerate().filter_map(study).collect())
}

/// Rows of one name are one study, in the table's order.
fn grouped(table: &Table) -> Vec<Study> {
    let mut studies: Vec<Study> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (number, row) in table.rows.iter().enumerate() {
        let name = table.name(number, row);
        let place = *places.entry(name.clone()).or_insert_with(|| {
            let expected = table.columns.contains_key("Anatomies").then(Vec::new);
            studies.push(Study { name, text: String::new(), sentences: Some(Vec::new()), expected, labels: None });
            studies.len() - 1
        });
        let study = &mut studies[place];
        let sentence = table.cell(row, "Sentence").unwrap_or_default();
        study.text = format!("{} {sentence}", study.text).trim().to_string();
        study.sentences.get_or_insert_default().push(sentence.to_string());
        if let (Some(expected), Some(labels)) = (&mut study.expected, table.cell(row, "Anatomies")) {
            // RadGenome's spelling.
            let structure = |name: &str| name.trim().replace("trachea and bronchie", "trachea_bronchi");
            expected.push(labels.split('|').map(structure).filter(|name| !name.is_empty()).collect());
        }
    }
    studies
}

/// The 18 labels of each study of a CSV file, by name.
pub fn read_labels(path: &Path) -> Result<HashMap<String, [bool; 18]>> {
    let table = Table::read(path)?;
    if let Some(absent) = FINDINGS.iter().find(|finding| !table.columns.contains_key(**finding)) {
        return Err(Error::file(path, format!("has no column {absent}")));
    }
    Ok(table.rows.iter().enumerate().filter_map(|(number, row)| Some((table.name(number, row), table.labels(row)?))).collect())
}
