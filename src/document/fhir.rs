//! FHIR R4: a DiagnosticReport with one contained Observation a structure (hl7.org/fhir/R4/diagnosticreport.html).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::generate::Report;

const LOINC: &str = "http://loinc.org";

/// The report as a FHIR R4 DiagnosticReport, `preliminary`; structures without text are left out.
pub fn diagnostic_report(report: &Report) -> Value {
    let written = report.structures.iter().filter(|structure| structure.text.is_some());
    let observations: Vec<Value> = written
        .clone()
        .map(|structure| {
            json!({
                "resourceType": "Observation",
                "id": id(&structure.name),
                "status": "preliminary",
                "code": { "text": structure.name },
                "valueString": structure.text,
                "device": { "reference": "#device" },
                "note": [{ "text": format!("{:.0}% of the structure's attention lies on its selected patches", 100.0 * structure.attention_mass) }],
            })
        })
        .collect();
    let results: Vec<Value> = written.map(|structure| json!({ "reference": format!("#{}", id(&structure.name)) })).collect();
    let versions: Vec<Value> = std::iter::once(json!({ "value": env!("CARGO_PKG_VERSION") }))
        .chain(report.models.iter().map(|(file, sha256)| json!({ "type": { "text": format!("sha256 of {file}") }, "value": sha256 })))
        .collect();
    let device = json!({
        "resourceType": "Device",
        "id": "device",
        "deviceName": [{ "name": format!("ctscribe, {} decoder", report.decoder), "type": "model-name" }],
        "version": versions,
    });
    let mut resource = json!({
        "resourceType": "DiagnosticReport",
        "text": { "status": "additional", "div": narrative(report) },
        "contained": std::iter::once(device).chain(observations).collect::<Vec<_>>(),
        "status": "preliminary",
        "category": [{ "coding": [{ "system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "CT", "display": "CAT Scan" }] }],
        "code": { "coding": [{ "system": LOINC, "code": "24627-2", "display": "CT Chest" }], "text": "CT chest" },
        "identifier": [{ "value": report.study }],
        "conclusion": format!("{} {}", report.notice, report.text),
        "presentedForm": [{ "contentType": "text/plain; charset=utf-8", "data": STANDARD.encode(format!("{}\n\n{}\n", report.notice, report.text)), "title": report.study }],
    });
    // FHIR knows no empty arrays
    if !results.is_empty() {
        resource["result"] = Value::Array(results);
    }
    if !report.findings.is_empty() {
        resource["conclusionCode"] = report.findings.iter().map(|finding| json!({ "text": finding })).collect();
    }
    resource
}

/// A FHIR id: letters, digits, hyphens and points.
fn id(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn narrative(report: &Report) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<div xmlns=\"http://www.w3.org/1999/xhtml\"><p><b>{}</b></p><p>{}</p></div>", escaped(&report.notice), escaped(&report.text))
}
