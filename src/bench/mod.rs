//! One piece of work at a time, timed as the peers' scripts time theirs: the figures of `docs/results.md` come from here.

mod meter;
mod report;
mod work;

pub use meter::{Measured, measure, measure_in_turn};
pub use report::{ReportOptions, ReportTimes, report};
pub use work::{DecodeOptions, Distance, StepOptions, decode, encode, lora_step, prefill, prepare_file, text_encoder, train_encoder};
