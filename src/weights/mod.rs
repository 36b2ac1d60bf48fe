//! Model tensors: where they come from and how strictly they must fit.

mod params;

pub use params::{Init, LoadReport, Params};
