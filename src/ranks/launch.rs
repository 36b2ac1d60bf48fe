//! Rank and size, as the launcher tells them in the environment.

use std::fmt;

use crate::{Error, Result};

/// One process among those that a launcher started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Which launcher.
    pub launcher: &'static str,
    /// Which process, from 0.
    pub rank: usize,
    /// How many processes.
    pub size: usize,
    /// Which of the processes on the same machine, from 0.
    pub local: usize,
}

/// A launcher and its variables: rank, size, rank on the machine. The first that tells a size counts: `mpirun` inside a Slurm job is mpirun's.
/// Slurm's size is the step's: a batch script has `SLURM_NTASKS` too, but what it starts without `srun` is one process.
const LAUNCHERS: [(&str, [&str; 3]); 3] = [
    ("mpirun", ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"]),
    ("mpiexec", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"]),
    ("srun", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"]),
];

impl Launch {
    /// What this process's environment tells; `None` without a launcher.
    pub fn of_environment() -> Result<Option<Self>> {
        Launch::read(&|name| std::env::var(name).ok())
    }

    /// As [`Launch::of_environment`], of `variable`.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for (launcher, [rank, size, local]) in LAUNCHERS {
            let Some(size) = number(variable, size)? else { continue };
            let Some(own) = number(variable, rank)? else { continue };
            if own >= size {
                return Err(Error::Invalid(format!("{rank}: rank {own} is not one of {size}, which {launcher} tells")));
            }
            return Ok(Some(Launch { launcher, rank: own, size, local: number(variable, local)?.unwrap_or(own) }));
        }
        Ok(None)
    }
}

fn number(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    let Some(text) = variable(name) else { return Ok(None) };
    let fault = |e: std::num::ParseIntError| Error::Invalid(format!("{name}: expected a number, found `{text}`: {e}"));
    text.trim().parse().map(Some).map_err(fault)
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} started this process as rank {} of {}", self.launcher, self.rank, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::read(&|name| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn each_launcher_tells_rank_and_size_and_mpirun_counts_inside_a_slurm_job() {
        let slurm = [("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1"), ("SLURM_NTASKS", "8")];
        assert_eq!(read(&slurm).unwrap().unwrap(), Launch { launcher: "srun", rank: 3, size: 8, local: 1 });
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "2")];
        assert_eq!(read(&pmi).unwrap().unwrap(), Launch { launcher: "mpiexec", rank: 1, size: 2, local: 1 });
        let mpirun = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")];
        let both: Vec<_> = slurm.into_iter().chain(mpirun).collect();
        assert_eq!(read(&both).unwrap().unwrap(), Launch { launcher: "mpirun", rank: 0, size: 2, local: 0 });
    }

    #[test]
    fn a_batch_script_of_a_slurm_job_is_one_process() {
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
        assert_eq!(read(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_no_rank_is_refused_by_the_variables_name() {
        let message = read(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")]).unwrap_err().to_string();
        assert!(message.starts_with("PMI_RANK: expected a number, found `x`"), "{message}");
        let message = read(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")]).unwrap_err().to_string();
        assert!(message.contains("rank 2 is not one of 2"), "{message}");
    }
}
