//! A batch's gradients in one flat bucket: what micro-batches and ranks add up to.

use std::collections::HashMap;

use candle_core::{Device, Shape, Tensor};

use crate::Result;
use crate::ranks::Communicator;

use super::micro_batches::sum_in_threads;
use super::optimizer::{AdamW, Gradients};

/// One trained tensor's place.
#[derive(Debug)]
struct Slot {
    name: String,
    shape: Shape,
    start: usize,
}

/// The sum of gradients: every trained tensor's values in the optimiser's order, then for each tensor how many gradients came.
///
/// Sums are f64 and rounded to f32 once, at the end. So the gradient is the same, but for one number in many millions, whichever rank
/// computed which micro-batch; f32 sums in another order would differ in most numbers, and AdamW turns the rounding of a gradient near zero
/// into a whole step.
#[derive(Debug)]
pub struct Bucket {
    slots: Vec<Slot>,
    places: HashMap<String, usize>,
    values: Vec<f64>,
}

impl Bucket {
    /// An empty one for the tensors of `optimizer`.
    pub fn new(optimizer: &AdamW) -> Self {
        let mut start = 0;
        let mut slots = Vec::new();
        for (name, var) in optimizer.vars() {
            slots.push(Slot { name: name.to_string(), shape: var.shape().clone(), start });
            start += var.elem_count();
        }
        let places = slots.iter().enumerate().map(|(place, slot)| (slot.name.clone(), place)).collect();
        let values = vec![0.0; start + slots.len()];
        Bucket { slots, places, values }
    }

    /// Adds the gradients of one micro-batch.
    pub fn add(&mut self, gradients: &Gradients) -> Result<()> {
        let counts = self.values.len() - self.slots.len();
        for (name, gradient) in gradients {
            let place = self.places[name];
            let own: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            let sums = &mut self.values[self.slots[place].start..][..own.len()];
            sums.iter_mut().zip(own).for_each(|(sum, value)| *sum += f64::from(value));
            self.values[counts + place] += 1.0;
        }
        Ok(())
    }

    /// The sum over all ranks.
    pub fn over(mut self, ranks: &dyn Communicator) -> Result<Self> {
        ranks.sum(&mut self.values)?;
        Ok(self)
    }

    /// The gradients by name; a tensor that none came for has none.
    pub fn gradients(self) -> Result<Gradients> {
        let counts = self.values.len() - self.slots.len();
        let mut gradients = Gradients::new();
        for (slot, count) in self.slots.iter().zip(&self.values[counts..]) {
            if *count > 0.0 {
                let own = &self.values[slot.start..slot.start + slot.shape.elem_count()];
                let own: Vec<f32> = own.iter().map(|value| *value as f32).collect();
                gradients.insert(slot.name.clone(), Tensor::from_vec(own, slot.shape.clone(), &Device::Cpu)?);
            }
        }
        Ok(gradients)
    }
}

/// A batch's losses and the sum of their gradients: each rank does its share of the micro-batches `parts`, all get all losses, in order.
/// `work` gets a micro-batch's place in the batch.
pub fn shared_gradients<T: Sync>(
    ranks: &dyn Communicator,
    parts: &[T],
    threads: usize,
    optimizer: &AdamW,
    work: impl Fn(usize, &T) -> Result<(f64, Gradients)> + Sync,
) -> Result<(Vec<f64>, Gradients)> {
    let own = ranks.share(parts.len());
    let (losses, bucket) = sum_in_threads(&parts[own.clone()], threads, optimizer, |index, part| work(own.start + index, part))?;
    Ok((ranks.gather_numbers(&losses)?, bucket.over(ranks)?.gradients()?))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::config::OptimizerConfig;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// An optimiser of `a` (2) and `b` (1).
    fn optimizer() -> AdamW {
        let config = OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, no_decay: vec![] };
        let var = |values: &[f32]| Var::from_tensor(&tensor(values)).unwrap();
        AdamW::new(vec![("a".into(), var(&[0.0, 0.0])), ("b".into(), var(&[0.0]))], config)
    }

    #[test]
    fn gradients_of_micro_batches_add_up_and_a_tensor_without_one_has_none() {
        let mut bucket = Bucket::new(&optimizer());
        bucket.add(&Gradients::from([("a".to_string(), tensor(&[1.0, 2.0]))])).unwrap();
        bucket.add(&Gradients::from([("a".to_string(), tensor(&[10.0, 20.0]))])).unwrap();
        let sum = bucket.gradients().unwrap();
        assert_eq!(sum["a"].to_vec1::<f32>().unwrap(), [11.0, 22.0]);
        assert!(!sum.contains_key("b"));
    }

    #[test]
    fn a_sum_is_rounded_once_whatever_the_order() {
        // in f32, 1e8 + 1 - 1e8 is 0
        for order in [[1e8, 1.0, -1e8], [1e8, -1e8, 1.0]] {
            let mut bucket = Bucket::new(&optimizer());
            order.iter().for_each(|value| bucket.add(&Gradients::from([("b".to_string(), tensor(&[*value]))])).unwrap());
            assert_eq!(bucket.gradients().unwrap()["b"].to_vec1::<f32>().unwrap(), [1.0]);
        }
    }
}
