//! Ranks over MPI, in the processors' memory.

use std::fmt;
use std::time::Duration;

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use super::{Communicator, Launch, panics};
use crate::{Error, Result};

/// The ranks of `mpirun` or `srun`. Ends with MPI when it is dropped.
pub struct Mpi {
    rank: usize,
    size: usize,
    _universe: Universe,
}

/// Numbers summed by one call of MPI: 32 MiB, which are copied, since MPI wants two buffers.
const AT_ONCE: usize = 1 << 22;
/// How often a rank that waits for others looks up; meanwhile the processor is free.
const LOOKED: Duration = Duration::from_micros(200);

impl Mpi {
    /// Joins the ranks that `launch` tells of.
    ///
    /// # Errors
    /// MPI sees other ranks than the launcher told: the launcher is of another MPI than the program's.
    pub fn connect(launch: &Launch) -> Result<Self> {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Invalid("MPI was initialised before".to_string()));
        };
        let world = SimpleCommunicator::world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if (rank, size) != (launch.rank, launch.size) {
            let library = mpi::environment::library_version().unwrap_or_default();
            let library = library.split(',').next().unwrap_or_default();
            return Err(Error::Invalid(format!(
                "{launch}, but MPI ({library}) sees rank {rank} of {size}: start it with the launcher of the MPI that it was built with \
                 (under Slurm: srun --mpi=pmix)"
            )));
        }
        end_when_told(rank, size)?;
        panics::end_others();
        Ok(Mpi { rank, size, _universe: universe })
    }

    /// Waits until every rank has come, without keeping a core busy as MPI's own waiting does: ranks come apart by seconds where one writes.
    fn meet(&self) -> SimpleCommunicator {
        let world = SimpleCommunicator::world();
        let mut request = world.immediate_barrier();
        while let Err(waiting) = request.test() {
            std::thread::sleep(LOOKED);
            request = waiting;
        }
        world
    }
}

impl Drop for Mpi {
    /// A panic that the hook let pass, since others are caught: ending with MPI would wait for ranks that wait for this one.
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Mpi {{ rank: {}, size: {} }}", self.rank, self.size)
    }
}

/// A launcher ends the other ranks with SIGTERM when one dies: says so, and ends at once, whatever MPI waits for.
fn end_when_told(rank: usize, size: usize) -> Result<()> {
    let mut signals = Signals::new([SIGTERM]).map_err(|e| Error::Invalid(format!("SIGTERM cannot be listened to: {e}")))?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!(
                "error: rank {rank} of {size} was told to end (SIGTERM): another rank died, or the job was stopped; \
                 the same command goes on from what is written (training: with --resume, after its newest checkpoint)"
            );
            signal_hook::low_level::exit(128 + SIGTERM);
        }
    });
    Ok(())
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let world = self.meet();
        for part in values.chunks_mut(AT_ONCE) {
            let own = part.to_vec();
            world.all_reduce_into(&own[..], part, SystemOperation::sum());
        }
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let world = self.meet();
        // address 1 is Open MPI's MPI_IN_PLACE, and where Rust's empty slices lie: no message is empty
        let own = [own, &[0]].concat();
        let mut lengths = vec![0u64; self.size];
        world.all_gather_into(&[own.len() as u64][..], &mut lengths[..]);
        let total: u64 = lengths.iter().sum();
        if i32::try_from(total).is_err() {
            return Err(Error::Invalid(format!("ranks have {total} bytes to tell each other at once; MPI takes less than 2 GiB")));
        }
        let counts: Vec<i32> = lengths.iter().map(|length| *length as i32).collect();
        let starts: Vec<i32> = counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count))).collect();
        let mut all = vec![0u8; total as usize];
        world.all_gather_varcount_into(&own[..], &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        Ok(starts.iter().zip(&counts).map(|(start, count)| all[*start as usize..][..*count as usize - 1].to_vec()).collect())
    }

    fn abort(&self, code: u8) -> ! {
        SimpleCommunicator::world().abort(i32::from(code))
    }
}
