//! Report-to-volume retrieval (peers.md d).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Recall at K.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalScores {
    /// Volumes N.
    pub volumes: usize,
    /// K -> share of reports whose own volume is among the K best; only K up to N.
    pub recall_at: BTreeMap<usize, f64>,
    /// K -> what chance gives.
    pub chance_at: BTreeMap<usize, f64>,
}

/// scores: N rows of N, row n's own volume is n. Ties go to the lower index, as the peers' stable sort.
pub fn retrieval(scores: &[Vec<f32>]) -> RetrievalScores {
    let volumes = scores.len();
    let rank = |(own, row): (usize, &Vec<f32>)| {
        row.iter().enumerate().filter(|(index, score)| **score > row[own] || (**score == row[own] && *index < own)).count()
    };
    let ranks: Vec<usize> = scores.iter().enumerate().map(rank).collect();
    let kept: Vec<usize> = [1, 5, 10, 50, 100].into_iter().filter(|k| *k <= volumes).collect();
    let recall = |k: &usize| (*k, ranks.iter().filter(|rank| **rank < *k).count() as f64 / volumes.max(1) as f64);
    RetrievalScores {
        volumes,
        recall_at: kept.iter().map(recall).collect(),
        chance_at: kept.iter().map(|k| (*k, *k as f64 / volumes as f64)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let scores = vec![vec![1.0, 0.0], vec![0.5, 0.5]];
        assert_eq!(retrieval(&scores).recall_at, BTreeMap::from([(1, 0.5)]));
    }
}
