//! Ranks in one process, a thread each: what ranks share, without MPI.

use std::sync::{Barrier, Mutex};

use ctscribe::Result;
use ctscribe::ranks::Communicator;

/// What the threads tell each other.
pub struct Meeting {
    size: usize,
    barrier: Barrier,
    told: Mutex<Vec<Vec<u8>>>,
}

/// One of the threads.
#[derive(Clone, Copy)]
pub struct Thread<'a> {
    meeting: &'a Meeting,
    rank: usize,
}

impl std::fmt::Debug for Thread<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "thread {} of {}", self.rank, self.meeting.size)
    }
}

/// Runs `work` on `size` ranks; what each gave, in their order.
pub fn together<T: Send>(size: usize, work: impl Fn(&dyn Communicator) -> T + Sync) -> Vec<T> {
    let meeting = Meeting { size, barrier: Barrier::new(size), told: Mutex::new(vec![Vec::new(); size]) };
    std::thread::scope(|scope| {
        let (meeting, work) = (&meeting, &work);
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || work(&Thread { meeting, rank }))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

impl Communicator for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let all = self.gather(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())?;
        for (index, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|bytes| f64::from_le_bytes(bytes[8 * index..][..8].try_into().unwrap())).sum();
        }
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.meeting.told.lock().unwrap()[self.rank] = own.to_vec();
        self.meeting.barrier.wait();
        let all = self.meeting.told.lock().unwrap().clone();
        self.meeting.barrier.wait();
        Ok(all)
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(i32::from(code))
    }
}
