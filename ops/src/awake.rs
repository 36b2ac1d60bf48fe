//! Keeps the worker threads awake through work that is a long row of short pieces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an idle worker looks for work before it lies down between looks.
const PATIENCE: Duration = Duration::from_millis(2);
/// How long it then sleeps at a time.
const NAP: Duration = Duration::from_micros(100);

static AWAKE: AtomicBool = AtomicBool::new(false);

/// Runs `work` on a worker thread, while the others wait for its pieces without going to sleep.
///
/// rayon's idle workers sleep after some microseconds, and waking one takes longer than many of the operations between which a training step
/// or a token alternates. Does nothing on one thread, or inside another such call.
pub fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if rayon::current_num_threads() < 2 || AWAKE.swap(true, Ordering::Acquire) {
        return work();
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let _rest = Rest(&done);
        let own = rayon::current_thread_index();
        let done = &done;
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
        for _ in 0..8 {
            std::hint::spin_loop();
        }
        let since = *idle.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            std::thread::sleep(NAP);
        }
    }
}
