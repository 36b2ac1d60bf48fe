//! Reports as text: sections, sentences, structures, findings; tokenizers and frozen encoders.

mod audit;
pub mod bert;
mod encoder;
mod findings;
mod labeller;
mod reference_rules;
mod report;
mod statements;
mod structures;
mod tokenizer;

pub use audit::{
    Agreement, Audit, LabelAudit, StructureAudit, Study, audit_labels, audit_structures, read_labels, read_studies, unknown_labels,
};
pub use bert::Precision;
pub(crate) use encoder::read_bert;
pub use encoder::{EncoderConfig, Pooling, TextEncoder, padded};
pub use findings::{FINDINGS, LABELLER, label_report};
pub use labeller::{Labeller, RadBertLabeller};
pub use report::{PromptText, Sections, report_text};
pub use statements::{Side, Statement, contradictions, impossible_sides, read_statements, sides_of};
pub use structures::{Assignment, Labelled, Rules, Structures};
pub use tokenizer::Tokenizer;
