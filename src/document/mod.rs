//! A report as a document that other systems read: JSON by a published schema, FHIR R4, DICOM SR. All say that they are drafts.

mod dicom_sr;
mod fhir;

pub use dicom_sr::write_dicom_sr;
pub use fhir::diagnostic_report;

/// The JSON Schema (draft 2020-12) of `generate --format json`.
pub const REPORT_SCHEMA: &str = include_str!("../../docs/report.schema.json");
