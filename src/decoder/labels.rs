//! Which positions of a batch carry a label.

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
