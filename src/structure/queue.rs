//! Our queue of negatives: frozen features, kept diverse (method.md, stage one, 8); a plain first-in-first-out one to compare.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use ctscribe_ops::transfers::{self, host_values};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which queue of negatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum QueueConfig {
    /// Diversity-enhanced: see [`DiversityQueue`].
    Ours {
        /// Entries a structure.
        length: usize,
        /// From this cosine on, a text replaces the entry it resembles.
        same_cosine: f64,
    },
    /// First in, first out.
    Fifo {
        /// Entries a structure.
        length: usize,
    },
    /// The authors' queue of projected texts.
    Reference {
        /// Entries a structure.
        length: usize,
    },
}

#[derive(Debug, Clone)]
struct Entry {
    feature: Vec<f32>,
    /// When it entered.
    born: u64,
    /// Largest cosine to any entry that has stood beside it.
    redundancy: f32,
}

/// A queue of frozen, unit text features a structure. Starts empty. A text whose largest cosine to the queue is below `same_cosine`
/// enters, else it replaces the entry it resembles; when full, the oldest of the most redundant tenth leaves.
#[derive(Debug, Clone)]
pub struct DiversityQueue {
    length: usize,
    /// `None`: first in, first out.
    same_cosine: Option<f64>,
    entries: Vec<Vec<Entry>>,
    clock: u64,
}

/// The queue of a run.
#[derive(Debug, Clone)]
pub enum Queue {
    /// Ours or first-in-first-out: frozen features.
    Features(DiversityQueue),
    /// The reference's.
    Reference(super::ReferenceQueue),
}

impl DiversityQueue {
    /// An empty queue for S structures; `same_cosine` absent: first in, first out.
    pub fn new(structures: usize, length: usize, same_cosine: Option<f64>) -> Self {
        DiversityQueue { length, same_cosine, entries: vec![Vec::new(); structures], clock: 0 }
    }

    /// Takes in a batch: for each study and structure a unit feature, where the report mentions the structure.
    pub fn push(&mut self, features: &[Vec<Option<Vec<f32>>>]) {
        let (length, same_cosine, clock) = (self.length, self.same_cosine, self.clock);
        self.entries.par_iter_mut().enumerate().for_each(|(s, entries)| {
            for (index, study) in features.iter().enumerate() {
                if let Some(feature) = &study[s] {
                    enter(entries, feature, clock + index as u64, length, same_cosine);
                }
            }
        });
        self.clock += features.len() as u64;
    }

    /// For each structure its entries (Q_s, C_text) on `device`, with one upload for all, or `None` while empty.
    pub fn tensors(&self, device: &Device) -> Result<Vec<Option<Tensor>>> {
        let width = self.entries.iter().flatten().next().map_or(0, |entry| entry.feature.len());
        let values: Vec<f32> = self.entries.iter().flatten().flat_map(|entry| entry.feature.iter().copied()).collect();
        let all = transfers::upload(values, (self.entries.iter().map(Vec::len).sum::<usize>(), width), device)?;
        let mut start = 0;
        let mut tensor = |entries: &Vec<Entry>| -> Result<Option<Tensor>> {
            let own = (!entries.is_empty()).then(|| all.narrow(0, start, entries.len())).transpose()?;
            start += entries.len();
            Ok(own)
        };
        self.entries.iter().map(&mut tensor).collect()
    }

    /// Entries of structure `s`.
    pub fn len(&self, s: usize) -> usize {
        self.entries[s].len()
    }

    /// Whether no structure has an entry.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(Vec::is_empty)
    }

    /// Mean cosine between two entries of each structure; NaN below two.
    pub fn similarity(&self) -> Vec<f64> {
        self.entries.iter().map(|entries| mean_cosine(entries.iter().map(|entry| entry.feature.as_slice()))).collect()
    }

    /// Mean number of studies that came since an entry did, of each structure; NaN while empty.
    pub fn age(&self) -> Vec<f64> {
        let age = |entries: &Vec<Entry>| entries.iter().map(|entry| (self.clock - entry.born) as f64).sum::<f64>() / entries.len() as f64;
        self.entries.iter().map(age).collect()
    }

    /// The queue by name, for a checkpoint.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::from([("queue.clock".to_string(), Tensor::new(&[self.clock as i64], &Device::Cpu)?)]);
        for (s, features) in self.tensors(&Device::Cpu)?.into_iter().enumerate() {
            let Some(features) = features else { continue };
            let born: Vec<i64> = self.entries[s].iter().map(|entry| entry.born as i64).collect();
            let redundancy: Vec<f32> = self.entries[s].iter().map(|entry| entry.redundancy).collect();
            state.insert(format!("queue.{s}.born"), Tensor::from_vec(born, self.len(s), &Device::Cpu)?);
            state.insert(format!("queue.{s}.redundancy"), Tensor::from_vec(redundancy, self.len(s), &Device::Cpu)?);
            state.insert(format!("queue.{s}.feature"), features);
        }
        Ok(state)
    }

    /// Takes the queue of [`DiversityQueue::state`] out of `tensors`.
    pub fn restore(&mut self, source: &str, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        let missing = |name: &str| Error::Tensor { source_name: source.to_string(), tensor: name.to_string(), what: "missing".to_string() };
        self.clock =
            tensors.remove("queue.clock").ok_or_else(|| missing("queue.clock")).and_then(|clock| Ok(host_values::<i64>(&clock)?))?[0]
                as u64;
        for (s, entries) in self.entries.iter_mut().enumerate() {
            let Some(features) = tensors.remove(&format!("queue.{s}.feature")) else {
                entries.clear();
                continue;
            };
            let mut take = |name: String| tensors.remove(&name).ok_or_else(|| missing(&name));
            let born: Vec<i64> = host_values(&take(format!("queue.{s}.born"))?)?;
            let redundancy: Vec<f32> = host_values(&take(format!("queue.{s}.redundancy"))?)?;
            let (width, features) = (features.dims2()?.1, host_values::<f32>(&features)?);
            let rows = features.chunks(width).zip(born.into_iter().zip(redundancy));
            let entry =
                |(feature, (born, redundancy)): (&[f32], (i64, f32))| Entry { feature: feature.to_vec(), born: born as u64, redundancy };
            *entries = rows.map(entry).collect();
        }
        Ok(())
    }
}

fn enter(entries: &mut Vec<Entry>, feature: &[f32], born: u64, length: usize, same_cosine: Option<f64>) {
    let mut entry = Entry { feature: feature.to_vec(), born, redundancy: -1.0 };
    let Some(same) = same_cosine else {
        if entries.len() == length {
            entries.remove(0);
        }
        entries.push(entry);
        return;
    };
    let cosines: Vec<f32> = entries.iter().map(|other| dot(&other.feature, feature)).collect();
    let nearest = cosines.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    if let Some((index, cosine)) = nearest {
        if f64::from(cosine) >= same {
            entry.redundancy = entries[index].redundancy;
            entries[index] = entry;
            return;
        }
        entry.redundancy = cosine;
    }
    entries.iter_mut().zip(&cosines).for_each(|(other, cosine)| other.redundancy = other.redundancy.max(*cosine));
    if entries.len() == length {
        let leaving = oldest_of_the_most_redundant(entries);
        entries.remove(leaving);
    }
    entries.push(entry);
}

/// The oldest among the tenth of the entries that resemble another most.
fn oldest_of_the_most_redundant(entries: &[Entry]) -> usize {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|&a, &b| entries[b].redundancy.total_cmp(&entries[a].redundancy).then(a.cmp(&b)));
    let tenth = order.len().div_ceil(10);
    order[..tenth].iter().copied().min_by_key(|&index| entries[index].born).expect("a full queue has entries")
}

/// Mean cosine between two of the vectors: (|sum of unit vectors|^2 - n) / (n (n - 1)); NaN below two.
pub(super) fn mean_cosine<'a>(vectors: impl Iterator<Item = &'a [f32]>) -> f64 {
    let (mut sum, mut count) = (Vec::new(), 0.0);
    for vector in vectors {
        let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12);
        sum.resize(vector.len(), 0.0);
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value) / norm);
        count += 1.0;
    }
    if count < 2.0 {
        return f64::NAN;
    }
    (sum.iter().map(|value| value * value).sum::<f64>() - count) / (count * (count - 1.0))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(feature: [f32; 2]) -> Vec<Vec<Option<Vec<f32>>>> {
        vec![vec![Some(feature.to_vec())]]
    }

    fn rows(queue: &DiversityQueue) -> Vec<Vec<f32>> {
        queue.tensors(&Device::Cpu).unwrap()[0].as_ref().map_or(vec![], |tensor| tensor.to_vec2().unwrap())
    }

    #[test]
    fn a_text_like_one_that_waits_replaces_it() {
        let mut queue = DiversityQueue::new(1, 4, Some(0.95));
        for feature in [[1.0, 0.0], [0.0, 1.0], [0.999, 0.0447]] {
            queue.push(&text(feature));
        }
        assert_eq!(rows(&queue), [[0.999, 0.0447], [0.0, 1.0]]);
    }

    #[test]
    fn a_full_queue_loses_the_oldest_of_its_most_redundant_tenth() {
        let mut queue = DiversityQueue::new(1, 3, Some(0.95));
        // the second and third resemble each other (cosine 0.8); the second is older
        for feature in [[-1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.0, -1.0]] {
            queue.push(&text(feature));
        }
        assert_eq!(rows(&queue), [[-1.0, 0.0], [0.8, 0.6], [0.0, -1.0]]);
    }

    #[test]
    fn similarity_is_the_mean_over_pairs_and_age_counts_studies() {
        let mut queue = DiversityQueue::new(2, 4, Some(0.95));
        for feature in [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]] {
            let [study] = <[_; 1]>::try_from(text(feature)).unwrap();
            queue.push(&[[study, vec![None]].concat()]);
        }
        // cosines 0, 0.6, 0.8; the entries came 3, 2 and 1 studies ago
        let (similarity, age) = (queue.similarity(), queue.age());
        assert!((similarity[0] - 1.4 / 3.0).abs() < 1e-6 && similarity[1].is_nan(), "{similarity:?}");
        assert!(age[0] == 2.0 && age[1].is_nan(), "{age:?}");
    }

    #[test]
    fn a_plain_queue_loses_its_oldest() {
        let mut queue = DiversityQueue::new(1, 2, None);
        for feature in [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]] {
            queue.push(&text(feature));
        }
        assert_eq!(rows(&queue), [[1.0, 0.0], [0.0, 1.0]]);
    }

    #[test]
    fn a_structure_that_is_not_mentioned_takes_nothing_and_a_restored_queue_goes_on_alike() {
        let mut queue = DiversityQueue::new(2, 4, Some(0.95));
        queue.push(&[vec![Some(vec![1.0, 0.0]), None], vec![Some(vec![0.0, 1.0]), None]]);
        assert_eq!((queue.len(0), queue.len(1)), (2, 0));
        let mut restored = DiversityQueue::new(2, 4, Some(0.95));
        restored.restore("checkpoint", &mut queue.state().unwrap().into_iter().collect()).unwrap();
        for queue in [&mut queue, &mut restored] {
            queue.push(&[vec![Some(vec![0.6, 0.8]), Some(vec![0.0, -1.0])]]);
        }
        assert_eq!(format!("{queue:?}"), format!("{restored:?}"));
    }
}
