//! DICOM SR: a Basic Text document, unverified, in the scan's own study where the scan is DICOM.

use std::path::Path;

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_object::mem::InMemElement;
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject, OpenFileOptions, Tag};
use sha2::{Digest, Sha256};

use crate::generate::Report;
use crate::{Error, Result};

const BASIC_TEXT_SR: &str = "1.2.840.10008.5.1.4.1.1.88.11";
const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";
/// UIDs under this arc are made from numbers alone (DICOM PS3.5 B.2).
const UUID_ARC: &str = "2.25";

/// What a document of the scan's own study repeats: patient and study.
const INHERITED: [(Tag, VR); 10] = [
    (Tag(0x0008, 0x0020), VR::DA), // StudyDate
    (Tag(0x0008, 0x0030), VR::TM), // StudyTime
    (Tag(0x0008, 0x0050), VR::SH), // AccessionNumber
    (Tag(0x0008, 0x0090), VR::PN), // ReferringPhysicianName
    (Tag(0x0010, 0x0010), VR::PN), // PatientName
    (Tag(0x0010, 0x0020), VR::LO), // PatientID
    (Tag(0x0010, 0x0030), VR::DA), // PatientBirthDate
    (Tag(0x0010, 0x0040), VR::CS), // PatientSex
    (Tag(0x0020, 0x000D), VR::UI), // StudyInstanceUID
    (Tag(0x0020, 0x0010), VR::SH), // StudyID
];

/// A coded name: value, scheme, meaning.
type Code = (&'static str, &'static str, &'static str);
const REPORT: Code = ("18748-4", "LN", "Diagnostic imaging report");
const FINDINGS: Code = ("121070", "DCM", "Findings");
const FINDING: Code = ("121071", "DCM", "Finding");
const IMPRESSIONS: Code = ("121072", "DCM", "Impressions");
const IMPRESSION: Code = ("121073", "DCM", "Impression");
const COMMENT: Code = ("121106", "DCM", "Comment");

/// Writes the report as a DICOM Basic Text SR file. The same report gives the same bytes.
pub fn write_dicom_sr(report: &Report, path: &Path) -> Result<()> {
    let fault = |what: String| Error::file(path, format!("the DICOM document cannot be written: {what}"));
    let uid = uid(report, "instance");
    let mut object = InMemDicomObject::new_empty();
    let source = source(&report.path);
    for (tag, vr) in INHERITED {
        let value = source.as_ref().and_then(|source| source.element(tag).ok()?.to_str().ok().map(|text| text.into_owned()));
        object.put(text(tag, vr, value.as_deref().unwrap_or_default()));
    }
    if source.is_none() {
        object.put(text(Tag(0x0020, 0x000D), VR::UI, &self::uid(report, "study")));
        object.put(text(Tag(0x0010, 0x0020), VR::LO, &report.study));
    }
    for (tag, vr, value) in [
        (Tag(0x0008, 0x0005), VR::CS, "ISO_IR 192"),
        (Tag(0x0008, 0x0016), VR::UI, BASIC_TEXT_SR),
        (Tag(0x0008, 0x0018), VR::UI, uid.as_str()),
        (Tag(0x0008, 0x0060), VR::CS, "SR"),
        (Tag(0x0008, 0x0070), VR::LO, "ctscribe"),
        (Tag(0x0008, 0x103E), VR::LO, "Draft report, not for diagnosis"),
        (Tag(0x0018, 0x1020), VR::LO, env!("CARGO_PKG_VERSION")),
        (Tag(0x0020, 0x000E), VR::UI, self::uid(report, "series").as_str()),
        (Tag(0x0020, 0x0011), VR::IS, "9001"),
        (Tag(0x0020, 0x0013), VR::IS, "1"),
        (Tag(0x0040, 0xA491), VR::CS, "PARTIAL"),
        (Tag(0x0040, 0xA492), VR::LO, "Draft, not for diagnosis"),
        (Tag(0x0040, 0xA493), VR::CS, "UNVERIFIED"),
    ] {
        object.put(text(tag, vr, value));
    }
    // of the document, not of the scan: there is no clock in it, so the study's date stands for both
    for (tag, vr, from) in [(Tag(0x0008, 0x0023), VR::DA, Tag(0x0008, 0x0020)), (Tag(0x0008, 0x0033), VR::TM, Tag(0x0008, 0x0030))] {
        let value = object.element(from).ok().and_then(|element| element.to_str().ok().map(|text| text.into_owned())).unwrap_or_default();
        let stand_in = if vr == VR::DA { "19000101" } else { "000000" };
        object.put(text(tag, vr, if value.is_empty() { stand_in } else { &value }));
    }
    object.put(sequence(Tag(0x0008, 0x1111), Vec::new())); // ReferencedPerformedProcedureStepSequence
    object.put(sequence(Tag(0x0040, 0xA372), Vec::new())); // PerformedProcedureCodeSequence
    for element in container(REPORT, None, content(report)) {
        object.put(element);
    }
    let meta = FileMetaTableBuilder::new().media_storage_sop_class_uid(BASIC_TEXT_SR).media_storage_sop_instance_uid(&uid);
    let file = object.with_meta(meta.transfer_syntax(EXPLICIT_LITTLE_ENDIAN)).map_err(|e| fault(e.to_string()))?;
    file.write_to_file(path).map_err(|e| fault(crate::error::chain(&e)))
}

/// Notice, findings by structure, the affirmed findings as impression.
fn content(report: &Report) -> Vec<InMemDicomObject> {
    let contained = |elements: Vec<InMemElement>| InMemDicomObject::from_element_iter(elements);
    let mut sentences: Vec<InMemDicomObject> = Vec::new();
    for structure in &report.structures {
        if let Some(text) = &structure.text {
            sentences.push(contained(statement(FINDING, &format!("{}: {text}", structure.name))));
        }
    }
    if sentences.is_empty() {
        sentences.push(contained(statement(FINDING, &report.text)));
    }
    let affirmed = if report.findings.is_empty() { "none of the 18 findings".to_string() } else { report.findings.join(", ") };
    let models = report.models.iter().map(|(file, sha256)| format!("{file} sha256 {sha256}")).collect::<Vec<_>>().join("; ");
    vec![
        contained(statement(COMMENT, &report.notice)),
        contained(container(FINDINGS, Some("CONTAINS"), sentences)),
        contained(container(IMPRESSIONS, Some("CONTAINS"), vec![contained(statement(IMPRESSION, &affirmed))])),
        contained(statement(COMMENT, &format!("Written by ctscribe {}, {} decoder; {models}", env!("CARGO_PKG_VERSION"), report.decoder))),
    ]
}

fn container(name: Code, relationship: Option<&str>, items: Vec<InMemDicomObject>) -> Vec<InMemElement> {
    let mut elements = Vec::new();
    elements.extend(relationship.map(|kind| text(Tag(0x0040, 0xA010), VR::CS, kind)));
    elements.push(text(Tag(0x0040, 0xA040), VR::CS, "CONTAINER"));
    elements.push(code(name));
    elements.push(text(Tag(0x0040, 0xA050), VR::CS, "SEPARATE"));
    elements.push(sequence(Tag(0x0040, 0xA730), items));
    elements
}

fn statement(name: Code, value: &str) -> Vec<InMemElement> {
    vec![
        text(Tag(0x0040, 0xA010), VR::CS, "CONTAINS"),
        text(Tag(0x0040, 0xA040), VR::CS, "TEXT"),
        code(name),
        text(Tag(0x0040, 0xA160), VR::UT, value),
    ]
}

fn code((value, scheme, meaning): Code) -> InMemElement {
    let item = InMemDicomObject::from_element_iter([
        text(Tag(0x0008, 0x0100), VR::SH, value),
        text(Tag(0x0008, 0x0102), VR::SH, scheme),
        text(Tag(0x0008, 0x0104), VR::LO, meaning),
    ]);
    sequence(Tag(0x0040, 0xA043), vec![item])
}

fn text(tag: Tag, vr: VR, value: &str) -> InMemElement {
    DataElement::new(tag, vr, if value.is_empty() { PrimitiveValue::Empty } else { PrimitiveValue::from(value) })
}

fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> InMemElement {
    DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
}

/// The first slice of a scan that is DICOM.
fn source(scan: &Path) -> Option<DefaultDicomObject> {
    let files: Vec<_> = if scan.is_dir() {
        walkdir::WalkDir::new(scan).max_depth(1).sort_by_file_name().into_iter().flatten().map(|entry| entry.into_path()).collect()
    } else {
        vec![scan.to_path_buf()]
    };
    let open = |path: &std::path::PathBuf| OpenFileOptions::new().read_until(Tag(0x7FE0, 0x0010)).open_file(path).ok();
    files.iter().filter(|path| path.is_file()).find_map(open)
}

/// A UID out of the report's content: 2.25 and 128 bits in decimal.
fn uid(report: &Report, what: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [what, &report.study, &report.decoder] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    if what == "instance" {
        hasher.update(report.text.as_bytes());
        report.models.iter().for_each(|(_, sha256)| hasher.update(sha256.as_bytes()));
    }
    let digest = hasher.finalize();
    let number = u128::from_be_bytes(digest[..16].try_into().expect("a digest has 32 bytes"));
    format!("{UUID_ARC}.{number}")
}
