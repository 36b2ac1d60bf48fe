//! What the text rules make of a table.

use serde_json::Value;

use crate::trained::{run, succeed, text};

const TABLE: &str = "VolumeName,Findings_EN,Impressions_EN
a,Heart size is increased. Both lungs are clear.,Cardiomegaly.
b,\"No pleural effusion, but atelectasis is seen.\",Not given.
c,Contrast was given.,
";

#[test]
fn a_table_of_reports_is_audited_and_labelled() {
    let folder = tempfile::tempdir().unwrap();
    let (table, page) = (folder.path().join("reports.csv"), folder.path().join("page.html"));
    std::fs::write(&table, TABLE).unwrap();
    let audit: Value = serde_json::from_str(&succeed(&["text", "audit", text(&table), "--html", text(&page), "--json"])).unwrap();
    assert_eq!((&audit["reports"], &audit["sentences"], &audit["characters_lost"]), (&3.into(), &5.into(), &0.into()));
    assert_eq!(audit["unassigned"], serde_json::json!([["Contrast was given.", 1]]));
    assert!(std::fs::read_to_string(&page).unwrap().contains("prefers-color-scheme: dark"));

    let labels = succeed(&["text", "label", text(&table)]);
    let rows: Vec<&str> = labels.lines().collect();
    assert!(rows[0].starts_with("VolumeName,Medical material,") && rows[0].ends_with("Interlobular septal thickening"));
    // Cardiomegaly is the third finding, atelectasis the ninth.
    assert_eq!(
        rows[1..],
        ["a,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0", "b,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0", "c,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"]
    );
    let written = folder.path().join("labels.csv");
    std::fs::write(&written, &labels).unwrap();
    assert!(succeed(&["text", "label", text(&table), "--against", text(&written)]).contains("macro F1 1.0000, micro F1 1.0000"));
    let (code, _, err) = run(&["text", "label", text(&table), "--against"]);
    assert!(code == 1 && err.contains("has no labels of these reports"), "{err}");
}
