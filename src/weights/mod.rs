//! Model tensors: where they come from and how strictly they must fit.

mod catalogue;
mod convert;
mod fetch;
mod files;
pub mod hub;
mod params;

pub use catalogue::{CatalogueEntry, CatalogueFile, CatalogueSource, catalogue, entry};
pub use convert::{convert, converted_name};
pub use fetch::{Fetched, fetch, verify};
pub use files::{metadata, open, part, save, sha256, write, write_aside};
pub use params::{Init, LoadReport, Params};
