//! The two stages as plain loops; optimiser, schedule, checkpoints, run folder, progress.

mod language;
mod micro_batches;
mod optimizer;
mod order;
mod progress;
mod report;
mod run_folder;
mod stage;
mod structure;

pub use language::train_language;
pub use micro_batches::{clip, in_threads, sum_gradients, sum_in_threads};
pub use optimizer::{AdamW, Gradients};
pub use order::{Order, step_rng};
pub use progress::Progress;
pub use report::{ReportOutcome, ReportStage, train_report, train_report_for};
pub use run_folder::{Checkpoint, CheckpointState, CheckpointTensors, RunFolder, peak_memory_mib};
pub use stage::{Loop, Stage, StepOutcome};
pub use structure::{StructureOutcome, StructureStage, train_structure, train_structure_for};
