//! CT-RATE's trees, v1 and v2: columns, reconstructions, published splits, what is missing and what is broken.

use std::fs;
use std::path::Path;

use ctscribe::data::{Cache, NamedSplit, Split, Subset, read_ct_rate};

use crate::chest::{SPACING, chest, config, prepared, verdicts, write};

/// A tree under `root/dataset`; volumes by name, in Hounsfield units with a header (v2) or as stored without one (v1).
struct Tree<'a> {
    root: &'a Path,
    fixed: bool,
}

impl Tree<'_> {
    fn volume(&self, name: &str) -> std::path::PathBuf {
        let (scan, _) = name.rsplit_once('_').unwrap();
        let (patient, _) = scan.rsplit_once('_').unwrap();
        let part = if name.starts_with("train") { "train" } else { "valid" };
        let folder = if self.fixed { format!("{part}_fixed") } else { part.to_string() };
        self.root.join("dataset").join(folder).join(patient).join(scan).join(format!("{name}.nii.gz"))
    }

    fn write(&self, name: &str, seed: usize) {
        let hu = chest(seed);
        if self.fixed {
            write(&self.volume(name), &hu, SPACING);
        } else {
            write(&self.volume(name), &hu.iter().map(|hu| hu + 1024).collect::<Vec<_>>(), [1.0; 3]);
        }
    }

    fn table(&self, path: &str, head: &str, rows: &[String]) {
        let path = self.root.join("dataset").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{head}\n{}\n", rows.join("\n"))).unwrap();
    }

    /// Reports of `characters` each; columns in an order of their own, with a byte-order mark, as spreadsheets leave them.
    fn reports(&self, part: &str, names: &[(&str, usize)]) {
        let rows: Vec<String> =
            names.iter().map(|(name, characters)| format!("Not given.,{},x,{name}.nii.gz", "a".repeat(*characters))).collect();
        let head = "\u{feff}Impressions_EN,Findings_EN,Technique_EN,VolumeName";
        self.table(&format!("radiology_text_reports/{part}_reports.csv"), head, &rows);
    }

    fn metadata(&self, part: &str, rows: &[(&str, &str)]) {
        let rows: Vec<String> = rows.iter().map(|(name, xy)| format!("6.0,\"{xy}\",{name}.nii.gz,-1024,1,whatever")).collect();
        self.table(&format!("metadata/{part}_metadata.csv"), "ZSpacing,XYSpacing,VolumeName,RescaleIntercept,RescaleSlope,Maker", &rows);
    }
}

const VALID: [(&str, usize); 5] =
    [("valid_1_a_1", 600), ("valid_1_a_2", 600), ("valid_1_b_2", 40), ("valid_2_a_1", 499), ("valid_3_a_1", 500)];

fn whole_tree(root: &Path, fixed: bool) {
    let tree = Tree { root, fixed };
    VALID.iter().enumerate().for_each(|(seed, (name, _))| tree.write(name, seed));
    tree.reports("validation", &VALID);
    let spellings = ["[5.5, 5.5]", "5.5,5.5", "('5.5', '5.5')", "5.5\\5.5", "[5.50]"];
    let rows: Vec<(&str, &str)> = VALID.iter().zip(spellings).map(|((name, _), xy)| (*name, xy)).collect();
    tree.metadata("validation", &rows);
}

#[test]
fn stored_voxels_without_a_header_and_hounsfield_units_with_one_become_the_same_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&["data.reconstructions=all", "volume.spacing=auto", "volume.orientation=as_stored"]);
    let caches = [false, true].map(|fixed| {
        let root = folder.path().join(format!("fixed-{fixed}"));
        whole_tree(&root, fixed);
        let dataset = read_ct_rate(&root, &config.data, config.seed).unwrap();
        let (report, cache) = prepared(&dataset, &config, &root.join("cache"), 2);
        assert_eq!((report.prepared, report.failed.len()), (5, 0), "{:?}", report.failed);
        let decided = if fixed { "already_hu" } else { "rescaled_by_csv" };
        assert!(verdicts(cache.root()).values().all(|row| row[1] == "prepared" && row[2] == decided));
        cache
    });
    for (name, _) in VALID {
        let [stored, units] =
            [&caches[0], &caches[1]].map(|cache| cache.volume(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(stored, units, "{name}");
    }
}

#[test]
fn one_reconstruction_of_a_scan_is_the_first_with_a_report_and_a_missing_one_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    whole_tree(folder.path(), true);
    let names = |config: &ctscribe::config::Config| -> Vec<String> {
        let dataset = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
        dataset.studies.iter().map(|study| study.name.clone()).collect()
    };
    assert_eq!(names(&config(&["data.reconstructions=all"])), VALID.map(|(name, _)| name));
    assert_eq!(names(&config(&[])), ["valid_1_a_1", "valid_1_b_2", "valid_2_a_1", "valid_3_a_1"]);
    fs::remove_file(Tree { root: folder.path(), fixed: true }.volume("valid_1_a_1")).unwrap();
    let dataset = read_ct_rate(folder.path(), &config(&[]).data, 7).unwrap();
    assert!(dataset.studies.iter().all(|study| !study.name.starts_with("valid_1_a")));
    let why = |name: &str| dataset.left_out.iter().find(|(volume, _)| volume == name).unwrap().1.clone();
    assert_eq!(why("valid_1_a_1.nii.gz"), "has a report and no volume");
    assert!(why("valid_1_a_2.nii.gz").contains("another reconstruction"));
}

#[test]
fn published_splits_are_whole_whatever_is_at_hand_and_results_say_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    whole_tree(folder.path(), true);
    let config = config(&[]);
    let dataset = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
    let (_, cache) = prepared(&dataset, &config, &folder.path().join("cache"), 1);
    let names = |named| cache.named[&named].names.clone();
    assert_eq!(names(NamedSplit::CtRateValidVolumes), VALID.map(|(name, _)| name));
    assert_eq!(names(NamedSplit::CtRateValidScans), ["valid_1_a_1", "valid_1_b_2", "valid_2_a_1", "valid_3_a_1"]);
    assert_eq!(names(NamedSplit::CtRateValid500), ["valid_1_a_1", "valid_3_a_1"]);
    let volumes = Subset::Named(NamedSplit::CtRateValidVolumes);
    let used = cache.subset(volumes).unwrap().len();
    let record = cache.split_record(volumes, used).unwrap();
    // one reconstruction a scan was prepared: the split is not whole, and says so
    assert_eq!((record.name.as_str(), record.studies, record.missing), ("ct-rate-valid-volumes", 5, 1));
    // printf 'valid_1_a_1\nvalid_3_a_1' | sha256sum
    let long = cache.split_record(Subset::Named(NamedSplit::CtRateValid500), 2).unwrap();
    assert_eq!((long.missing, long.sha256.as_str()), (0, "060d4bf1bdbc71ec8cadf03ba5b145b8efe2358d4a3a105d2a263f43a29a78c4"));
    let absent = cache.subset(Subset::Named(NamedSplit::CtrgTest)).unwrap_err().to_string();
    assert!(
        absent.contains("ctrg-test: the dataset that was prepared has no such split") && absent.contains("ct-rate-valid-scans"),
        "{absent}"
    );
}

#[test]
fn what_is_missing_or_broken_is_listed_with_its_reason_and_nothing_stands_in_for_it() {
    let folder = tempfile::tempdir().unwrap();
    whole_tree(folder.path(), true);
    let tree = Tree { root: folder.path(), fixed: true };
    // a cut archive, a damaged one, a volume without a report, one with a wrong name, a report without a volume
    let whole = fs::read(tree.volume("valid_2_a_1")).unwrap();
    fs::write(tree.volume("valid_2_a_1"), &whole[..whole.len() / 2]).unwrap();
    let mut damaged = fs::read(tree.volume("valid_3_a_1")).unwrap();
    let at = damaged.len() - 6;
    damaged[at] ^= 0xff;
    fs::write(tree.volume("valid_3_a_1"), damaged).unwrap();
    tree.write("valid_9_a_1", 9);
    fs::copy(tree.volume("valid_9_a_1"), tree.volume("valid_9_a_1").with_file_name("scan.nii.gz")).unwrap();
    let mut reports = VALID.to_vec();
    reports.extend([("valid_8_a_1", 300), ("valid_7_a_1", 0)]);
    tree.reports("validation", &reports);
    tree.write("valid_7_a_1", 7);
    tree.metadata("validation", &[("valid_1_a_1", "[5.5, 5.5]"), ("valid_1_b_2", "unknown")]);
    let config = config(&["volume.spacing=auto"]);
    let dataset = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
    let (report, cache) = prepared(&dataset, &config, &folder.path().join("cache"), 2);
    assert_eq!((report.prepared, report.failed.len(), cache.studies.len()), (2, 2, 2));
    let rows = verdicts(cache.root());
    for (volume, outcome, column, why) in [
        ("valid_1_a_1", "prepared", 4, ""),
        ("valid_1_b_2", "prepared", 4, "XYSpacing \"unknown\""),
        ("valid_2_a_1", "failed", 3, "ends early"),
        ("valid_3_a_1", "failed", 3, "cannot be decompressed"),
        ("valid_7_a_1.nii.gz", "left out", 3, "its report is empty"),
        ("valid_8_a_1.nii.gz", "left out", 3, "has a report and no volume"),
        ("valid_9_a_1.nii.gz", "left out", 3, "no row in the reports"),
        ("scan.nii.gz", "left out", 3, "its name is not SPLIT_PATIENT_SCAN_RECONSTRUCTION"),
    ] {
        let row = &rows[volume];
        assert!(row[1] == outcome && row[column].contains(why), "{volume}: {row:?}");
    }
    assert!(rows["valid_2_a_1"][4].contains("no row in the metadata"));
}

#[test]
fn a_header_that_contradicts_the_metadata_s_spacing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    whole_tree(folder.path(), true);
    let tree = Tree { root: folder.path(), fixed: true };
    write(&tree.volume("valid_2_a_1"), &chest(3), [3.0, 5.5, 5.5]);
    let config = config(&["volume.spacing=auto"]);
    let dataset = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
    let (report, _) = prepared(&dataset, &config, &folder.path().join("cache"), 2);
    assert_eq!(report.failed.len(), 1);
    assert!(
        report.failed[0].1.contains("contradict the metadata's") && report.failed[0].1.contains("volume.spacing"),
        "{:?}",
        report.failed
    );
}

#[test]
fn an_interrupted_preparation_goes_on_keeps_its_verdicts_and_ends_like_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    whole_tree(folder.path(), true);
    let config = config(&["data.reconstructions=all"]);
    let dataset = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
    let (unbroken, broken) = (folder.path().join("unbroken"), folder.path().join("broken"));
    prepared(&dataset, &config, &unbroken, 1);
    let mut first = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
    first.studies.truncate(2);
    prepared(&first, &config, &broken, 1);
    // killed: the volumes are there and half of another one, the tables are not
    fs::write(broken.join("volumes/.tmpaB3xYz"), b"half").unwrap();
    ["prepare.csv", "studies.jsonl", "splits.json"].iter().for_each(|name| fs::remove_file(broken.join(name)).unwrap());
    assert!(Cache::open(&broken).is_err());
    let (report, cache) = prepared(&dataset, &config, &broken, 3);
    assert_eq!((report.prepared, report.kept), (3, 2));
    for name in ["studies.jsonl", "splits.json", "preparation.json"] {
        assert_eq!(fs::read(broken.join(name)).unwrap(), fs::read(unbroken.join(name)).unwrap(), "{name}");
    }
    for study in &cache.studies {
        let file = format!("volumes/{}.safetensors", study.name);
        assert!(fs::read(broken.join(&file)).unwrap() == fs::read(unbroken.join(&file)).unwrap(), "{file}");
    }
    assert_eq!(fs::read_dir(broken.join("volumes")).unwrap().count(), cache.studies.len(), "the half is gone");
    let (kept, whole) = (verdicts(&broken), verdicts(&unbroken));
    assert_eq!((kept["valid_1_a_1"][1].as_str(), &kept["valid_1_a_1"][2..]), ("kept", &whole["valid_1_a_1"][2..]));
}

#[test]
fn a_patient_s_volumes_share_a_split_and_both_parts_are_read() {
    let folder = tempfile::tempdir().unwrap();
    whole_tree(folder.path(), true);
    let tree = Tree { root: folder.path(), fixed: true };
    let names: Vec<String> = (1..=12).flat_map(|n| [format!("train_{n}_a_1"), format!("train_{n}_b_1")]).collect();
    names.iter().enumerate().for_each(|(seed, name)| tree.write(name, seed));
    tree.reports("train", &names.iter().map(|name| (name.as_str(), 200)).collect::<Vec<_>>());
    let config = config(&["data.validation_share=0.4"]);
    let dataset = read_ct_rate(folder.path(), &config.data, config.seed).unwrap();
    let of = |split: Split| dataset.studies.iter().filter(|study| study.split == split).count();
    assert_eq!(of(Split::Train) + of(Split::Validation), 24);
    assert!(of(Split::Validation) > 0 && of(Split::Test) == 4);
    for pair in dataset.studies.windows(2).filter(|pair| pair[0].patient == pair[1].patient) {
        assert_eq!(pair[0].split, pair[1].split);
    }
}
