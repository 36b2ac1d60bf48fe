//! Sentences that come with their structure (RadGenome-ChestCT), in place of the rules.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::{Error, Result};

use super::Dataset;
use super::table::rows;

/// Studies' texts by structure.
#[derive(Debug, Default)]
pub struct StructureTexts {
    texts: HashMap<String, BTreeMap<String, String>>,
    /// Anatomies of the table that are none of the structures, and how many sentences each has.
    pub unknown: BTreeMap<String, usize>,
    /// Row that cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// Reads a CSV with the columns Volumename, Anatomy (or Anatomies, several separated by a bar) and Sentence. `structures`: the names in use; the
/// table's `trachea and bronchie` is `trachea_bronchi`.
pub fn read_structure_texts(path: &Path, structures: &[String]) -> Result<StructureTexts> {
    let mut read = StructureTexts::default();
    for (line, row) in rows(path, &["Volumename", "Sentence"], &["Anatomy", "Anatomies"])? {
        let row = match row {
            Ok(row) => row,
            Err(why) => {
                read.unreadable.push((format!("{}: row {line}", path.display()), why));
                continue;
            }
        };
        let anatomies = row.get("Anatomy").or_else(|| row.get("Anatomies"));
        let anatomies = anatomies.ok_or_else(|| Error::field(path, "Anatomy", "no such column"))?;
        let study = read.texts.entry(bare(&row["Volumename"])).or_default();
        for anatomy in anatomies.split('|').map(str::trim) {
            let name = structure(anatomy);
            if structures.contains(&name) {
                let text = study.entry(name).or_default();
                *text = format!("{text} {}", row["Sentence"].trim()).trim().to_string();
            } else {
                *read.unknown.entry(anatomy.to_string()).or_default() += 1;
            }
        }
    }
    if read.texts.values().all(BTreeMap::is_empty) {
        let unknown = read.unknown.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::field(path, "Anatomy", format!("none is a structure in use ({}); found {unknown}", structures.join(", "))));
    }
    Ok(read)
}

fn bare(volume: &str) -> String {
    volume.trim().trim_end_matches(".gz").trim_end_matches(".nii").to_string()
}

/// RadGenome's spelling of a structure.
fn structure(anatomy: &str) -> String {
    match anatomy {
        "trachea and bronchie" => "trachea_bronchi".to_string(),
        other => other.to_string(),
    }
}

impl StructureTexts {
    /// Gives each study its texts and returns how many studies the table does not have: the rules read those.
    pub fn attach(&self, dataset: &mut Dataset) -> usize {
        let mut without = 0;
        for study in &mut dataset.studies {
            study.structure_texts = self.texts.get(&study.name).cloned();
            if study.structure_texts.is_none() {
                without += 1;
                study.notices.push("not in the table of structure texts: its report is split by the rules".to_string());
            }
        }
        without
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(table: &str) -> Result<StructureTexts> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regions.csv");
        std::fs::write(&path, table).unwrap();
        read_structure_texts(&path, &["lung", "heart", "trachea_bronchi"].map(String::from))
    }

    #[test]
    fn sentences_are_joined_by_structure_and_unknown_anatomies_are_counted() {
        let table = "Volumename,Anatomy,Sentence\na_1_a_1.nii.gz,lung,One.\na_1_a_1.nii.gz,heart|lung,Two.\na_1_a_1.nii.gz,trachea and bronchie,Three.\na_1_a_1.nii.gz,spleen,Four.\n";
        let texts = read(table).unwrap();
        let own = &texts.texts["a_1_a_1"];
        assert_eq!((own["lung"].as_str(), own["heart"].as_str(), own["trachea_bronchi"].as_str()), ("One. Two.", "Two.", "Three."));
        assert_eq!(texts.unknown, BTreeMap::from([("spleen".to_string(), 1)]));
    }

    #[test]
    fn a_table_of_other_structures_or_without_a_column_is_refused() {
        assert!(read("Volumename,Anatomy,Sentence\na,spleen,x\n").unwrap_err().to_string().contains("Anatomy: none is a structure in use"));
        assert!(read("Volumename,Region,Sentence\na,lung,x\n").unwrap_err().to_string().contains("Anatomy: no such column"));
    }
}
