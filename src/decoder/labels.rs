//! Which positions of a batch carry a label.

use candle_core::{DType, Device, Tensor};
use ctscribe_ops::transfers;

use crate::{Error, Result};

/// The labelled positions of a batch, flat.
#[derive(Debug)]
pub struct Labelled {
    /// Row of the flattened (B L) positions.
    pub rows: Vec<u32>,
    /// The id that should come next.
    pub ids: Vec<u32>,
    /// How much it counts.
    pub weights: Vec<f32>,
}

impl Labelled {
    /// The first of the rows, where they follow one on another.
    pub fn run(&self) -> Option<usize> {
        let first = *self.rows.first()?;
        self.rows.iter().zip(first..).all(|(row, place)| *row == place).then_some(first as usize)
    }

    /// Rows and ids (n) u32, weights (n) f32 on `device`, with one upload.
    pub fn upload(&self, device: &Device) -> Result<[Tensor; 3]> {
        let count = self.rows.len();
        // an f64 holds each of them without loss
        let numbers = self.rows.iter().chain(&self.ids).map(|&number| f64::from(number));
        let all = numbers.chain(self.weights.iter().map(|&weight| f64::from(weight))).collect();
        let all = transfers::upload(all, (3, count), device)?;
        Ok([all.get(0)?.to_dtype(DType::U32)?, all.get(1)?.to_dtype(DType::U32)?, all.get(2)?.to_dtype(DType::F32)?])
    }
}

/// targets and weights: (B, L); positions of weight 0 carry no label.
pub fn labelled(targets: &[Vec<u32>], weights: &[Vec<f32>]) -> Result<Labelled> {
    let pairs = targets.iter().flatten().zip(weights.iter().flatten()).enumerate();
    let counted: Vec<(u32, u32, f32)> =
        pairs.filter(|(_, (_, weight))| **weight != 0.0).map(|(row, (id, weight))| (row as u32, *id, *weight)).collect();
    if counted.is_empty() {
        return Err(Error::Invalid("a batch holds no token to learn from".to_string()));
    }
    let rows = counted.iter().map(|(row, _, _)| *row).collect();
    let ids = counted.iter().map(|(_, id, _)| *id).collect();
    Ok(Labelled { rows, ids, weights: counted.iter().map(|(_, _, weight)| *weight).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labelled_places_are_a_run_or_not() {
        let run = |weights: &[f32]| labelled(&[vec![1; weights.len()]], &[weights.to_vec()]).unwrap().run();
        assert_eq!([run(&[0.0, 1.0, 1.0]), run(&[0.5]), run(&[1.0, 0.0, 1.0])], [Some(1), Some(0), None]);
    }

    #[test]
    fn what_is_labelled_goes_up_without_loss() {
        let labelled = labelled(&[vec![7, u32::MAX], vec![31_999, 2]], &[vec![0.0, 0.1], vec![1.0, 0.0]]).unwrap();
        let [rows, ids, weights] = labelled.upload(&Device::Cpu).unwrap();
        assert_eq!(rows.to_vec1::<u32>().unwrap(), [1, 2]);
        assert_eq!(ids.to_vec1::<u32>().unwrap(), [u32::MAX, 31_999]);
        assert_eq!(weights.to_vec1::<f32>().unwrap(), [0.1, 1.0]);
    }
}
