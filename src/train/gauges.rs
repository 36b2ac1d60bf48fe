//! What a step is judged and timed by: the running median of the loss, gradient norms a group, throughput.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use ctscribe_ops::transfers::{self, host_values};

use crate::Result;

use super::optimizer::Gradients;

/// Steps that the running median of the loss looks back (`explode_factor`).
const WINDOW: usize = 50;
/// A median of fewer losses judges nothing.
const ENOUGH: usize = 5;
const LOSSES: &str = "watch.losses";

/// The last losses.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    last: VecDeque<f64>,
}

impl Losses {
    /// Takes in a step's loss; what is wrong with it, if anything.
    pub fn see(&mut self, loss: f64, factor: Option<f64>) -> Option<String> {
        if !loss.is_finite() {
            return Some(format!("loss {loss}"));
        }
        let median = self.median();
        if let (Some(factor), Some(median)) = (factor, median)
            && median > 0.0
            && loss > factor * median
        {
            return Some(format!("loss {loss} is more than {factor} times its running median {median}"));
        }
        self.last.push_back(loss);
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
        None
    }

    fn median(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.last.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        (sorted.len() >= ENOUGH).then(|| sorted[sorted.len() / 2])
    }

    /// The losses by name, for a checkpoint.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let losses: Vec<f64> = self.last.iter().copied().collect();
        let count = losses.len();
        Ok(BTreeMap::from([(LOSSES.to_string(), Tensor::from_vec(losses, count, &Device::Cpu)?)]))
    }

    /// Takes up [`Losses::state`].
    pub fn restore(&mut self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        if let Some(losses) = tensors.remove(LOSSES) {
            self.last = host_values::<f64>(&losses)?.into();
        }
        Ok(())
    }
}

/// The part of a model that a tensor belongs to: adapters by their two matrices, others by the first part of their name.
pub fn group(name: &str) -> &str {
    if name.contains("lora_A") {
        return "lora_a";
    }
    if name.contains("lora_B") {
        return "lora_b";
    }
    name.split('.').next().unwrap_or(name)
}

/// The norm of each group's gradients.
pub fn group_norms(gradients: &Gradients) -> Result<BTreeMap<String, f64>> {
    let mut names: Vec<&String> = gradients.keys().collect();
    names.sort();
    let mut squares: BTreeMap<String, f64> = BTreeMap::new();
    for (name, own) in names.iter().zip(square_sums(names.iter().map(|name| &gradients[*name]).collect())?) {
        *squares.entry(group(name).to_string()).or_default() += own;
    }
    Ok(squares.into_iter().map(|(name, sum)| (name, sum.sqrt())).collect())
}

/// The sum of each tensor's squares, with one read from a device.
fn square_sums(tensors: Vec<&Tensor>) -> Result<Vec<f64>> {
    if tensors.iter().all(|tensor| tensor.device().is_cpu()) {
        let sum = |values: Vec<f32>| values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>();
        return tensors.into_iter().map(|tensor| Ok(sum(host_values(tensor)?))).collect();
    }
    square_sums_there(&tensors)
}

/// As [`square_sums`], summed where the tensors lie.
fn square_sums_there(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let sums: Vec<Tensor> =
        tensors.iter().map(|tensor| tensor.to_dtype(DType::F64)?.sqr()?.sum_all()).collect::<candle_core::Result<_>>()?;
    Ok(transfers::read(&Tensor::stack(&sums, 0)?)?)
}

/// Time and work of the steps since the last line of `metrics.jsonl`; validation and checkpoints do not count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    steps: u64,
    seconds: f64,
    count: usize,
}

impl Meter {
    /// A step took `time` for `count` tokens or studies.
    pub fn add(&mut self, time: Duration, count: usize) {
        self.steps += 1;
        self.seconds += time.as_secs_f64();
        self.count += count;
    }

    /// Seconds a step, tokens or studies a second; begins anew.
    pub fn read(&mut self) -> [f64; 2] {
        let Meter { steps, seconds, count } = std::mem::take(self);
        [seconds / steps.max(1) as f64, count as f64 / seconds.max(f64::MIN_POSITIVE)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_far_above_its_median_is_refused_and_a_median_of_few_judges_nothing() {
        let mut losses = Losses::default();
        assert!(losses.see(1.0, Some(3.0)).is_none() && losses.see(100.0, Some(3.0)).is_none());
        (0..6).for_each(|_| assert!(losses.see(2.0, Some(3.0)).is_none()));
        assert!(losses.see(5.9, Some(3.0)).is_none());
        assert_eq!(losses.see(6.1, Some(3.0)).unwrap(), "loss 6.1 is more than 3 times its running median 2");
        assert!(losses.see(1e9, None).is_none());
        assert_eq!(losses.see(f64::NAN, None).unwrap(), "loss NaN");
    }

    #[test]
    fn restored_losses_judge_alike() {
        let mut losses = Losses::default();
        (0..60).for_each(|n| assert!(losses.see(f64::from(n) + 1.0, Some(10.0)).is_none()));
        let mut restored = Losses::default();
        restored.restore(&mut losses.state().unwrap().into_iter().collect()).unwrap();
        assert_eq!(losses.last, restored.last);
        assert_eq!(losses.last.len(), WINDOW);
    }

    #[test]
    fn groups_are_adapters_matrices_and_first_names() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let gradients = Gradients::from([
            ("model.layers.0.q_proj.lora_A".to_string(), tensor(&[3.0])),
            ("model.layers.1.q_proj.lora_A".to_string(), tensor(&[4.0])),
            ("model.layers.0.q_proj.lora_B".to_string(), tensor(&[2.0])),
            ("vision.to_patch.weight".to_string(), tensor(&[0.0, 1.0])),
        ]);
        let norms = [("lora_a", 5.0), ("lora_b", 2.0), ("vision", 1.0)].map(|(name, norm)| (name.to_string(), norm));
        assert_eq!(group_norms(&gradients).unwrap(), BTreeMap::from(norms));
    }

    #[test]
    fn squares_are_summed_alike_here_and_where_the_tensors_lie() {
        let tensors = [Tensor::new(&[[3.0f32, -1.0], [0.5, 2.0]], &Device::Cpu).unwrap(), Tensor::new(&[0.25f32], &Device::Cpu).unwrap()];
        assert_eq!(square_sums_there(&[&tensors[0], &tensors[1]]).unwrap(), [14.25, 0.0625]);
        assert_eq!(square_sums(vec![&tensors[0], &tensors[1]]).unwrap(), [14.25, 0.0625]);
    }

    #[test]
    fn throughput_is_that_of_the_steps_since_it_was_last_read() {
        let mut meter = Meter::default();
        (0..3).for_each(|_| meter.add(Duration::from_millis(500), 100));
        assert_eq!(meter.read(), [0.5, 200.0]);
        meter.add(Duration::from_secs(2), 10);
        assert_eq!(meter.read(), [2.0, 5.0]);
    }
}
