//! One scan in, one report with its evidence out.

mod adapters;
mod decoders;
mod heatmaps;
mod observations;
mod observe;
mod observer;
mod reporter;
mod split;
mod text_features;

pub use adapters::{MergeOutcome, adapter_logits, export_adapter, import_adapter, merge_adapter, verify_adapter};
pub use decoders::{
    Assembled, DecoderKind, PROJECTOR_FILE, assemble_bert, assemble_llama, decoder_file, decoder_files, draft_file, llama_base,
    open_decoder, open_llama, room_to_pack, run_adapter,
};
pub use heatmaps::{heatmap_name, write_heatmaps};
pub use observations::{Observed, folder as observations_folder, read_tokens};
pub use observe::{ObserveReport, observe, observe_shared, observe_volume, observe_whole};
pub use observer::{MODEL, Observer};
pub use reporter::{
    DRAFT, Examined, Happening, PatchEvidence, Report, Reporter, SCHEMA, StructureEvidence, Timings, patch_evidence, report_scans,
};
pub use split::{SplitWriter, Visual, Written};
pub use text_features::{Features, centre, encode_reports, stack_features, structure_means};
