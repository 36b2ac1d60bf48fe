//! Ranks in one process, a thread each: what ranks share, without MPI.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use ctscribe::Result;
use ctscribe::ranks::Communicator;

/// Where the threads meet.
pub struct Meeting {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// How far a meeting is.
#[derive(Default)]
struct State {
    /// What each told since the last meeting.
    told: Vec<Vec<u8>>,
    come: usize,
    /// Meetings before this one, and what was told in the last.
    met: u64,
    all: Vec<Vec<u8>>,
}

/// A rank that waits longer than this fails: another one must have failed.
const PATIENCE: Duration = Duration::from_secs(300);

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
    let state = State { told: vec![Vec::new(); size], ..State::default() };
    let meeting = Meeting { size, state: Mutex::new(state), changed: Condvar::new() };
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
        let mut state = self.meeting.state.lock().unwrap();
        state.told[self.rank] = own.to_vec();
        state.come += 1;
        let met = state.met;
        if state.come == self.meeting.size {
            state.all = state.told.clone();
            state.come = 0;
            state.met += 1;
            self.meeting.changed.notify_all();
        }
        let (state, late) = self.meeting.changed.wait_timeout_while(state, PATIENCE, |state| state.met == met).unwrap();
        assert!(!late.timed_out(), "{self:?} waits in vain");
        Ok(state.all.clone())
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(i32::from(code))
    }
}
