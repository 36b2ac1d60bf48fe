//! A batch in micro-batches: several at once on their own threads, gradients summed in a fixed order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ctscribe_ops::transfers::host_values;
use ctscribe_ops::{GRADIENT_STACK, awake, keep_heaps_beside};

use crate::{Error, Result};

use super::bucket::Bucket;
use super::optimizer::{AdamW, Gradients};

/// Runs `work` on every item, at most `threads` at a time; the results come in the items' order.
pub fn in_threads<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(usize, &T) -> Result<R> + Sync) -> Result<Vec<R>> {
    if threads <= 1 || items.len() <= 1 {
        return items.iter().enumerate().map(|(index, item)| awake(|| work(index, item))).collect();
    }
    let pools = pools(threads.min(items.len()))?;
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let worker = || {
        while let Some((index, item)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|index| Some((index, items.get(index)?))) {
            let result = work(index, item);
            *done[index].lock().expect("no other thread takes this slot") = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for pool in &pools {
            scope.spawn(|| pool.install(worker));
        }
    });
    let results = done.into_iter().map(|slot| slot.into_inner().expect("all threads have ended").expect("every slot was filled"));
    results.collect()
}

/// Pools of one thread each, made once: work that is split inside a micro-batch stays on its thread, where two micro-batches would
/// otherwise take the cores from each other.
fn pools(count: usize) -> Result<Vec<Arc<rayon::ThreadPool>>> {
    static POOLS: Mutex<Vec<Arc<rayon::ThreadPool>>> = Mutex::new(Vec::new());
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if pools.len() < count {
        keep_heaps_beside(count);
    }
    while pools.len() < count {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(GRADIENT_STACK).build();
        pools.push(Arc::new(pool.map_err(|e| Error::Invalid(format!("a thread could not be started: {e}")))?));
    }
    Ok(pools[..count].to_vec())
}

/// As [`in_threads`], for work that gives gradients of the optimiser's tensors too: they are added up as they come, in the items' order,
/// and only those that wait for an earlier item's are kept.
pub fn sum_in_threads<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    optimizer: &AdamW,
    work: impl Fn(usize, &T) -> Result<(R, Gradients)> + Sync,
) -> Result<(Vec<R>, Bucket)> {
    let sum = Mutex::new(OrderedSum { total: Bucket::new(optimizer), added: 0, waiting: BTreeMap::new() });
    let results = in_threads(items, threads, |index, item| {
        let (result, gradients) = work(index, item)?;
        sum.lock().unwrap_or_else(PoisonError::into_inner).add(index, gradients)?;
        Ok(result)
    })?;
    Ok((results, sum.into_inner().unwrap_or_else(PoisonError::into_inner).total))
}

struct OrderedSum {
    total: Bucket,
    /// Items in `total`.
    added: usize,
    waiting: BTreeMap<usize, Gradients>,
}

impl OrderedSum {
    fn add(&mut self, index: usize, gradients: Gradients) -> Result<()> {
        self.waiting.insert(index, gradients);
        while let Some(next) = self.waiting.remove(&self.added) {
            self.total.add(&next)?;
            self.added += 1;
        }
        Ok(())
    }
}

/// The sum of two parts' gradients; one of a single part stays as it is.
pub fn sum_gradients(mut sum: Gradients, more: Gradients) -> Result<Gradients> {
    for (name, gradient) in more {
        let total = match sum.remove(&name) {
            Some(total) => (total + gradient)?,
            None => gradient,
        };
        sum.insert(name, total);
    }
    Ok(sum)
}

/// The norm of all gradients together, and the gradients scaled so that it is at most `limit` (none: unchanged).
pub fn clip(gradients: Gradients, limit: Option<f64>) -> Result<(Gradients, f64)> {
    let mut names: Vec<&String> = gradients.keys().collect();
    names.sort();
    let mut squares = 0.0f64;
    for name in names {
        let values: Vec<f32> = host_values(&gradients[name])?;
        squares += values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>();
    }
    let norm = squares.sqrt();
    let Some(limit) = limit.filter(|limit| norm > *limit) else { return Ok((gradients, norm)) };
    let scaled = gradients.into_iter().map(|(name, gradient)| Ok((name, (gradient * (limit / norm))?)));
    Ok((scaled.collect::<Result<_>>()?, norm))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;
    use crate::config::OptimizerConfig;

    fn gradients(values: &[f32]) -> Gradients {
        Gradients::from([("w".to_string(), Tensor::new(values, &Device::Cpu).unwrap())])
    }

    #[test]
    fn results_keep_the_order_of_the_items_whatever_thread_ends_first() {
        let items: Vec<u64> = (0..20).collect();
        let slow_first = |_: usize, item: &u64| {
            std::thread::sleep(std::time::Duration::from_millis(20 - item));
            Ok(item * 2)
        };
        assert_eq!(in_threads(&items, 3, slow_first).unwrap(), items.iter().map(|i| i * 2).collect::<Vec<_>>());
    }

    #[test]
    fn clipping_scales_the_whole_gradient_to_the_limit() {
        let (clipped, norm) = clip(gradients(&[3.0, 4.0]), Some(1.0)).unwrap();
        assert!((norm - 5.0).abs() < 1e-6);
        let values = clipped["w"].to_vec1::<f32>().unwrap();
        assert!((values[0] - 0.6).abs() < 1e-6 && (values[1] - 0.8).abs() < 1e-6);
        let (kept, _) = clip(gradients(&[3.0, 4.0]), Some(10.0)).unwrap();
        assert_eq!(kept["w"].to_vec1::<f32>().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn gradients_are_added_in_the_items_order_whatever_thread_ends_first() {
        // in f64, 1e17 + 1 - 1e17 is 0 and 1e17 - 1e17 + 1 is 1
        let items: Vec<f32> = [1e17, -1e17, 1.0, 2e17, 3.0, -2e17].repeat(3);
        let work = |index: usize, item: &f32| {
            std::thread::sleep(std::time::Duration::from_millis((7 * index as u64) % 5 * 3));
            Ok((index, gradients(&[*item])))
        };
        let in_order = items.iter().fold(0.0f64, |sum, item| sum + f64::from(*item)) as f32;
        let config = OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, no_decay: vec![] };
        let var = Var::from_tensor(&Tensor::new(&[0f32], &Device::Cpu).unwrap()).unwrap();
        let optimizer = AdamW::new(vec![("w".to_string(), var)], config);
        for threads in [1, 2, 4] {
            let (results, sum) = sum_in_threads(&items, threads, &optimizer, work).unwrap();
            assert_eq!(results, (0..items.len()).collect::<Vec<_>>());
            assert_eq!(sum.gradients().unwrap()["w"].to_vec1::<f32>().unwrap(), [in_order]);
        }
    }

    #[test]
    fn gradients_of_two_parts_add_up_and_one_of_a_single_part_stays() {
        let more = Gradients::from([("v".to_string(), Tensor::new(&[5f32], &Device::Cpu).unwrap())]);
        let sum = sum_gradients(sum_gradients(gradients(&[1.0, 2.0]), gradients(&[10.0, 20.0])).unwrap(), more).unwrap();
        assert_eq!(sum["w"].to_vec1::<f32>().unwrap(), [11.0, 22.0]);
        assert_eq!(sum["v"].to_vec1::<f32>().unwrap(), [5.0]);
    }
}
