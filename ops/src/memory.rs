//! What the process does with memory and threads, settled once at its start.

/// Lets the allocator keep the memory of freed tensors for the next ones, until the process ends. Call once, first thing in `main`.
///
/// glibc hands large blocks back to the system and takes fresh, zeroed pages for the next tensor: a sixth of the time of an encoder's training step,
/// whose largest tensors hold 45 MB. What a process holds at its peak grows by a few hundredths. Does nothing on other systems.
pub fn reuse_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator, under its own lock.
    unsafe {
        // no block is a mapping of its own, and the heap's end is not handed back
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Lets all threads allocate from one heap: for work on tensors. Call once, first thing in `main`.
///
/// A heap for each thread would keep freed memory that another thread's tensors need: half as much again at the peak of an encoder's training. Work on
/// many small texts waits for that one heap half of its time.
pub fn keep_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Lets `count` threads that are started now, each of which works for itself, have heaps of their own beside the one of [`keep_one_heap`].
///
/// Threads that train micro-batches side by side would wait for one another's allocations: a quarter of a step of a small encoder's training.
pub fn keep_heaps_beside(count: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1 + i32::try_from(count).unwrap_or(i32::MAX - 1));
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = count;
}

/// Keeps candle's own elementwise operations on the thread that calls them, unless `CANDLE_NUM_THREADS` says otherwise. Call once, first thing
/// in `main`, before any thread is started.
///
/// candle's workers spin while they wait: with batches spread over threads already they take the cores from each other. Measured on two
/// shared cores: a third of a training step.
pub fn keep_elementwise_work_on_its_thread() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // without the second, candle reads /proc/cpuinfo at every matrix product
    for (name, value) in [("CANDLE_NUM_THREADS", 1), ("RAYON_NUM_THREADS", cores)] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread exists yet that could read the environment.
            unsafe { std::env::set_var(name, value.to_string()) };
        }
    }
}
