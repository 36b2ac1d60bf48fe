//! The authors' queue: projected texts that start as noise, scores written once (reference.md 1.6).

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use ctscribe_ops::transfers::{self, host_values};
use rand::Rng;
use rand_distr::StandardNormal;

use crate::{Error, Result};

/// What an entry's score is at the start.
const INITIAL_SCORE: f32 = 10_000.0;

/// Q projected texts a structure with their scores.
#[derive(Debug, Clone)]
pub struct ReferenceQueue {
    structures: usize,
    length: usize,
    width: usize,
    /// Entry-major: structure, entry, channel.
    entries: Vec<f32>,
    scores: Vec<f32>,
}

impl ReferenceQueue {
    /// `length` entries a structure of width E, from N(0, 1), not normalised.
    pub fn new(structures: usize, length: usize, width: usize, rng: &mut impl Rng) -> Self {
        let entries = (0..structures * length * width).map(|_| rng.sample::<f32, _>(StandardNormal)).collect();
        ReferenceQueue { structures, length, width, entries, scores: vec![INITIAL_SCORE; structures * length] }
    }

    /// From a queue (E, S Q) with column s Q + j and scores (S Q).
    pub fn from_tensors(queue: &Tensor, scores: &Tensor, structures: usize) -> Result<Self> {
        let (width, columns) = queue.dims2()?;
        let entries = host_values(&queue.t()?.contiguous()?)?;
        Ok(ReferenceQueue { structures, length: columns / structures, width, entries, scores: host_values(scores)? })
    }

    /// The queue as (E, S Q).
    pub fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.entries, (self.structures * self.length, self.width), &Device::Cpu)?.t()?.contiguous()?)
    }

    /// The scores as (S Q).
    pub fn scores(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.scores, self.scores.len(), &Device::Cpu)?)
    }

    /// Mean cosine between two entries of each structure.
    pub fn similarity(&self) -> Vec<f64> {
        let own = |s: usize| &self.entries[s * self.length * self.width..(s + 1) * self.length * self.width];
        (0..self.structures).map(|s| super::queue::mean_cosine(own(s).chunks_exact(self.width))).collect()
    }

    /// Takes in texts (n, S, E), unit vectors, and keeps the Q lowest-scored a structure; returns the new scores, n rows of S.
    pub fn update(&mut self, texts: &Tensor, temperature: f64) -> Result<Vec<Vec<f32>>> {
        let studies = texts.dim(0)?;
        let texts: Vec<f32> = transfers::read(texts)?;
        let texts: Vec<&[f32]> = texts.chunks(self.width).collect();
        let mut new_scores = vec![vec![0.0; self.structures]; studies];
        for s in 0..self.structures {
            let own: Vec<&[f32]> = texts.iter().skip(s).step_by(self.structures).copied().collect();
            let scores = self.update_structure(s, &own, temperature);
            new_scores.iter_mut().zip(scores).for_each(|(row, score)| row[s] = score);
        }
        Ok(new_scores)
    }

    fn update_structure(&mut self, s: usize, texts: &[&[f32]], temperature: f64) -> Vec<f32> {
        let (from, to) = (s * self.length, (s + 1) * self.length);
        let old: Vec<Vec<f32>> = self.entries[from * self.width..to * self.width].chunks_exact(self.width).map(<[f32]>::to_vec).collect();
        let score = |text: &[f32]| -> f32 {
            let dot = |entry: &Vec<f32>| entry.iter().zip(text).map(|(a, b)| f64::from(a * b)).sum::<f64>() / temperature;
            (old.iter().map(dot).sum::<f64>() / old.len() as f64) as f32
        };
        let new: Vec<f32> = texts.iter().map(|text| score(text)).collect();
        let stored = old.iter().map(Vec::as_slice).zip(self.scores[from..to].iter().copied());
        let mut all: Vec<(&[f32], f32)> = stored.chain(texts.iter().copied().zip(new.iter().copied())).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
        all.truncate(self.length);
        let entries: Vec<f32> = all.iter().flat_map(|(entry, _)| entry.iter().copied()).collect();
        let scores: Vec<f32> = all.iter().map(|(_, score)| *score).collect();
        self.entries[from * self.width..to * self.width].copy_from_slice(&entries);
        self.scores[from..to].copy_from_slice(&scores);
        new
    }

    /// The queue by name, for a checkpoint.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::from([("queue.text".to_string(), self.tensor()?), ("queue.score".to_string(), self.scores()?)]))
    }

    /// Takes the queue of [`ReferenceQueue::state`] out of `tensors`.
    pub fn restore(&mut self, source: &str, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        let mut take = |name: &str| {
            let missing = || Error::Tensor { source_name: source.to_string(), tensor: name.to_string(), what: "missing".to_string() };
            tensors.remove(name).ok_or_else(missing)
        };
        *self = ReferenceQueue::from_tensors(&take("queue.text")?, &take("queue.score")?, self.structures)?;
        Ok(())
    }
}
