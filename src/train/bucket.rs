//! A batch's gradients in one flat bucket: what micro-batches and ranks add up to.

use std::cmp::Reverse;
use std::collections::HashMap;

use candle_core::{DType, Device, Shape, Tensor};
use ctscribe_ops::transfers::{self, host_values};

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
    /// How many gradients came of each tensor.
    counts: Vec<f64>,
    sums: Sums,
}

#[derive(Debug)]
enum Sums {
    /// Of gradients in the host's memory, flat.
    Host(Vec<f64>),
    /// Of gradients on a device, a tensor each, f64; they stay there unless other ranks add theirs.
    There(Device, Vec<Option<Tensor>>),
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
        let sums = match optimizer.device() {
            Device::Cpu => Sums::Host(vec![0.0; start]),
            device => Sums::There(device.clone(), vec![None; slots.len()]),
        };
        Bucket { counts: vec![0.0; slots.len()], slots, places, sums }
    }

    /// Adds the gradients of one micro-batch.
    pub fn add(&mut self, gradients: &Gradients) -> Result<()> {
        for (name, gradient) in gradients {
            let place = self.places[name];
            match &mut self.sums {
                Sums::Host(sums) => {
                    let own: Vec<f32> = host_values(gradient)?;
                    let sums = &mut sums[self.slots[place].start..][..own.len()];
                    sums.iter_mut().zip(own).for_each(|(sum, value)| *sum += f64::from(value));
                }
                Sums::There(_, sums) => {
                    let own = gradient.to_dtype(DType::F64)?;
                    sums[place] = Some(match sums[place].take() {
                        Some(sum) => (sum + own)?,
                        None => own,
                    });
                }
            }
            self.counts[place] += 1.0;
        }
        Ok(())
    }

    /// The sum over all ranks. A device's sums come to the host and go back once, all together, where there are other ranks.
    pub fn over(mut self, ranks: &dyn Communicator) -> Result<Self> {
        if ranks.size() == 1 {
            return Ok(self);
        }
        let (mut values, device) = match self.sums {
            Sums::Host(sums) => (sums, None),
            Sums::There(device, sums) => {
                let flat = |(slot, sum): (&Slot, &Option<Tensor>)| match sum {
                    Some(sum) => sum.flatten_all(),
                    None => Tensor::zeros(slot.shape.elem_count(), DType::F64, &device),
                };
                let flat: Vec<Tensor> = self.slots.iter().zip(&sums).map(flat).collect::<candle_core::Result<_>>()?;
                (transfers::read(&Tensor::cat(&flat, 0)?)?, Some(device))
            }
        };
        let length = values.len();
        values.extend(&self.counts);
        ranks.sum(&mut values)?;
        self.counts = values.split_off(length);
        self.sums = match device {
            None => Sums::Host(values),
            Some(device) => {
                let all = transfers::upload(values, length, &device)?;
                let own = |slot: &Slot| Ok(Some(all.narrow(0, slot.start, slot.shape.elem_count())?.reshape(&slot.shape)?));
                let sums = self.slots.iter().map(own).collect::<Result<_>>()?;
                Sums::There(device, sums)
            }
        };
        Ok(self)
    }

    /// The gradients by name; a tensor that none came for has none.
    pub fn gradients(self) -> Result<Gradients> {
        let mut gradients = Gradients::new();
        for (place, slot) in self.slots.iter().enumerate().filter(|(place, _)| self.counts[*place] > 0.0) {
            let gradient = match &self.sums {
                Sums::Host(sums) => {
                    let own = &sums[slot.start..slot.start + slot.shape.elem_count()];
                    let own: Vec<f32> = own.iter().map(|value| *value as f32).collect();
                    Some(Tensor::from_vec(own, slot.shape.clone(), &Device::Cpu)?)
                }
                Sums::There(_, sums) => sums[place].as_ref().map(|sum| sum.to_dtype(DType::F32)).transpose()?,
            };
            gradients.extend(gradient.map(|gradient| (slot.name.clone(), gradient)));
        }
        Ok(gradients)
    }
}

/// A batch's losses and the sum of their gradients: the micro-batches `parts` are dealt out to the ranks, so that each gets long ones and short
/// ones where they come by length; all get all losses, in order. `work` gets a micro-batch's place in the batch. The losses are read when all
/// micro-batches are done, all at once.
pub fn shared_gradients<T: Sync>(
    ranks: &dyn Communicator,
    parts: &[T],
    threads: usize,
    optimizer: &AdamW,
    work: impl Fn(usize, &T) -> Result<(Tensor, Gradients)> + Sync,
) -> Result<(Vec<f64>, Gradients)> {
    let dealt = |rank: usize| (rank..parts.len()).step_by(ranks.size());
    let own: Vec<usize> = dealt(ranks.rank()).collect();
    let (losses, bucket) = sum_in_threads(&own, threads, optimizer, |_, &place| {
        let (loss, gradients) = work(place, &parts[place])?;
        // a loss with its graph would keep all that the micro-batch computed
        Ok((loss.detach(), gradients))
    })?;
    let gathered = ranks.gather_numbers(&read_numbers(&losses)?)?;
    let mut losses = vec![0.0; parts.len()];
    (0..ranks.size()).flat_map(dealt).zip(gathered).for_each(|(place, loss)| losses[place] = loss);
    Ok((losses, bucket.over(ranks)?.gradients()?))
}

/// Sorts a batch by `length`, the longest first, those of one length as they came: a micro-batch is as long as its longest, and the last ones, on
/// which other cores wait, are the shortest. The batch's gradient stays the same.
pub(super) fn longest_first(batch: &mut [usize], length: impl Fn(usize) -> usize) {
    batch.sort_by_key(|&index| Reverse(length(index)));
}

/// The values of scalars, with one read.
pub(super) fn read_numbers(scalars: &[Tensor]) -> Result<Vec<f64>> {
    if scalars.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Vec<f32> = transfers::read(&Tensor::stack(scalars, 0)?.to_dtype(DType::F32)?)?;
    Ok(numbers.into_iter().map(f64::from).collect())
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

    /// Two ranks that bring the same; it looks at what one of them holds.
    #[derive(Debug)]
    struct Twice;

    impl Communicator for Twice {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            2
        }

        fn sum(&self, values: &mut [f64]) -> Result<()> {
            values.iter_mut().for_each(|value| *value *= 2.0);
            Ok(())
        }

        fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            Ok(vec![own.to_vec(), own.to_vec()])
        }

        fn abort(&self, _: u8) -> ! {
            panic!("aborted")
        }
    }

    #[test]
    fn sums_where_the_gradients_lie_are_those_of_the_host_bit_for_bit() {
        let (a, b) = ([[0.1f32, -3e7], [7.3, 1e-9], [1e8, 3e7]], [[1e8f32], [1.0], [-1e8]]);
        let gradients = |part: usize, with_b: bool| {
            let mut gradients = Gradients::from([("a".to_string(), tensor(&a[part]))]);
            gradients.extend(with_b.then(|| ("b".to_string(), tensor(&b[part]))));
            gradients
        };
        for ranks in [&crate::ranks::Alone as &dyn Communicator, &Twice] {
            for with_b in [true, false] {
                let sum = |mut bucket: Bucket| {
                    (0..3).for_each(|part| bucket.add(&gradients(part, with_b)).unwrap());
                    let sum = bucket.over(ranks).unwrap().gradients().unwrap();
                    let bits = |name: &str| {
                        let values = sum.get(name)?.to_vec1::<f32>().unwrap();
                        Some(values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                    };
                    [bits("a"), bits("b")]
                };
                let there = Bucket { sums: Sums::There(Device::Cpu, vec![None; 2]), ..Bucket::new(&optimizer()) };
                let [a, b] = sum(there);
                assert!(a.is_some() && b.is_some() == with_b);
                assert_eq!([a, b], sum(Bucket::new(&optimizer())));
            }
        }
    }
}
