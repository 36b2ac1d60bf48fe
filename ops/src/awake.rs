//! Keeps worker threads awake through work that is a long row of short pieces.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// How long an idle worker looks for work without a pause; after that, other programs' threads go first.
const HASTE: Duration = Duration::from_micros(50);
/// How long it looks for work before it lies down between looks.
const PATIENCE: Duration = Duration::from_millis(2);
/// How long it then sleeps at a time.
const NAP: Duration = Duration::from_micros(100);
/// Bytes of stack of a thread that computes gradients: candle walks a graph recursively, a deep model needs more than the usual 2 MiB.
pub const GRADIENT_STACK: usize = 256 << 20;

static AWAKE: AtomicBool = AtomicBool::new(false);

/// Runs `work` on a thread of a pool of its own, as large as the caller's, while the others wait for its pieces without going to sleep.
///
/// rayon's idle workers sleep after some microseconds, and waking one takes longer than many of the operations between which a training step
/// or a token alternates. A pool of one thread has none to keep awake, but its pieces need not be handed to another thread either. Inside another
/// such call it is `work` and nothing else.
pub fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let threads = rayon::current_num_threads();
    if AWAKE.swap(true, Ordering::Acquire) {
        return work();
    }
    let done = AtomicBool::new(false);
    let rest = Rest(&done);
    let new = || ThreadPoolBuilder::new().num_threads(threads).stack_size(GRADIENT_STACK).build().ok();
    let Some(pool) = POOL.get_or_init(new).as_ref().filter(|pool| pool.current_num_threads() == threads) else { return work() };
    pool.scope(|scope| {
        // dropped at the end of `work`, before the scope waits for the others
        let _rest = rest;
        let (own, done) = (rayon::current_thread_index(), &done);
        scope.spawn_broadcast(move |_, worker| {
            if Some(worker.index()) != own {
                look_for_work(done);
            }
        });
        work()
    })
}

/// Ends the others' waiting, after a panic too.
struct Rest<'a>(&'a AtomicBool);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        AWAKE.store(false, Ordering::Release);
    }
}

fn look_for_work(done: &AtomicBool) {
    let mut idle = None;
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle = None;
            continue;
        }
        match idle.get_or_insert_with(Instant::now).elapsed() {
            short if short < HASTE => std::hint::spin_loop(),
            longer if longer < PATIENCE => std::thread::yield_now(),
            _ => std::thread::sleep(NAP),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::prelude::*;

    use super::*;

    fn sum() -> u64 {
        (0..100_000u64).into_par_iter().map(|x| x % 7).sum()
    }

    #[test]
    fn work_gives_what_it_gives_alone_nested_and_after_a_panic() {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let expected = sum();
        pool.install(|| {
            for _ in 0..50 {
                assert_eq!(awake(|| (sum(), awake(sum))), (expected, expected));
            }
            assert!(catch_unwind(AssertUnwindSafe(|| awake(|| panic!("of the work")))).is_err());
            assert_eq!(awake(sum), expected);
        });
        let alone = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(alone.install(|| awake(sum)), expected);
        // from a thread of no pool: as many threads inside as outside
        assert_eq!(awake(rayon::current_num_threads), rayon::current_num_threads());
    }
}
