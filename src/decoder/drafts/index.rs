//! The training reports' tokens with their suffixes in order: every place where a run of tokens occurs is one range.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::weights;
use crate::{Error, Result};

/// Stands between reports; no tokenizer has so many tokens.
pub(super) const BETWEEN: u32 = u32::MAX;

/// Tokens up to which suffixes are told apart: longer agreement does not make a guess better.
pub(super) const DEPTH: usize = 16;

/// Tokens kept at most (8 MiB in the file): more reports find few phrases more.
const MOST: usize = 1 << 20;

/// Tokens of training reports, and the order of their suffixes.
#[derive(Debug, Clone)]
pub struct DraftIndex {
    /// Reports one after the other, [`BETWEEN`] before, between and after them.
    tokens: Vec<u32>,
    /// Positions in `tokens`, sorted by the [`DEPTH`] tokens that begin there.
    order: Vec<u32>,
    /// Of each id, and of the one behind the last: places in `order` before its own. [`BETWEEN`]'s are the last ones.
    starts: Vec<u32>,
    sha256: Option<String>,
}

/// The places in [`DraftIndex`]'s order where `depth` given tokens occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    pub depth: usize,
    start: usize,
    end: usize,
}

impl Places {
    /// How many.
    pub fn count(self) -> usize {
        self.end - self.start
    }
}

impl DraftIndex {
    /// Of reports' ids without their ending ones; of very many, every n-th.
    pub fn new<'a>(reports: impl ExactSizeIterator<Item = &'a [u32]> + Clone) -> Self {
        let total: usize = reports.clone().map(|report| report.len() + 1).sum();
        let mut tokens = vec![BETWEEN];
        for report in reports.step_by(total.div_ceil(MOST).max(1)) {
            tokens.extend(report);
            tokens.push(BETWEEN);
        }
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        let beginning = |at: u32| &tokens[at as usize..][..DEPTH.min(tokens.len() - at as usize)];
        order.par_sort_unstable_by(|&a, &b| beginning(a).cmp(beginning(b)).then(a.cmp(&b)));
        DraftIndex { starts: starts(&tokens), tokens, order, sha256: None }
    }

    /// Reads what [`Self::save`] wrote, for a tokenizer of `vocabulary` tokens.
    pub fn open(path: &Path, vocabulary: usize) -> Result<Self> {
        let tensors = weights::open(path)?;
        let take = |name: &str| -> Result<Vec<u32>> {
            let tensor = tensors.get(name).ok_or_else(|| Error::file(path, format!("holds no tensor `{name}`")))?;
            tensor.to_vec1().map_err(|e| Error::field(path, name, format!("expected one axis of u32: {e}")))
        };
        let (tokens, order) = (take("tokens")?, take("order")?);
        if let Some(token) = tokens.iter().find(|&&token| token != BETWEEN && token as usize >= vocabulary) {
            return Err(Error::field(path, "tokens", format!("token {token} exceeds the tokenizer's vocabulary of {vocabulary}")));
        }
        if order.len() != tokens.len() || order.iter().any(|&at| at as usize >= tokens.len()) {
            return Err(Error::field(path, "order", format!("expected an order of {} places, found {}", tokens.len(), order.len())));
        }
        Ok(DraftIndex { starts: starts(&tokens), tokens, order, sha256: Some(weights::sha256(path)?) })
    }

    /// Writes it as safetensors.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensor = |values: &[u32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let tensors = BTreeMap::from([("tokens".to_string(), tensor(&self.tokens)?), ("order".to_string(), tensor(&self.order)?)]);
        weights::save(path, &tensors, &HashMap::new())
    }

    /// SHA-256 of the file that it was read from.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// Every place.
    pub(super) fn everywhere(&self) -> Places {
        Places { depth: 0, start: 0, end: self.order.len() }
    }

    /// The token that stands `depth` tokens behind the start of suffix `rank`; none behind the end.
    fn token(&self, rank: usize, depth: usize) -> Option<u32> {
        self.tokens.get(self.order[rank] as usize + depth).copied()
    }

    /// Those of `places` where `token` comes next.
    pub(super) fn narrow(&self, places: Places, token: u32) -> Places {
        let Places { depth, start, end } = places;
        if depth == 0 {
            return self.beginning_with(token);
        }
        let order = &self.order[start..end];
        let next = |at: &u32| self.tokens.get(*at as usize + depth).copied();
        let first = order.partition_point(|at| next(at) < Some(token));
        let count = order[first..].partition_point(|at| next(at) == Some(token));
        Places { depth: depth + 1, start: start + first, end: start + first + count }
    }

    /// Those that begin with `token`.
    fn beginning_with(&self, token: u32) -> Places {
        let before = |id: usize| self.starts[id.min(self.starts.len() - 1)] as usize;
        let [start, end] = match token {
            BETWEEN => [before(usize::MAX), self.order.len()],
            id => [before(id as usize), before(id as usize + 1)],
        };
        Places { depth: 1, start, end }
    }

    /// The tokens that come next at `places`, each with its number of times, by rising id; [`BETWEEN`] where a report ends.
    pub(super) fn next(&self, places: Places) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        let mut rank = places.start;
        while rank < places.end {
            let token = self.token(rank, places.depth);
            let rest = &self.order[rank..places.end];
            let same = rest.partition_point(|at| self.tokens.get(*at as usize + places.depth).copied() == token);
            found.extend(token.map(|token| (token, same)));
            rank += same.max(1);
        }
        found
    }
}

/// See [`DraftIndex::starts`].
fn starts(tokens: &[u32]) -> Vec<u32> {
    let ids = || tokens.iter().filter(|&&token| token != BETWEEN).map(|&token| token as usize);
    let mut starts = vec![0; ids().max().map_or(0, |most| most + 1) + 1];
    ids().for_each(|id| starts[id + 1] += 1);
    for id in 1..starts.len() {
        starts[id] += starts[id - 1];
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORTS: [&[u32]; 3] = [&[5, 6, 7, 8], &[5, 6, 7, 9], &[6, 7, 8]];

    fn places(index: &DraftIndex, tokens: &[u32]) -> Places {
        tokens.iter().fold(index.everywhere(), |places, token| index.narrow(places, *token))
    }

    #[test]
    fn every_run_of_tokens_is_found_as_often_as_it_occurs_with_what_follows() {
        let index = DraftIndex::new(REPORTS.into_iter());
        assert_eq!(index.next(places(&index, &[6, 7])), [(8, 2), (9, 1)]);
        assert_eq!(index.next(places(&index, &[5])), [(6, 2)]);
        assert_eq!(index.next(places(&index, &[7, 8])), [(BETWEEN, 2)]);
        assert_eq!(index.next(places(&index, &[BETWEEN])), [(5, 2), (6, 1)]);
        assert_eq!(places(&index, &[7, 6]).count(), 0);
        assert_eq!([0, 4, 10, BETWEEN - 1].map(|absent| places(&index, &[absent]).count()), [0; 4]);
        assert_eq!([5, 7, 9, BETWEEN].map(|token| places(&index, &[token]).count()), [2, 3, 1, 4]);
    }

    #[test]
    fn counts_equal_those_of_a_search_without_an_index() {
        let text: Vec<u32> = (0..600u32).map(|i| (i * i / 7 + i / 5) % 6).collect();
        let index = DraftIndex::new(text.chunks(50));
        for (start, length) in (0..550).zip([1, 2, 3, 5, 9, 15].into_iter().cycle()).filter(|(start, length)| start % 50 + length <= 50) {
            let run = &text[start..start + length];
            let expected: usize = text.chunks(50).map(|report| report.windows(length).filter(|window| *window == run).count()).sum();
            assert_eq!(places(&index, run).count(), expected, "{start} {length}");
        }
    }

    #[test]
    fn it_survives_its_file_and_one_of_another_tokenizer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drafts.safetensors");
        let index = DraftIndex::new(REPORTS.into_iter());
        index.save(&path).unwrap();
        let back = DraftIndex::open(&path, 10).unwrap();
        assert_eq!((&back.tokens, &back.order), (&index.tokens, &index.order));
        assert_eq!(back.sha256().unwrap(), weights::sha256(&path).unwrap());
        let message = DraftIndex::open(&path, 9).unwrap_err().to_string();
        assert!(message.contains("tokens: token 9 exceeds the tokenizer's vocabulary of 9"), "{message}");
    }
}
