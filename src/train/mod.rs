//! The two stages as plain loops; optimiser, schedule, checkpoints, run folder, progress.

mod micro_batches;
mod optimizer;
mod progress;
mod run_folder;

pub use micro_batches::{clip, in_threads, sum_gradients};
pub use optimizer::{AdamW, Gradients};
pub use progress::Progress;
pub use run_folder::{Checkpoint, CheckpointState, CheckpointTensors, RunFolder, peak_memory_mib, write_aside};
