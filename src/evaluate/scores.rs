//! Where scores gather: of the corpus, and what each study contributes.

use std::collections::BTreeMap;

/// Scores of a corpus by name, and the studies' values of those that are means over studies.
#[derive(Debug)]
pub(super) struct Scores {
    /// By name and convention.
    pub(super) corpus: BTreeMap<String, f64>,
    /// A study's values by the same names.
    pub(super) studies: Vec<BTreeMap<String, f64>>,
}

impl Scores {
    pub(super) fn new(studies: usize) -> Self {
        Scores { corpus: BTreeMap::new(), studies: vec![BTreeMap::new(); studies] }
    }

    /// A score of the whole corpus.
    pub(super) fn add(&mut self, name: impl Into<String>, value: f64) {
        self.corpus.insert(name.into(), value);
    }

    /// A score that is the mean of the studies' values, in their order.
    pub(super) fn add_mean(&mut self, name: &str, values: impl IntoIterator<Item = f64>) {
        let values: Vec<f64> = values.into_iter().collect();
        self.add(name, super::mean(&values));
        self.studies.iter_mut().zip(values).for_each(|(study, value)| {
            study.insert(name.to_string(), value);
        });
    }
}
