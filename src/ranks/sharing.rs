//! What ranks do together, on top of sums and bytes.

use std::ops::Range;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Communicator;
use crate::{Error, Result};

impl dyn Communicator + '_ {
    /// Whether this is the rank that writes files and prints.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's piece of `count` things: one run of them, the pieces as long as each other to one.
    pub fn share(&self, count: usize) -> Range<usize> {
        let (rank, size) = (self.rank(), self.size());
        rank * count / size..(rank + 1) * count / size
    }

    /// Returns when every rank has come here.
    pub fn wait(&self) -> Result<()> {
        self.gather(&[]).map(|_| ())
    }

    /// All ranks' numbers, rank after rank, bit for bit.
    pub fn gather_numbers(&self, own: &[f64]) -> Result<Vec<f64>> {
        let bytes: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let numbers = |bytes: Vec<u8>| -> Vec<f64> { bytes.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value)).collect() };
        Ok(self.gather(&bytes)?.into_iter().flat_map(numbers).collect())
    }

    /// All ranks' rows of f32, rank after rank; `shape` is a row's. -> (rows, shape...).
    pub fn gather_rows(&self, own: &[Tensor], shape: &[usize]) -> Result<Tensor> {
        let mut bytes = Vec::new();
        for rows in own {
            bytes.extend(rows.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|value| value.to_le_bytes()));
        }
        let mut values: Vec<f32> = Vec::new();
        for bytes in self.gather(&bytes)? {
            values.extend(bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)));
        }
        let rows = values.len() / shape.iter().product::<usize>().max(1);
        Ok(Tensor::from_vec(values, [&[rows], shape].concat(), &Device::Cpu)?)
    }

    /// All ranks' values, rank after rank.
    pub fn gather_values<T: Serialize + DeserializeOwned>(&self, own: &[T]) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for bytes in self.gather(&serde_json::to_vec(own).map_err(unreadable)?)? {
            all.extend(serde_json::from_slice::<Vec<T>>(&bytes).map_err(unreadable)?);
        }
        Ok(all)
    }

    /// What the leader's `work` gave; the other ranks do not do it.
    pub fn from_leader<T: Serialize + DeserializeOwned>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.size() == 1 {
            return work();
        }
        let own = if self.leads() { vec![work()?] } else { Vec::new() };
        let mut all = self.gather_values(&own)?.into_iter();
        all.next().ok_or_else(|| Error::Invalid("the leading rank gave nothing".to_string()))
    }

    /// The leader does `work`; no rank goes on before it is done.
    pub fn leader_only(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.leads() {
            work()?;
        }
        self.wait()
    }

    /// Every rank does `work`, the others when the leader is done: what it leaves in files, they find there.
    pub fn leader_first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.leads() {
            let done = work()?;
            self.wait()?;
            return Ok(done);
        }
        self.wait()?;
        work()
    }

    /// Refuses to go on where a rank has another `own` than the leader: `what` says of what.
    pub fn agree(&self, what: &str, own: &str) -> Result<()> {
        let all: Vec<String> = self.gather_values(&[own.to_string()])?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => Err(Error::Invalid(format!("ranks differ in {what}: rank 0 has {}, rank {rank} has {}", all[0], all[rank]))),
        }
    }
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::Invalid(format!("what one rank told the others cannot be read: {error}"))
}
