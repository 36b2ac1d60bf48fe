//! Report-to-volume retrieval (peers.md d).

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// Recall at K.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalScores {
    /// Volumes N.
    pub volumes: usize,
    /// K -> share of reports whose own volume is among the K best; only K up to N. Another volume with the same report is wrong (CT-CLIP's).
    pub recall_at: BTreeMap<usize, f64>,
    /// The same where any volume with the same report is right: reconstructions of one scan, reports that read alike.
    pub recall_at_same_report: BTreeMap<usize, f64>,
    /// Reports that are not the only one of their wording.
    pub shared_reports: usize,
    /// K -> what chance gives.
    pub chance_at: BTreeMap<usize, f64>,
}

/// scores: N rows of N, row n's own volume is n; `reports`: N texts. Ties go to the lower index, as the peers' stable sort.
pub fn retrieval(scores: &[Vec<f32>], reports: &[&str]) -> RetrievalScores {
    let volumes = scores.len();
    let rank = |row: &[f32], own: usize| {
        row.iter().enumerate().filter(|(index, score)| **score > row[own] || (**score == row[own] && *index < own)).count()
    };
    let mut alike: HashMap<&str, Vec<usize>> = HashMap::new();
    reports.iter().enumerate().for_each(|(index, report)| alike.entry(report).or_default().push(index));
    let rows = || scores.iter().enumerate();
    let own: Vec<usize> = rows().map(|(index, row)| rank(row, index)).collect();
    let best = |(index, row): (usize, &Vec<f32>)| alike[reports[index]].iter().map(|other| rank(row, *other)).min().unwrap_or(volumes);
    let any: Vec<usize> = rows().map(best).collect();
    let kept: Vec<usize> = [1, 5, 10, 50, 100].into_iter().filter(|k| *k <= volumes).collect();
    let recall = |ranks: &[usize]| {
        let share = |k: usize| ranks.iter().filter(|rank| **rank < k).count() as f64 / volumes.max(1) as f64;
        kept.iter().map(|k| (*k, share(*k))).collect()
    };
    RetrievalScores {
        volumes,
        recall_at: recall(&own),
        recall_at_same_report: recall(&any),
        shared_reports: alike.values().map(Vec::len).filter(|count| *count > 1).sum(),
        chance_at: kept.iter().map(|k| (*k, *k as f64 / volumes as f64)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let scores = vec![vec![1.0, 0.0], vec![0.5, 0.5]];
        assert_eq!(retrieval(&scores, &["a", "b"]).recall_at, BTreeMap::from([(1, 0.5)]));
    }

    #[test]
    fn a_volume_with_the_same_report_is_wrong_or_right_by_definition() {
        let scores = vec![vec![0.5, 0.9, 0.1], vec![0.9, 0.5, 0.1], vec![0.9, 0.1, 0.5]];
        let found = retrieval(&scores, &["clear", "clear", "nodule"]);
        assert_eq!((found.recall_at[&1], found.recall_at_same_report[&1], found.shared_reports), (0.0, 2.0 / 3.0, 2));
    }
}
