//! Continuous position bias of the spatial attention.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use ctscribe_ops::{self as ops, transfers};

use crate::Result;
use crate::weights::{Init, Params};

/// LeakyReLU's slope (peers.md a.6).
const SLOPE: f64 = 0.1;

/// An MLP from the log-distance of two patches to a bias a head.
#[derive(Debug)]
pub struct PositionBias {
    layers: Vec<[Tensor; 2]>,
    frozen: bool,
    /// Biases of grids seen so far; only a frozen model keeps them.
    cache: Mutex<HashMap<(usize, usize), Arc<Tensor>>>,
}

impl PositionBias {
    /// The MLP 2 -> dim -> dim -> heads.
    pub fn new(dim: usize, heads: usize, params: &Params) -> Result<Self> {
        let layer = |name: &str, inputs: usize, outputs: usize| -> Result<[Tensor; 2]> {
            let params = params.at("net").at(name);
            Ok([params.get("weight", &[outputs, inputs], Init::linear(inputs))?, params.get("bias", &[outputs], Init::linear(inputs))?])
        };
        let layers = vec![layer("0.0", 2, dim)?, layer("1.0", dim, dim)?, layer("2", dim, heads)?];
        Ok(PositionBias { layers, frozen: params.is_frozen(), cache: Mutex::default() })
    }

    /// The bias of a (Gh, Gw) grid, query minus key: (heads, Gh Gw, Gh Gw).
    pub fn forward(&self, gh: usize, gw: usize) -> Result<Tensor> {
        if !self.frozen {
            return self.compute(gh, gw);
        }
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bias) = cache.get(&(gh, gw)) {
            return Ok(bias.as_ref().clone());
        }
        let bias = self.compute(gh, gw)?;
        cache.insert((gh, gw), Arc::new(bias.clone()));
        Ok(bias)
    }

    /// The MLP sees each distinct offset once: (2 Gh - 1)(2 Gw - 1) rows, gathered to all pairs.
    fn compute(&self, gh: usize, gw: usize) -> Result<Tensor> {
        let device = self.layers[0][0].device();
        let log_distance = |offset: isize| {
            let offset = offset as f32;
            if offset == 0.0 { 0.0 } else { offset.signum() * (offset.abs() + 1.0).ln() }
        };
        let (reach_h, reach_w) = (gh as isize - 1, gw as isize - 1);
        let offsets = (-reach_h..=reach_h).flat_map(|i| (-reach_w..=reach_w).map(move |j| (i, j)));
        let inputs: Vec<f32> = offsets.flat_map(|(i, j)| [log_distance(i), log_distance(j)]).collect();
        let mut x = transfers::upload(inputs, ((2 * gh - 1) * (2 * gw - 1), 2), device)?;
        for (index, [weight, bias]) in self.layers.iter().enumerate() {
            x = ops::linear(&x, weight, Some(bias))?;
            if index + 1 < self.layers.len() {
                x = x.maximum(&(&x * SLOPE)?)?;
            }
        }
        let heads = x.dim(1)?;
        let rows = transfers::upload(pair_rows(gh, gw), gh * gw * gh * gw, device)?;
        Ok(x.t()?.contiguous()?.index_select(&rows, 1)?.reshape((heads, gh * gw, gh * gw))?)
    }
}

/// For each pair (query, key) of grid points the row of its offset.
fn pair_rows(gh: usize, gw: usize) -> Vec<u32> {
    let mut rows = Vec::with_capacity(gh * gw * gh * gw);
    for (qi, qj) in (0..gh).flat_map(|i| (0..gw).map(move |j| (i, j))) {
        for (ki, kj) in (0..gh).flat_map(|i| (0..gw).map(move |j| (i, j))) {
            rows.push(((qi + gh - 1 - ki) * (2 * gw - 1) + (qj + gw - 1 - kj)) as u32);
        }
    }
    rows
}
