//! A plain CSV of studies, and sentences that come with their structure.

use std::fs;
use std::path::Path;
use std::process::Command;

use ctscribe::data::{Split, read_listing};

use crate::chest::{SPACING, chest, config, prepared, write};

fn listed(folder: &Path, table: &str) -> std::path::PathBuf {
    for n in 1..=3 {
        write(&folder.join(format!("scans/{n}.nii.gz")), &chest(n), SPACING);
    }
    let path = folder.join("list.csv");
    fs::write(&path, table).unwrap();
    path
}

#[test]
fn studies_of_a_list_are_prepared_with_their_splits_patients_and_what_is_wrong_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let table = "path,split,report,study,patient\n\
        scans/1.nii.gz,train,The heart is normal.,one,p1\n\
        scans/2.nii.gz,Val,The lungs are clear.,two,p2\n\
        scans/3.nii.gz,test,No effusion.,three,p3\n\
        scans/4.nii.gz,test,No file.,four,p4\n\
        scans/1.nii.gz,test,,five,p5\n\
        scans/1.nii.gz,somewhere,A report.,six,p6\n\
        scans/1.nii.gz,test,A report.,../seven,p7\n";
    let config = config(&[]);
    let dataset = read_listing(&listed(folder.path(), table), &config.data, config.seed).unwrap();
    let (report, cache) = prepared(&dataset, &config, &folder.path().join("cache"), 2);
    assert_eq!((report.prepared, report.failed.len()), (3, 0), "{:?}", report.failed);
    let splits: Vec<(&str, Split, &str)> =
        cache.studies.iter().map(|study| (study.name.as_str(), study.split, study.patient.as_str())).collect();
    assert_eq!(splits, [("one", Split::Train, "p1"), ("three", Split::Test, "p3"), ("two", Split::Validation, "p2")]);
    let why = |name: &str| dataset.left_out.iter().find(|(study, _)| study == name).unwrap().1.clone();
    assert!(why("four").contains("scans/4.nii.gz: no such file") && why("five").contains("its report is empty"));
    let rows: Vec<&String> = dataset.unreadable.iter().map(|(_, why)| why).collect();
    assert!(
        rows[0].contains("six: split: somewhere: expected train, validation or test") && rows[1].contains("name that can name a file"),
        "{rows:?}"
    );
}

#[test]
fn without_splits_patients_are_drawn_and_a_patient_in_two_splits_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..60).map(|n| format!("s{n},scans/{}.nii.gz,A report.,p{}\n", n % 3 + 1, n / 2)).collect();
    let path = listed(folder.path(), &format!("study,path,report,patient\n{rows}"));
    let config = config(&["data.validation_share=0.2"]);
    let dataset = read_listing(&path, &config.data, config.seed).unwrap();
    for split in [Split::Train, Split::Validation, Split::Test] {
        assert!(dataset.studies.iter().filter(|study| study.split == split).count() >= 2, "{split:?}");
    }
    fs::write(&path, "study,path,report,patient,split\na,scans/1.nii.gz,A.,p,train\nb,scans/2.nii.gz,B.,p,test\n").unwrap();
    let message = read_listing(&path, &config.data, config.seed).unwrap_err().to_string();
    assert!(message.contains("split: patient p is in Train and in Test"), "{message}");
    fs::write(&path, "study,path\na,b\n").unwrap();
    assert!(read_listing(&path, &config.data, config.seed).unwrap_err().to_string().contains("report: no such column; found study, path"));
}

#[test]
fn a_dicom_folder_is_read_like_the_nifti_file_of_the_same_scan() {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/ct"));
    if !data.exists() {
        eprintln!("skipped: {} is absent", data.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let table = format!("study,path,report\nd,{0}/Chest_CT_dicom,A.\nn,{0}/Chest_CT.nii.gz,B.\n", data.display());
    let config = config(&["data.validation_share=0.0"]);
    let dataset = read_listing(&listed(folder.path(), &table), &config.data, config.seed).unwrap();
    let (report, cache) = prepared(&dataset, &config, &folder.path().join("cache"), 1);
    assert_eq!(report.prepared, 2, "{:?}", report.failed);
    let [dicom, nifti] = ["d", "n"].map(|name| cache.volume(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let worst = dicom.iter().zip(&nifti).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // one Hounsfield unit of rounding, in thousandths, kept in f16
    assert!(worst <= 2e-3, "{worst}");
}

#[test]
fn ready_made_sentences_go_with_their_studies_and_the_others_are_left_to_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let table = "study,path,report,split\none,scans/1.nii.gz,The heart is normal.,train\ntwo,scans/2.nii.gz,The heart is large.,train\n";
    let path = listed(folder.path(), table);
    let regions = folder.path().join("regions.csv");
    fs::write(
        &regions,
        "Volumename,Anatomy,Sentence\none.nii.gz,lung,Clear.\none.nii.gz,trachea and bronchie,Open.\none.nii.gz,spleen,Small.\n",
    )
    .unwrap();
    let cache = folder.path().join("cache");
    let output = Command::new(env!("CARGO_BIN_EXE_ctscribe"))
        .args(["prepare", path.to_str().unwrap(), "--source", "csv", "--config", "phantom", "--out", cache.to_str().unwrap()])
        .args(["--structure-text", regions.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 studies have texts, 1 are left to the rules") && said.contains("\"spleen\" (1 sentences)"), "{said}");
    let studies = ctscribe::data::Cache::open(&cache).unwrap().studies;
    let texts = studies[0].structure_texts.as_ref().unwrap();
    assert_eq!((texts["lung"].as_str(), texts["trachea_bronchi"].as_str(), texts.len()), ("Clear.", "Open.", 2));
    assert!(studies[1].structure_texts.is_none());
}
