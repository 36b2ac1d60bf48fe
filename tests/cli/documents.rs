//! Reports as documents: by their published schema, as FHIR, as DICOM SR.

use std::path::PathBuf;
use std::process::Command;

use dicom_object::{InMemDicomObject, Tag, open_file};
use serde_json::Value;

use crate::trained::{succeed, text, trained};

/// The documents of a phantom's report.
fn documents() -> (tempfile::TempDir, PathBuf) {
    let (out, scan) = (tempfile::tempdir().unwrap(), trained().scan());
    succeed(&["generate", text(&scan), "--run", text(&trained().path("run")), "--out", text(out.path())]);
    let name = scan.file_name().unwrap().to_string_lossy().replace(".nii.gz", "");
    let stem = out.path().join(name);
    (out, stem)
}

fn json(stem: &std::path::Path, ending: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(stem.with_extension(ending)).unwrap()).unwrap()
}

#[test]
fn the_json_follows_its_published_schema_and_the_schema_can_refuse() {
    let (_out, stem) = documents();
    let schema = serde_json::from_str(ctscribe::document::REPORT_SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut report = json(&stem, "json");
    let faults: Vec<String> = validator.iter_errors(&report).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:?}");
    report["structures"][0]["patches"][0]["box_mm"] = Value::Null;
    assert!(!validator.is_valid(&report));
}

#[test]
fn the_fhir_report_is_preliminary_and_its_results_are_contained() {
    let (_out, stem) = documents();
    let (report, fhir) = (json(&stem, "json"), json(&stem, "fhir.json"));
    assert_eq!((fhir["resourceType"].as_str(), fhir["status"].as_str()), (Some("DiagnosticReport"), Some("preliminary")));
    assert!(fhir["conclusion"].as_str().unwrap().contains(report["text"].as_str().unwrap()));
    let contained: Vec<&str> = fhir["contained"].as_array().unwrap().iter().map(|resource| resource["id"].as_str().unwrap()).collect();
    for result in fhir["result"].as_array().into_iter().flatten() {
        assert!(contained.contains(&result["reference"].as_str().unwrap().trim_start_matches('#')));
    }
}

/// All texts of the document's content tree.
fn texts(object: &InMemDicomObject, into: &mut Vec<String>) {
    if let Ok(value) = object.element(Tag(0x0040, 0xA160)) {
        into.push(value.to_str().unwrap().into_owned());
    }
    if let Ok(items) = object.element(Tag(0x0040, 0xA730)) {
        items.items().into_iter().flatten().for_each(|item| texts(item, into));
    }
}

#[test]
fn the_dicom_document_reads_back_as_an_unverified_basic_text_report() {
    let (_out, stem) = documents();
    let (report, object) = (json(&stem, "json"), open_file(stem.with_extension("sr.dcm")).unwrap());
    let value = |tag: Tag| object.element(tag).unwrap().to_str().unwrap().into_owned();
    assert_eq!(value(Tag(0x0008, 0x0016)), "1.2.840.10008.5.1.4.1.1.88.11");
    assert_eq!((value(Tag(0x0040, 0xA491)), value(Tag(0x0040, 0xA493))), ("PARTIAL".to_string(), "UNVERIFIED".to_string()));
    let mut found = Vec::new();
    texts(&object, &mut found);
    assert_eq!(found[0], report["notice"].as_str().unwrap());
    for structure in report["structures"].as_array().unwrap() {
        if let Some(text) = structure["text"].as_str() {
            assert!(found.iter().any(|line| line.ends_with(text)), "{text}: {found:?}");
        }
    }
}

#[test]
fn an_independent_reader_takes_the_dicom_document() {
    let (_out, stem) = documents();
    let path = stem.with_extension("sr.dcm");
    let Ok(output) = Command::new("dsrdump").arg(&path).output() else {
        eprintln!("skipped: dsrdump (Debian's dcmtk) is absent");
        return;
    };
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("Basic Text SR Document"), "{said}");
    // the reader's checker of values does not know UTF-8 and says so; anything else it says is a fault
    let faults: Vec<&str> =
        said.lines().filter(|line| line.starts_with("E:") || (line.starts_with("W:") && !line.contains("ISO_IR 192"))).collect();
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn a_document_of_a_dicom_scan_belongs_to_its_study() {
    let dicom = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/ct/Chest_CT_dicom"));
    if !dicom.exists() {
        eprintln!("skipped: {} is absent", dicom.display());
        return;
    }
    let out = tempfile::tempdir().unwrap();
    succeed(&["generate", text(&dicom), "--run", text(&trained().path("run")), "--out", text(out.path())]);
    let document = open_file(out.path().join("Chest_CT_dicom.sr.dcm")).unwrap();
    let slice = open_file(dicom.join("1-01.dcm")).unwrap();
    for tag in [Tag(0x0020, 0x000D), Tag(0x0010, 0x0020)] {
        let value = |object: &dicom_object::DefaultDicomObject| object.element(tag).unwrap().to_str().unwrap().into_owned();
        assert_eq!(value(&document), value(&slice));
    }
}
