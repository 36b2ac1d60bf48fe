use std::collections::BTreeMap;
use std::time::Instant;

use super::*;
use crate::text::{Structures, label_report};
use crate::volume::{CsvRescale, HuPolicy, apply_policy, looks_like_chest, read, to_mm};

const PHANTOMS: u64 = 2000;

fn config(findings: Vec<String>) -> PhantomConfig {
    PhantomConfig { train: 40, valid: 6, spacing_mm: [6.0, 5.5, 5.5], field_of_view_mm: [288.0, 264.0, 330.0], findings, seed: 7 }
}

fn default_config() -> PhantomConfig {
    config(PhantomConfig::default_findings())
}

fn all_findings() -> PhantomConfig {
    config(FINDINGS.map(String::from).to_vec())
}

/// Labels, lesions and report without the voxels' cost.
fn drawn(config: &PhantomConfig) -> Vec<Phantom> {
    use rayon::prelude::*;
    let coarse = PhantomConfig { spacing_mm: [8.0; 3], ..config.clone() };
    (0..PHANTOMS).into_par_iter().map(|index| draw(config.seed, index, &coarse)).collect()
}

fn volume(phantom: &Phantom) -> Volume {
    Volume {
        values: phantom.values.iter().map(|value| f32::from(*value)).collect(),
        shape: phantom.shape,
        spacing_mm: phantom.spacing_mm,
        affine: phantom.affine,
        path: "phantom.nii.gz".into(),
        format: "NIfTI int16".into(),
        notices: Vec::new(),
    }
}

#[test]
fn the_same_seed_and_index_draw_the_same_phantom_and_others_another() {
    let config = default_config();
    assert!(draw(7, 3, &config) == draw(7, 3, &config));
    assert!(draw(7, 3, &config).values != draw(7, 4, &config).values);
    assert!(draw(7, 3, &config).values != draw(8, 3, &config).values);
}

#[test]
fn the_labeller_reads_from_every_report_what_was_drawn() {
    for config in [default_config(), all_findings()] {
        for (index, phantom) in drawn(&config).iter().enumerate() {
            assert_eq!(label_report(&phantom.findings), phantom.labels, "{index}: {}", phantom.findings);
            let whole = format!("{} {}", phantom.findings, phantom.impression);
            assert_eq!(label_report(&whole), phantom.labels, "{index}: {whole}");
            let mut with_lesion = [false; 18];
            phantom.lesions.iter().for_each(|lesion| with_lesion[lesion.finding] = true);
            assert_eq!(with_lesion, phantom.labels, "{index}");
        }
    }
}

#[test]
fn every_sentence_belongs_to_a_structure_and_an_abnormal_one_to_its_lesions() {
    let structures = Structures::load("ours").unwrap();
    let Structures::Rules(rules) = &structures else { panic!("our rules") };
    for phantom in drawn(&all_findings()) {
        let assignment = structures.assign(&phantom.findings);
        assert!(assignment.unassigned.is_empty(), "{:?}", assignment.unassigned);
        for sentence in rules.sentences(&phantom.findings) {
            for finding in (0..18).filter(|finding| label_report(&sentence)[*finding]) {
                let lesion = phantom.lesions.iter().find(|lesion| lesion.finding == finding).unwrap();
                let structure = structures.names().iter().position(|name| *name == lesion.structure).unwrap();
                let text = assignment.texts[structure].as_deref().unwrap_or_default();
                assert!(text.contains(&sentence), "{}: {sentence}", lesion.structure);
            }
        }
    }
}

#[test]
fn findings_are_neither_rare_nor_common_and_reports_are_short() {
    let phantoms = drawn(&default_config());
    let share = |finding: usize| phantoms.iter().filter(|phantom| phantom.labels[finding]).count() as f64 / phantoms.len() as f64;
    for (finding, name) in FINDINGS.iter().enumerate() {
        let default = default_config().draws(finding);
        assert_eq!(share(finding) > 0.0, default, "{name}");
        assert!(!default || (0.12..0.45).contains(&share(finding)), "{name}: {}", share(finding));
    }
    let normal = phantoms.iter().filter(|phantom| phantom.labels == [false; 18]).count();
    assert!(normal > 40, "{normal} of {PHANTOMS} are normal");
    let words = phantoms.iter().map(|phantom| phantom.findings.split_whitespace().count()).sum::<usize>() as f64 / phantoms.len() as f64;
    assert!((45.0..75.0).contains(&words), "{words} words");
}

#[test]
fn boxes_hold_what_a_finding_changes() {
    let config = all_findings();
    for index in 0..120 {
        let source = Source { patient: index, scan: index, reconstruction: 0 };
        let with = draw_source(7, source, &config);
        let without = draw_with(7, source, &config, [false; 18]);
        assert_eq!(with.shape, without.shape);
        let [_, height, width] = with.shape;
        for lesion in &with.lesions {
            let inside = |voxel: usize| {
                let at = [voxel / (height * width), voxel / width % height, voxel % width];
                (0..3).all(|axis| (lesion.first[axis]..lesion.end[axis]).contains(&at[axis]))
            };
            let differ = |voxel: &usize| (i32::from(with.values[*voxel]) - i32::from(without.values[*voxel])).abs() > 40;
            let changed = (0..with.values.len()).filter(|voxel| inside(*voxel)).filter(differ).count();
            assert!(changed >= 8, "{index} {}: {changed} voxels changed", FINDINGS[lesion.finding]);
        }
    }
}

#[test]
fn a_finding_changes_nothing_far_from_its_boxes() {
    let config = all_findings();
    for index in 0..36 {
        let finding = (index % 18) as usize;
        let source = Source { patient: index, scan: index, reconstruction: 0 };
        let with = draw_with(7, source, &config, std::array::from_fn(|other| other == finding));
        let without = draw_with(7, source, &config, [false; 18]);
        let [_, height, width] = with.shape;
        // Two voxels more: rims are mixed, and the scanner blurs.
        let near = |at: [usize; 3]| {
            with.lesions.iter().any(|lesion| (0..3).all(|axis| at[axis] + 2 >= lesion.first[axis] && at[axis] < lesion.end[axis] + 2))
        };
        for (voxel, (with, without)) in with.values.iter().zip(&without.values).enumerate() {
            let at = [voxel / (height * width), voxel / width % height, voxel % width];
            assert!(near(at) || (i32::from(*with) - i32::from(*without)).abs() <= 40, "{}: {at:?}", FINDINGS[finding]);
        }
    }
}

#[test]
fn sides_in_the_report_are_the_scanners() {
    for phantom in (0..200).map(|index| draw(7, index, &default_config())) {
        for lesion in phantom.lesions.iter().filter(|lesion| [8, 9, 12].contains(&lesion.finding)) {
            let middle = |axis: usize| (lesion.first[axis] + lesion.end[axis] - 1) as f64 / 2.0;
            let [right, _, _] = to_mm(&phantom.affine, [middle(2), middle(1), middle(0)]);
            // Scanner coordinates are right-anterior-superior.
            let side = if right > 0.0 { Side::Right } else { Side::Left };
            assert_eq!(lesion.side, Some(side));
            let told = phantom.findings.split(". ").find(|sentence| label_report(sentence)[lesion.finding]).unwrap().to_lowercase();
            assert!(told.contains(side.name()) || told.contains("both sides"), "{told}");
        }
    }
}

#[test]
fn volumes_are_chests_in_hounsfield_units_whatever_the_metadata_lists() {
    for (config, count) in [(default_config(), 150), (PhantomConfig { spacing_mm: [3.0, 2.0, 2.0], ..all_findings() }, 2)] {
        for index in 0..count {
            let mut volume = volume(&draw(7, index, &config));
            let check = looks_like_chest(&volume);
            assert!(check.is_chest, "{index}: {check:?}");
            let dicom = CsvRescale { slope: 1.0, intercept: -1024.0 };
            assert_eq!(apply_policy(&mut volume, Some(dicom), HuPolicy::Auto).unwrap().decision, "already_hu");
        }
    }
}

/// Every file's path under `root` and its bytes.
fn files(root: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let entries = walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_file());
    entries.map(|entry| (entry.path().strip_prefix(root).unwrap().display().to_string(), std::fs::read(entry.path()).unwrap())).collect()
}

fn rows(root: &std::path::Path, table: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(root.join("dataset").join(table)).unwrap();
    reader.deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn a_data_set_is_read_back_as_drawn_and_rewritten_byte_for_byte() {
    let (root, config) = (tempfile::tempdir().unwrap(), default_config());
    write_dataset(root.path(), &config, |_| ()).unwrap();
    let first = files(root.path());
    write_dataset(root.path(), &config, |_| ()).unwrap();
    assert!(first == files(root.path()));

    let (reports, metadata) =
        (rows(root.path(), "radiology_text_reports/train_reports.csv"), rows(root.path(), "metadata/train_metadata.csv"));
    let labels = rows(root.path(), "multi_abnormality_labels/train_predicted_labels.csv");
    let scans: std::collections::BTreeSet<&str> = reports.iter().map(|row| row["VolumeName"].rsplit_once('_').unwrap().0).collect();
    assert_eq!(scans.len(), config.train);
    assert!(scans.iter().any(|scan| scan.ends_with("_b")) && reports.len() > scans.len());
    for ((report, metadata), labels) in reports.iter().zip(&metadata).zip(&labels) {
        let name = &report["VolumeName"];
        assert!(name == &metadata["VolumeName"] && name == &labels["VolumeName"]);
        let (scan, _) = name.rsplit_once('_').unwrap();
        let (patient, _) = scan.rsplit_once('_').unwrap();
        let volume = read(&root.path().join(format!("dataset/train_fixed/{patient}/{scan}/{name}"))).unwrap();
        assert_eq!(metadata["NumberofSlices"], volume.shape[0].to_string());
        assert_eq!(metadata["XYSpacing"], format!("[{0}, {0}]", (volume.spacing_mm[2] * 1e3).round() / 1e3));
        let told = label_report(&report["Findings_EN"]);
        assert!(FINDINGS.iter().zip(told).all(|(finding, told)| labels[*finding] == u8::from(told).to_string()));
    }
    let drawn = draw(config.seed, 0, &config);
    assert_eq!(reports[0]["Findings_EN"], drawn.findings);
    let stored = read(&root.path().join("dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz")).unwrap();
    assert!(stored.values.iter().zip(&drawn.values).all(|(stored, drawn)| *stored == f32::from(*drawn)));
    assert!(stored.affine.iter().flatten().zip(drawn.affine.iter().flatten()).all(|(stored, drawn)| (stored - drawn).abs() < 1e-3));
    let truth = std::fs::read_to_string(root.path().join("dataset/phantom_truth.jsonl")).unwrap();
    assert_eq!(truth.lines().count(), reports.len() + rows(root.path(), "metadata/validation_metadata.csv").len());

    let other = PhantomConfig { train: 3, ..config };
    assert!(write_dataset(root.path(), &other, |_| ()).unwrap_err().to_string().contains("left by another configuration"));
}

#[test]
fn reconstructions_share_the_report_and_differ_in_noise() {
    let config = default_config();
    let [one, two] = [0, 1].map(|reconstruction| draw_source(7, Source { patient: 5, scan: 5, reconstruction }, &config));
    assert!(one.values != two.values);
    assert_eq!((one.findings, one.labels, one.lesions), (two.findings, two.labels, two.lesions));
}

#[test]
fn faults_name_the_key_and_what_was_found() {
    let mut config = default_config();
    assert!(config.faults("phantom").is_empty());
    config.train = 0;
    config.findings.push("Pneumothorax".to_string());
    let faults = config.faults("phantom");
    assert_eq!(faults[0], "phantom.train: must be at least 1");
    assert!(faults[1].starts_with("phantom.findings: \"Pneumothorax\" is none of Medical material"), "{faults:?}");
}

/// Prints what a phantom costs and a few reports.
#[test]
#[ignore = "a measurement, for --release"]
fn a_phantom_takes_less_than_two_milliseconds() {
    let config = default_config();
    draw(7, 0, &config);
    let (start, count) = (Instant::now(), 500);
    let phantoms: Vec<Phantom> = (0..count).map(|index| draw(7, index, &config)).collect();
    eprintln!("{:.2} ms a phantom", start.elapsed().as_secs_f64() * 1e3 / count as f64);
    phantoms.iter().take(6).for_each(|phantom| eprintln!("{}\n  {}", phantom.findings, phantom.impression));
}
