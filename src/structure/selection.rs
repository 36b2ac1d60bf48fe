//! Which patches become visual tokens.

use std::cmp::Ordering;

use candle_core::Tensor;
use ctscribe_ops::transfers;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

use super::Observation;

/// How visual tokens are chosen and laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionConfig {
    /// The order of tokens.
    pub layout: SelectionLayout,
    /// Patches K a structure.
    pub patches: usize,
}

/// The order of visual tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectionLayout {
    /// For each structure its observation, then its K patches, strongest first: V = S (1 + K).
    Ours,
    /// For each structure its observation, then its K patches, strongest last; then the observations again: V = S (2 + K) (reference.md 3).
    Reference,
}

impl SelectionConfig {
    /// Visual tokens V of `structures` structures.
    pub fn visual_tokens(&self, structures: usize) -> usize {
        match self.layout {
            SelectionLayout::Ours => structures * (1 + self.patches),
            SelectionLayout::Reference => structures * (2 + self.patches),
        }
    }
}

/// The selected tokens and where they come from.
#[derive(Debug, Clone)]
pub struct Selection {
    /// (B, V, h).
    pub tokens: Tensor,
    /// For each study and structure the patches, in the layout's order.
    pub indices: Vec<Vec<Vec<u32>>>,
    /// The attention on each of them.
    pub mass: Vec<Vec<Vec<f32>>>,
    /// For each study and structure the attention on every patch.
    pub attention: Vec<Vec<Vec<f32>>>,
}

/// The K patches of each structure with the largest attention (ties to the lower index), laid out as `config` says.
pub fn select(observation: &Observation, config: &SelectionConfig) -> Result<Selection> {
    let (_, structures, patches) = observation.attention.dims3()?;
    let attention: Vec<f32> = transfers::read(&observation.attention)?;
    let rows: Vec<Vec<f32>> = attention.chunks(patches).map(<[f32]>::to_vec).collect();
    let attention: Vec<Vec<Vec<f32>>> = rows.chunks(structures).map(<[Vec<f32>]>::to_vec).collect();
    let (mut tokens, mut indices, mut mass) = (Vec::new(), Vec::new(), Vec::new());
    for (b, rows) in attention.iter().enumerate() {
        let chosen: Vec<Vec<u32>> = rows.iter().map(|row| largest(row, config)).collect::<Result<_>>()?;
        let own = observation.tokens.get(b)?.detach();
        tokens.push(lay_out(&own, &observation.patches.get(b)?.detach(), &chosen, config.layout)?);
        mass.push(chosen.iter().zip(rows).map(|(patches, row)| patches.iter().map(|&patch| row[patch as usize]).collect()).collect());
        indices.push(chosen);
    }
    Ok(Selection { tokens: Tensor::stack(&tokens, 0)?, indices, mass, attention })
}

fn largest(row: &[f32], config: &SelectionConfig) -> Result<Vec<u32>> {
    if config.patches > row.len() {
        return Err(Error::Invalid(format!(
            "structure.selection.patches: {} exceeds the {} patches of a volume",
            config.patches,
            row.len()
        )));
    }
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    let stronger = |a: &u32, b: &u32| row[*b as usize].partial_cmp(&row[*a as usize]).unwrap_or(Ordering::Equal).then(a.cmp(b));
    order.sort_by(stronger);
    order.truncate(config.patches);
    if config.layout == SelectionLayout::Reference {
        order.reverse();
    }
    Ok(order)
}

/// tokens: (S, h), patches: (N, h) -> (V, h).
fn lay_out(tokens: &Tensor, patches: &Tensor, chosen: &[Vec<u32>], layout: SelectionLayout) -> Result<Tensor> {
    let indices = chosen.concat();
    let (count, k) = (indices.len(), chosen.first().map_or(0, Vec::len));
    let selected = patches.index_select(&transfers::upload(indices, count, patches.device())?, 0)?;
    let mut rows = Vec::new();
    for s in 0..chosen.len() {
        rows.push(tokens.narrow(0, s, 1)?);
        rows.push(selected.narrow(0, s * k, k)?);
    }
    if layout == SelectionLayout::Reference {
        rows.push(tokens.clone());
    }
    Ok(Tensor::cat(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn observation(attention: Vec<f32>) -> Observation {
        let patches = attention.len();
        let states: Vec<f32> = (0..patches).map(|i| 10.0 * i as f32).collect();
        Observation {
            tokens: Tensor::new(&[[[-1.0f32]]], &Device::Cpu).unwrap(),
            attention: Tensor::from_vec(attention, (1, 1, patches), &Device::Cpu).unwrap(),
            patches: Tensor::from_vec(states, (1, patches, 1), &Device::Cpu).unwrap(),
        }
    }

    #[test]
    fn ties_go_to_the_lower_index_and_the_strongest_comes_first() {
        let config = SelectionConfig { layout: SelectionLayout::Ours, patches: 3 };
        let selection = select(&observation(vec![0.1, 0.3, 0.1, 0.3, 0.2]), &config).unwrap();
        assert_eq!(selection.indices, [[[1, 3, 4]]]);
        assert_eq!(selection.tokens.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-1.0, 10.0, 30.0, 40.0]);
    }

    #[test]
    fn the_references_layout_ends_with_the_observations_again() {
        let config = SelectionConfig { layout: SelectionLayout::Reference, patches: 2 };
        let selection = select(&observation(vec![0.1, 0.5, 0.4]), &config).unwrap();
        assert_eq!(selection.tokens.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-1.0, 20.0, 10.0, -1.0]);
        assert_eq!(config.visual_tokens(1), 4);
    }

    #[test]
    fn more_patches_than_a_volume_has_is_an_error_that_says_so() {
        let config = SelectionConfig { layout: SelectionLayout::Ours, patches: 9 };
        assert!(select(&observation(vec![0.5, 0.5]), &config).unwrap_err().to_string().contains("9 exceeds the 2 patches"));
    }
}
