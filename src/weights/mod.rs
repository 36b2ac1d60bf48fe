//! Model tensors: where they come from and how strictly they must fit.

mod catalogue;
mod convert;
mod files;
mod mapped;
mod params;

pub use catalogue::{CatalogueEntry, catalogue};
pub use convert::{Mix, Source, write_gguf, write_shards};
pub use files::{copy_files, metadata, open, part, save, sha256, write, write_aside};
pub use mapped::{GgufMetadata, Mapped};
pub use params::{Init, LoadReport, Params};
