//! Passes that come again and again with other values: recorded and replayed where the device can.

use std::fmt::Display;

use candle_core::{Error, Tensor};

/// Passes by what their work depends on beside the values of their inputs: which texts they go on with, and by how many rows.
#[derive(Debug)]
pub struct Replays<K> {
    wanted: bool,
    known: Vec<(K, Known)>,
}

#[derive(Debug)]
enum Known {
    /// It came once: most that do never come again.
    Seen,
    #[cfg(feature = "cuda")]
    Recorded(crate::cuda::Graph),
}

impl<K: PartialEq> Replays<K> {
    /// Passes that are recorded, each at most once: each record has memory for what is made within.
    const MOST: usize = 32;

    /// None yet. `wanted`: whether any shall be recorded; only those on a CUDA device are.
    pub fn new(wanted: bool) -> Self {
        Replays { wanted, known: Vec::new() }
    }

    /// What `pass` makes of `inputs`, contiguous tensors of one device. A pass whose `key` comes a second time is recorded as a CUDA graph and from
    /// then on replayed: it must do the same work whatever the inputs' values are, wait for nothing, and be called by one thread. Its result is
    /// written over by the next replay. Where a record cannot be made or gives other bits, that is said once on stderr and all goes on without.
    ///
    /// # Errors
    /// Those of `pass`.
    pub fn run<E: From<Error> + Display>(
        &mut self,
        key: K,
        inputs: &[Tensor],
        mut pass: impl FnMut(&[Tensor]) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        if !self.wanted || !inputs.iter().all(|input| input.device().is_cuda()) {
            return pass(inputs);
        }
        let place = self.known.iter().position(|(known, _)| *known == key);
        match place.map(|place| &mut self.known[place].1) {
            #[cfg(feature = "cuda")]
            Some(Known::Recorded(graph)) => Ok(graph.run(inputs)?),
            #[cfg(feature = "cuda")]
            Some(known) => {
                let (y, recorded) = crate::cuda::Graph::record(inputs, pass)?;
                match recorded {
                    Ok(graph) => *known = Known::Recorded(graph),
                    Err(why) => {
                        eprintln!("passes are not replayed as CUDA graphs: {why}");
                        self.wanted = false;
                    }
                }
                Ok(y)
            }
            _ => {
                self.note(key);
                pass(inputs)
            }
        }
    }

    /// A pass that has come for the first time; where there are many, the first one that came only once is forgotten.
    fn note(&mut self, key: K) {
        if self.known.len() == Self::MOST
            && let Some(once) = self.known.iter().position(|(_, known)| matches!(known, Known::Seen))
        {
            self.known.remove(once);
        }
        if self.known.len() < Self::MOST {
            self.known.push((key, Known::Seen));
        }
    }

    /// Passes that have been recorded.
    pub fn recorded(&self) -> usize {
        self.known.iter().filter(|(_, known)| !matches!(known, Known::Seen)).count()
    }
}
