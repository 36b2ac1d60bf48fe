//! METEOR (Lavie and Agarwal, 2007) as NLTK computes it: equal words, then equal stems, then synonyms of stems, each matched from the end.

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::porter::porter_stem;
use super::vocabulary::Vocabulary;
use super::wordnet::WordNet;
use crate::Result;

// NLTK's defaults
const ALPHA: f64 = 0.9;
const BETA: i32 = 3;
const GAMMA: f64 = 0.5;

/// What METEOR knows of the words of a vocabulary.
#[derive(Debug)]
pub struct Meteor {
    /// A word's stem.
    stems: Vec<u32>,
    /// A stem's synonyms among the stems, itself included.
    synonyms: Vec<Vec<u32>>,
}

impl Meteor {
    /// Prepares a vocabulary of lower-case words. Without a dictionary each stem is its own only synonym.
    pub fn new(words: &[String], wordnet: Option<&WordNet>) -> Result<Self> {
        let named: Vec<String> = words.par_iter().map(|word| porter_stem(word)).collect();
        let mut known = Vocabulary::default();
        let stems = named.iter().map(|stem| known.id(stem)).collect();
        // NLTK hands the stems, not the words, from the second to the third round.
        let synonyms = |(id, stem): (usize, &String)| -> Result<Vec<u32>> {
            let found = wordnet.map(|wordnet| wordnet.synonyms(stem)).transpose()?.unwrap_or_default();
            let mut ids: Vec<u32> = found.iter().filter_map(|word| known.get(word)).chain([id as u32]).collect();
            ids.sort_unstable();
            ids.dedup();
            Ok(ids)
        };
        let synonyms = known.words().par_iter().enumerate().map(synonyms).collect::<Result<_>>()?;
        Ok(Meteor { stems, synonyms })
    }

    /// METEOR of words by number.
    pub fn score(&self, hypothesis: &[u32], reference: &[u32]) -> f64 {
        let matches = self.align(hypothesis, reference);
        if matches.is_empty() {
            return 0.0;
        }
        let count = matches.len() as f64;
        let (precision, recall) = (count / hypothesis.len() as f64, count / reference.len() as f64);
        let mean = precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall);
        let apart = |pair: &[(usize, usize)]| pair[1].0 != pair[0].0 + 1 || pair[1].1 != pair[0].1 + 1;
        let chunks = 1 + matches.windows(2).filter(|pair| apart(pair)).count();
        (1.0 - GAMMA * (chunks as f64 / count).powi(BETA)) * mean
    }

    /// Places in hypothesis and reference that are matched, by the hypothesis's.
    fn align(&self, hypothesis: &[u32], reference: &[u32]) -> Vec<(usize, usize)> {
        let numbered = |words: &[u32]| words.iter().copied().enumerate().collect::<Vec<_>>();
        let (mut own, mut other, mut matches) = (numbered(hypothesis), numbered(reference), Vec::new());
        match_round(&mut own, &mut other, &mut matches, None);
        for word in own.iter_mut().chain(&mut other) {
            word.1 = self.stems[word.1 as usize];
        }
        match_round(&mut own, &mut other, &mut matches, None);
        match_round(&mut own, &mut other, &mut matches, Some(&self.synonyms));
        matches.sort_unstable();
        matches
    }
}

/// A word and its place in its text.
type Placed = (usize, u32);

/// From the last word on, each takes the last free place of the reference that holds it or a synonym; what is matched is taken out.
fn match_round(own: &mut Vec<Placed>, other: &mut Vec<Placed>, matches: &mut Vec<(usize, usize)>, synonyms: Option<&[Vec<u32>]>) {
    let mut places: FxHashMap<u32, Vec<usize>> = FxHashMap::default();
    other.iter().for_each(|(place, word)| places.entry(*word).or_default().push(*place));
    let mut unmatched = Vec::new();
    for (place, word) in own.iter().rev() {
        let equals = synonyms.map_or(std::slice::from_ref(word), |synonyms| &synonyms[*word as usize]);
        let last = equals.iter().filter_map(|word| Some((*places.get(word)?.last()?, *word))).max();
        match last {
            Some((reference, word)) => {
                places.get_mut(&word).map(Vec::pop);
                matches.push((*place, reference));
            }
            None => unmatched.push((*place, *word)),
        }
    }
    unmatched.reverse();
    *own = unmatched;
    let free: FxHashSet<usize> = places.into_values().flatten().collect();
    other.retain(|(place, _)| free.contains(place));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of both texts by number, and METEOR without synonyms.
    fn meteor(hypothesis: &str, reference: &str) -> f64 {
        let mut words = Vocabulary::default();
        let [own, other] = [hypothesis, reference].map(|text| text.split(' ').map(|word| words.id(word)).collect::<Vec<_>>());
        Meteor::new(words.words(), None).unwrap().score(&own, &other)
    }

    #[test]
    fn stems_match_and_chunks_are_punished() {
        // 4 of 4 words in one chunk: 1 - 0.5 / 64
        assert!((meteor("no pleural effusions seen", "no pleural effusion seen") - (1.0 - 0.5 / 64.0)).abs() < 1e-12);
        // the same words in two chunks: 1 - 0.5 / 8
        assert!((meteor("effusion seen no pleural", "no pleural effusion seen") - (1.0 - 0.5 / 8.0)).abs() < 1e-12);
        assert_eq!(meteor("clear lungs", "no effusion"), 0.0);
    }
}
