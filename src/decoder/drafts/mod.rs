//! Guesses of what a report says next, from the training reports and from the text itself: drafts that a decoder checks many at a time.

mod guess;
mod index;

pub use guess::{Guess, TextSoFar};
pub use index::DraftIndex;
