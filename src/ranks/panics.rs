//! Panics: one that nobody catches must not leave the other ranks waiting; a reader's is its scan's failure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pieces of work under way whose panics are caught.
static CATCHING: AtomicUsize = AtomicUsize::new(0);

/// What `work` gives; its panic in words.
///
/// A panic inside ends no rank, wherever it happens: work spreads over rayon's threads, too. One elsewhere meanwhile reaches the main thread in
/// the end, where dropping the ranks ends all.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    CATCHING.fetch_add(1, Ordering::SeqCst);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.fetch_sub(1, Ordering::SeqCst);
    done.map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        said.unwrap_or("no message").to_string()
    })
}

/// From now on a panic outside [`catch`] ends the process at once, and with it the other ranks.
#[cfg(feature = "mpi")]
pub(super) fn end_others() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if CATCHING.load(Ordering::SeqCst) == 0 {
            std::process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_in_its_own_words_and_work_that_ends_well_gives_its_value() {
        assert_eq!(catch(|| 3), Ok(3));
        assert_eq!(catch(|| panic!("a decoder's {}", "bug")), Err::<(), _>("a decoder's bug".to_string()));
        assert_eq!(catch(|| std::panic::panic_any(7)), Err::<(), _>("no message".to_string()));
    }
}
