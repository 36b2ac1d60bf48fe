//! Model tensors: where they come from and how strictly they must fit.

mod files;
mod params;

pub use files::{metadata, open, part, save, sha256};
pub use params::{Init, LoadReport, Params};
