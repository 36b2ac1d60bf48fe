//! AdamW over named tensors, with moments that can be saved (PyTorch's update order).

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
#[cfg(feature = "cuda")]
use ctscribe_ops::cuda;
#[cfg(feature = "cuda")]
use ctscribe_ops::transfers;
use ctscribe_ops::transfers::host_values;

use crate::config::OptimizerConfig;
use crate::{Error, Result};

use super::micro_batches::clip;

/// One trained tensor.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    /// Multiplies the learning rate (stage two's projector has its own).
    lr_factor: f64,
    decay: bool,
}

/// First and second moment of one tensor.
#[derive(Debug)]
struct HostMoments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The moments of all tensors, where these lie.
#[derive(Debug)]
enum Moments {
    /// On the processor.
    Host(Vec<HostMoments>),
    /// On a CUDA device, made when they are first used.
    #[cfg(feature = "cuda")]
    Device(Option<cuda::AdamW>),
}

/// AdamW (Loshchilov and Hutter, 2019), as `torch.optim.AdamW`:
/// p *= 1 - lr wd; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    slots: Vec<Slot>,
    moments: Moments,
    steps: u64,
}

/// Gradients by tensor name.
pub type Gradients = HashMap<String, Tensor>;

/// The norm of all gradients of a step together, before they were limited.
#[derive(Debug)]
pub struct GradientNorm(Norm);

#[derive(Debug)]
enum Norm {
    Known(f64),
    /// The first of these numbers, on the device that took the step.
    #[cfg(feature = "cuda")]
    There(Tensor),
}

impl GradientNorm {
    /// The norm where nothing has to be waited for.
    pub fn known(&self) -> Option<f64> {
        match self.0 {
            Norm::Known(norm) => Some(norm),
            #[cfg(feature = "cuda")]
            Norm::There(_) => None,
        }
    }

    /// The norm; a device is waited for.
    pub fn read(&self) -> Result<f64> {
        match &self.0 {
            Norm::Known(norm) => Ok(*norm),
            #[cfg(feature = "cuda")]
            Norm::There(numbers) => Ok(f64::from(transfers::read::<f32>(numbers)?[0])),
        }
    }
}

impl AdamW {
    /// An optimiser of `vars`, which lie on one device; all share the learning rate until told otherwise.
    pub fn new(vars: Vec<(String, Var)>, config: OptimizerConfig) -> Self {
        let slots: Vec<Slot> = vars.into_iter().map(|(name, var)| Slot { name, var, lr_factor: 1.0, decay: true }).collect();
        let moments = |slot: &Slot| {
            let count = slot.var.elem_count();
            HostMoments { first: vec![0.0; count], second: vec![0.0; count] }
        };
        let moments = match slots.first() {
            #[cfg(feature = "cuda")]
            Some(slot) if slot.var.device().is_cuda() => Moments::Device(None),
            _ => Moments::Host(slots.iter().map(moments).collect()),
        };
        let exempt = config.no_decay.clone();
        AdamW { config, slots, moments, steps: 0 }.without_decay(|name| exempt.iter().any(|part| name.contains(part.as_str())))
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

    /// Where they lie.
    pub fn device(&self) -> &Device {
        self.slots.first().map_or(&Device::Cpu, |slot| slot.var.device())
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
        match &mut self.moments {
            Moments::Host(moments) => {
                self.steps += 1;
                update(&self.slots, moments, gradients, lr, (&self.config, self.steps))
            }
            #[cfg(feature = "cuda")]
            Moments::Device(_) => self.step_within(gradients.clone(), lr, None).map(|_| ()),
        }
    }

    /// As [`AdamW::step`] with the gradients scaled so that their norm, all together, is at most `limit`. On the processor nothing is
    /// changed where the norm is no number; a device does not wait to see it.
    pub fn step_within(&mut self, gradients: Gradients, lr: f64, limit: Option<f64>) -> Result<GradientNorm> {
        match &mut self.moments {
            Moments::Host(moments) => {
                let (gradients, norm) = clip(gradients, limit)?;
                if norm.is_finite() {
                    self.steps += 1;
                    update(&self.slots, moments, &gradients, lr, (&self.config, self.steps))?;
                }
                Ok(GradientNorm(Norm::Known(norm)))
            }
            #[cfg(feature = "cuda")]
            Moments::Device(_) => {
                let own: Vec<Option<Tensor>> = self.slots.iter().map(|slot| gradients.get(&slot.name).cloned()).collect();
                let norm = self.on_device()?.step(&own, lr, limit)?;
                self.steps += 1;
                Ok(GradientNorm(Norm::There(norm)))
            }
        }
    }

    /// The device's own optimiser of the same tensors.
    #[cfg(feature = "cuda")]
    fn on_device(&mut self) -> Result<&mut cuda::AdamW> {
        let Moments::Device(own) = &mut self.moments else { unreachable!("the callers have looked") };
        if own.is_none() {
            let mut fresh = cuda::AdamW::new((self.config.beta1, self.config.beta2), self.config.eps);
            for slot in &self.slots {
                fresh.add(&slot.var, slot.lr_factor, if slot.decay { self.config.weight_decay } else { 0.0 })?;
            }
            *own = Some(fresh);
        }
        Ok(own.as_mut().expect("filled above"))
    }

    /// The moments as tensors of the host's memory (`first.NAME`, `second.NAME`), for a checkpoint.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let moments = match &self.moments {
                Moments::Host(moments) => {
                    let tensor = |values: &[f32]| Tensor::from_slice(values, slot.var.shape(), &Device::Cpu);
                    [tensor(&moments[index].first)?, tensor(&moments[index].second)?]
                }
                #[cfg(feature = "cuda")]
                Moments::Device(own) => match own.as_ref().and_then(|own| own.state().1.nth(index)) {
                    Some([first, second]) => [transfers::to_host(first)?, transfers::to_host(second)?],
                    None => {
                        let zeros = Tensor::zeros(slot.var.shape(), candle_core::DType::F32, &Device::Cpu)?;
                        [zeros.clone(), zeros]
                    }
                },
            };
            state.extend(["first", "second"].iter().zip(moments).map(|(kind, moment)| (format!("{kind}.{}", slot.name), moment)));
        }
        Ok(state)
    }

    /// Takes up where [`AdamW::state`] was written, after `steps` steps. `source` names the checkpoint in errors.
    pub fn restore(&mut self, source: &str, state: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        let take = |slot: &Slot, kind: &str| -> Result<Tensor> {
            let name = format!("{kind}.{}", slot.name);
            let fault = |what: String| Error::Tensor { source_name: source.to_string(), tensor: name.clone(), what };
            let tensor = state.get(&name).ok_or_else(|| fault("missing".to_string()))?;
            if tensor.dims() != slot.var.dims() {
                return Err(fault(format!("expected {:?}, found {:?}", slot.var.dims(), tensor.dims())));
            }
            Ok(tensor.clone())
        };
        let moments: Vec<[Tensor; 2]> =
            self.slots.iter().map(|slot| Ok([take(slot, "first")?, take(slot, "second")?])).collect::<Result<_>>()?;
        match &mut self.moments {
            Moments::Host(own) => {
                for (own, [first, second]) in own.iter_mut().zip(moments) {
                    *own = HostMoments { first: host_values(&first)?, second: host_values(&second)? };
                }
            }
            #[cfg(feature = "cuda")]
            Moments::Device(_) => self.on_device()?.restore(steps, moments)?,
        }
        self.steps = steps;
        Ok(())
    }
}

/// One step of all tensors on the processor, the `steps`-th.
fn update(
    slots: &[Slot],
    moments: &mut [HostMoments],
    gradients: &Gradients,
    lr: f64,
    (config, steps): (&OptimizerConfig, u64),
) -> Result<()> {
    for (slot, moments) in slots.iter().zip(moments) {
        if let Some(gradient) = gradients.get(&slot.name) {
            slot.update(moments, gradient, lr * slot.lr_factor, (config, steps))?;
        }
    }
    Ok(())
}

impl Slot {
    fn update(&self, moments: &mut HostMoments, gradient: &Tensor, lr: f64, (config, steps): (&OptimizerConfig, u64)) -> Result<()> {
        let gradient: Vec<f32> = host_values(gradient)?;
        let mut values: Vec<f32> = host_values(self.var.as_tensor())?;
        let (b1, b2) = (config.beta1 as f32, config.beta2 as f32);
        let correction1 = 1.0 - config.beta1.powi(steps as i32);
        let correction2 = (1.0 - config.beta2.powi(steps as i32)).sqrt() as f32;
        let step_size = (lr / correction1) as f32;
        let shrink = if self.decay { (1.0 - lr * config.weight_decay) as f32 } else { 1.0 };
        let eps = config.eps as f32;
        let moments = moments.first.iter_mut().zip(&mut moments.second);
        for ((value, g), (m, v)) in values.iter_mut().zip(&gradient).zip(moments) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *value = *value * shrink - step_size * *m / (v.sqrt() / correction2 + eps);
        }
        self.var.set(&Tensor::from_vec(values, self.var.shape(), &Device::Cpu)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
