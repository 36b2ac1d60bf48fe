//! AdamW over named tensors, with moments that can be saved (PyTorch's update order).

use std::collections::{BTreeMap, HashMap};

use crate::config::OptimizerConfig;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// One trained tensor with its moments.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    /// Multiplies the learning rate (stage two's projector has its own).
    lr_factor: f64,
    decay: bool,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// AdamW (Loshchilov and Hutter, 2019), as `torch.optim.AdamW`:
/// p *= 1 - lr wd; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    slots: Vec<Slot>,
    steps: u64,
}

/// Gradients by tensor name.
pub type Gradients = HashMap<String, Tensor>;

impl AdamW {
    /// An optimiser of `vars`; all share the learning rate until told otherwise.
    pub fn new(vars: Vec<(String, Var)>, config: OptimizerConfig) -> Self {
        let slot = |(name, var): (String, Var)| {
            let count = var.elem_count();
            Slot { name, var, lr_factor: 1.0, decay: true, first: vec![0.0; count], second: vec![0.0; count] }
        };
        let slots: Vec<Slot> = vars.into_iter().map(slot).collect();
        let exempt = config.no_decay.clone();
        AdamW { config, slots, steps: 0 }.without_decay(|name| exempt.iter().any(|part| name.contains(part.as_str())))
    }

    /// Tensors whose name satisfies `which` learn at `factor` times the rate.
    pub fn scale_lr(mut self, factor: f64, which: impl Fn(&str) -> bool) -> Self {
        self.slots.iter_mut().filter(|slot| which(&slot.name)).for_each(|slot| slot.lr_factor = factor);
        self
    }

    /// Tensors whose name satisfies `which` are not decayed.
    pub fn without_decay(mut self, which: impl Fn(&str) -> bool) -> Self {
        self.slots.iter_mut().filter(|slot| which(&slot.name)).for_each(|slot| slot.decay = false);
        self
    }

    /// The trained tensors.
    pub fn vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), &slot.var))
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes out of `store` the gradients of the trained tensors.
    pub fn gradients(&self, store: &mut GradStore) -> Gradients {
        let found = self.slots.iter().filter_map(|slot| Some((slot.name.clone(), store.remove(&slot.var)?)));
        found.collect()
    }

    /// One step at learning rate `lr`. A tensor without a gradient keeps its value and moments, as in PyTorch.
    pub fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        self.steps += 1;
        let (config, steps) = (self.config.clone(), self.steps);
        for slot in &mut self.slots {
            if let Some(gradient) = gradients.get(&slot.name) {
                slot.update(gradient, lr * slot.lr_factor, &config, steps)?;
            }
        }
        Ok(())
    }

    /// The moments as tensors (`first.NAME`, `second.NAME`), for a checkpoint.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for slot in &self.slots {
            for (kind, values) in [("first", &slot.first), ("second", &slot.second)] {
                state.insert(format!("{kind}.{}", slot.name), Tensor::from_slice(values, slot.var.shape(), slot.var.device())?);
            }
        }
        Ok(state)
    }

    /// Takes up where [`AdamW::state`] was written, after `steps` steps. `source` names the checkpoint in errors.
    pub fn restore(&mut self, source: &str, state: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        for slot in &mut self.slots {
            for (kind, values) in [("first", &mut slot.first), ("second", &mut slot.second)] {
                let name = format!("{kind}.{}", slot.name);
                let fault = |what: String| Error::Tensor { source_name: source.to_string(), tensor: name.clone(), what };
                let tensor = state.get(&name).ok_or_else(|| fault("missing".to_string()))?;
                if tensor.dims() != slot.var.dims() {
                    return Err(fault(format!("expected {:?}, found {:?}", slot.var.dims(), tensor.dims())));
                }
                *values = tensor.flatten_all()?.to_vec1()?;
            }
        }
        self.steps = steps;
        Ok(())
    }
}

impl Slot {
    fn update(&mut self, gradient: &Tensor, lr: f64, config: &OptimizerConfig, steps: u64) -> Result<()> {
        let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
        let mut values: Vec<f32> = self.var.flatten_all()?.to_vec1()?;
        let (b1, b2) = (config.beta1 as f32, config.beta2 as f32);
        let correction1 = 1.0 - config.beta1.powi(steps as i32);
        let correction2 = (1.0 - config.beta2.powi(steps as i32)).sqrt() as f32;
        let step_size = (lr / correction1) as f32;
        let shrink = if self.decay { (1.0 - lr * config.weight_decay) as f32 } else { 1.0 };
        let eps = config.eps as f32;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, g), (m, v)) in values.iter_mut().zip(&gradient).zip(moments) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *value = *value * shrink - step_size * *m / (v.sqrt() / correction2 + eps);
        }
        self.var.set(&Tensor::from_vec(values, self.var.shape(), self.var.device())?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn two_steps_equal_the_formula_worked_by_hand() {
        let var = Var::from_tensor(&Tensor::new(&[1.0f32, -2.0], &Device::Cpu).unwrap()).unwrap();
        let config = OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, no_decay: vec![] };
        let mut adamw = AdamW::new(vec![("w".into(), var.clone())], config);
        let (mut m, mut v, mut p) = ([0.0f64; 2], [0.0f64; 2], [1.0f64, -2.0]);
        for step in 1..=2 {
            let g = [0.5 * f64::from(step), -1.0];
            let gradient = Tensor::new(&[g[0] as f32, g[1] as f32], &Device::Cpu).unwrap();
            adamw.step(&HashMap::from([("w".to_string(), gradient)]), 0.01).unwrap();
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
                p[i] *= 1.0 - 0.01 * 0.1;
                p[i] -= 0.01 * (m[i] / (1.0 - 0.9f64.powi(step))) / ((v[i] / (1.0 - 0.999f64.powi(step))).sqrt() + 1e-8);
            }
        }
        let found = var.to_vec1::<f32>().unwrap();
        assert!((f64::from(found[0]) - p[0]).abs() < 1e-6 && (f64::from(found[1]) - p[1]).abs() < 1e-6, "{found:?} {p:?}");
    }
}
