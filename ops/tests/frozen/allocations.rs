//! Counts a thread's allocations of given sizes: a gradient cannot be made without the memory that it is written to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Sizes that can be watched at once.
const WATCHED: usize = 16;

thread_local! {
    /// (bytes, allocations of so many); 0 bytes: none.
    static COUNTS: Cell<[(usize, usize); WATCHED]> = const { Cell::new([(0, 0); WATCHED]) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts memory for values of 32 bits; hash tables and the like are aligned otherwise.
fn count(layout: Layout, bytes: usize) {
    if layout.align() != align_of::<f32>() {
        return;
    }
    // a thread that is ending has no counts any more
    let _ = COUNTS.try_with(|counts| {
        let mut now = counts.get();
        now.iter_mut().filter(|(size, _)| *size == bytes && bytes > 0).for_each(|(_, seen)| *seen += 1);
        counts.set(now);
    });
}

// SAFETY: all calls go to the system's allocator as they came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout, size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How many f32 tensors of each of these numbers of values `work` allocates, on one thread.
pub fn tensors_allocated(values: &[usize], work: impl FnOnce() + Send) -> Vec<usize> {
    assert!(values.len() <= WATCHED);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let mut watched = [(0, 0); WATCHED];
        watched.iter_mut().zip(values).for_each(|(slot, count)| *slot = (count * size_of::<f32>(), 0));
        COUNTS.set(watched);
        work();
        COUNTS.take()[..values.len()].iter().map(|(_, seen)| *seen).collect()
    })
}
