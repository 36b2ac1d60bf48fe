//! Model tensors: where they come from and how strictly they must fit.

mod archive;
mod catalogue;
mod fetch;
mod files;
pub mod hub;
mod mapped;
mod params;
mod precision;
mod writer;

pub use archive::{convert, converted_name};
pub use catalogue::{CatalogueEntry, CatalogueFile, CatalogueSource, catalogue, entry};
pub use fetch::{Fetched, fetch, verify};
pub use files::{copy_files, metadata, open, part, remove_leftovers, save, sha256, write, write_aside};
pub use mapped::{GgufMetadata, Mapped};
pub use params::{Init, LoadReport, Params};
pub use precision::{BasePrecision, WeightPrecision};
pub use writer::{Mix, Source, write_gguf, write_shards};
