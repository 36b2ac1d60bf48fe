//! ROUGE-L (Lin, 2004): pycocoevalcap's (beta 1.2) and Google's rouge-score (beta 1).

use std::hash::Hash;

use rustc_hash::FxHashMap;

const BETA: f64 = 1.2;

/// pycocoevalcap's F-measure of the longest common subsequence.
pub fn rouge_l<T: Eq + Hash>(hypothesis: &[T], reference: &[T]) -> f64 {
    // split(" ") of an empty text gives one empty token
    let length = |tokens: &[T]| tokens.len().max(1) as f64;
    let both_empty = hypothesis.is_empty() && reference.is_empty();
    let common = if both_empty { 1.0 } else { longest_common_subsequence(hypothesis, reference) as f64 };
    let (precision, recall) = (common / length(hypothesis), common / length(reference));
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// rouge-score's F-measure of the longest common subsequence; 0 where a text is empty.
pub fn rouge_l_google<T: Eq + Hash>(hypothesis: &[T], reference: &[T]) -> f64 {
    let common = longest_common_subsequence(hypothesis, reference) as f64;
    if common == 0.0 { 0.0 } else { 2.0 * common / (hypothesis.len() + reference.len()) as f64 }
}

/// Bit-parallel (Hyyrö, 2004): one pass over `b`, 64 tokens of `a` a word.
fn longest_common_subsequence<T: Eq + Hash>(a: &[T], b: &[T]) -> usize {
    let words = a.len().div_ceil(64);
    let mut places: FxHashMap<&T, Vec<u64>> = FxHashMap::default();
    for (index, token) in a.iter().enumerate() {
        places.entry(token).or_insert_with(|| vec![0; words])[index / 64] |= 1 << (index % 64);
    }
    let mut row = vec![u64::MAX; words];
    for token in b {
        let Some(place) = places.get(token) else { continue };
        let mut carry = 0u64;
        for (row, place) in row.iter_mut().zip(place) {
            let matched = *row & place;
            let (sum, over) = row.overflowing_add(matched);
            let (sum, more) = sum.overflowing_add(carry);
            carry = u64::from(over) + u64::from(more);
            *row = sum | (*row & !place);
        }
    }
    (0..a.len()).filter(|index| row[index / 64] >> (index % 64) & 1 == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bit_parallel_subsequence_equals_the_table() {
        let text = |seed: usize, length: usize| -> Vec<String> { (0..length).map(|i| ((i * i * seed + i) % 7).to_string()).collect() };
        for (la, lb) in [(0, 5), (1, 1), (63, 70), (64, 130), (200, 150)] {
            let (a, b) = (text(3, la), text(5, lb));
            let mut table = vec![vec![0; lb + 1]; la + 1];
            for i in 0..la {
                for j in 0..lb {
                    table[i + 1][j + 1] = if a[i] == b[j] { table[i][j] + 1 } else { table[i][j + 1].max(table[i + 1][j]) };
                }
            }
            assert_eq!(longest_common_subsequence(&a, &b), table[la][lb]);
        }
    }
}
