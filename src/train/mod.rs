//! The two stages as plain loops; optimiser, schedule, checkpoints, run folder, progress.

mod bucket;
mod call;
mod curves;
mod events;
mod gauges;
mod language;
mod manifest;
mod micro_batches;
mod optimizer;
mod order;
mod parameters;
mod progress;
mod report;
mod run_folder;
mod selection;
mod stage;
mod structure;
mod watch;

pub use bucket::{Bucket, shared_gradients};
pub use call::Call;
pub use curves::draw_curves;
pub use events::{EventFile, Scalar, read_scalars};
pub use language::{train_language, train_language_for};
pub use manifest::{Manifest, write_manifest};
pub use micro_batches::{clip, in_threads, sum_gradients, sum_in_threads};
pub use optimizer::{AdamW, Gradients};
pub use order::{Order, step_rng};
pub use progress::Progress;
pub use report::{ReportOutcome, ReportStage, train_report, train_report_for};
pub use run_folder::{Checkpoint, CheckpointState, CheckpointTensors, RunFolder, peak_memory_mib};
pub use selection::{BestCheckpoints, Scored};
pub use stage::{Ended, Loop, Stage, StepOutcome};
pub use structure::{StructureOutcome, StructureStage, train_structure, train_structure_for};
pub use watch::{Validation, check_patients};
