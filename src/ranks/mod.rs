//! Processes that share one piece of work: which of them this one is, and what they tell each other.
//!
//! A rank is one process. Rank 0, the leader, alone writes run folders, checkpoints and results; all ranks see the same files.

mod alone;
mod launch;
#[cfg(feature = "nccl")]
mod nccl;
mod panics;
mod sharing;
#[cfg(feature = "mpi")]
mod world;

use crate::Result;

pub use alone::Alone;
pub use launch::Launch;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use panics::catch;
#[cfg(feature = "mpi")]
pub use world::Mpi;

/// The ranks of a run, as one of them sees them. Every rank makes the same calls in the same order; each waits for all the others.
///
/// What is built on these calls (shares, values in the leader's words) are methods of `dyn Communicator`.
pub trait Communicator: std::fmt::Debug + Sync {
    /// Which of the ranks this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Adds up all ranks' `values`, place by place. All ranks give as many, and get the same bits.
    fn sum(&self, values: &mut [f64]) -> Result<()>;

    /// All ranks' bytes, in the ranks' order; they need not be equally many.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Ends every rank at once; `code` is the exit code.
    fn abort(&self, code: u8) -> !;
}

/// The ranks that this process was started among: by `mpirun` or `srun`, else alone.
///
/// # Errors
/// Several processes, and a program that was built without MPI, or with another MPI than the launcher's.
pub fn open() -> Result<Box<dyn Communicator>> {
    match Launch::of_environment()? {
        Some(launch) if launch.size > 1 => connect(&launch),
        _ => Ok(Box::new(Alone)),
    }
}

#[cfg(not(feature = "mpi"))]
fn connect(launch: &Launch) -> Result<Box<dyn Communicator>> {
    Err(crate::Error::Invalid(format!(
        "{launch}, but this ctscribe was built without MPI: each process would do the whole work and write the same files. \
         Build it with `--features mpi`, or start one process"
    )))
}

#[cfg(all(feature = "mpi", not(feature = "nccl")))]
fn connect(launch: &Launch) -> Result<Box<dyn Communicator>> {
    Ok(Box::new(Mpi::connect(launch)?))
}

/// Sums go over NCCL where every rank has a GPU of its own; all else is small and goes over MPI.
#[cfg(all(feature = "mpi", feature = "nccl"))]
fn connect(launch: &Launch) -> Result<Box<dyn Communicator>> {
    let mpi = Mpi::connect(launch)?;
    let ranks: &dyn Communicator = &mpi;
    let have: Vec<bool> = ranks.gather_values(&[Nccl::has_gpu(launch.local)])?;
    if have.into_iter().all(|own| own) { Ok(Box::new(Nccl::over(Box::new(mpi), launch.local)?)) } else { Ok(Box::new(mpi)) }
}
