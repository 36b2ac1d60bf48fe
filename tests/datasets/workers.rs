//! Several workers: no more scans at once than asked for, the same bytes, and one reader's panic is one volume's failure.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ctscribe::Result;
use ctscribe::config::Config;
use ctscribe::data::{Dataset, OnDisk, Preparation, Study, Supply, read_listing};
use ctscribe::ranks::Alone;

use crate::chest::{SPACING, chest, config, prepared, write};

/// Twelve studies.
fn dataset(folder: &std::path::Path, config: &Config) -> Dataset {
    let rows: Vec<String> = (0..12).map(|n| format!("s{n:02},{n}.nii.gz,A report.")).collect();
    (0..12).for_each(|n| write(&folder.join(format!("{n}.nii.gz")), &chest(n), SPACING));
    let path = folder.join("list.csv");
    fs::write(&path, format!("study,path,report\n{}\n", rows.join("\n"))).unwrap();
    read_listing(&path, &config.data, config.seed).unwrap()
}

/// Counts the scans that are out at once.
#[derive(Default)]
struct Counted {
    out: Arc<AtomicUsize>,
    most: AtomicUsize,
}

impl Supply for Counted {
    fn bring(&self, study: &Study) -> Result<std::result::Result<OnDisk, String>> {
        self.most.fetch_max(self.out.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let out = self.out.clone();
        Ok(Ok(OnDisk::brought(study.path.clone(), move || _ = out.fetch_sub(1, Ordering::SeqCst))))
    }
}

#[test]
fn no_more_scans_are_out_at_once_than_there_are_workers_and_all_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&[]);
    let dataset = dataset(folder.path(), &config);
    let supply = Counted::default();
    let root = folder.path().join("cache");
    let preparation = Preparation { dataset: &dataset, config: &config.volume, root: &root, supply: &supply, workers: 3, ranks: &Alone };
    assert_eq!(preparation.run(&|_| {}).unwrap().prepared, 12);
    let most = supply.most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most) && supply.out.load(Ordering::SeqCst) == 0, "{most}");
}

#[test]
fn any_number_of_workers_writes_the_same_cache() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&[]);
    let dataset = dataset(folder.path(), &config);
    let roots = [1, 4].map(|workers| {
        let root = folder.path().join(workers.to_string());
        prepared(&dataset, &config, &root, workers);
        root
    });
    let files = ["studies.jsonl", "prepare.csv", "splits.json"].map(String::from);
    let volumes = dataset.studies.iter().map(|study| format!("volumes/{}.safetensors", study.name));
    for file in files.into_iter().chain(volumes) {
        let [one, four] = [&roots[0], &roots[1]].map(|root| fs::read(root.join(&file)).unwrap());
        assert!(one == four, "{file}");
    }
}

struct Panicking;

impl Supply for Panicking {
    fn bring(&self, study: &Study) -> Result<std::result::Result<OnDisk, String>> {
        assert!(study.name != "s05", "a decoder's bug");
        Ok(Ok(OnDisk::kept(study.path.clone())))
    }
}

#[test]
fn a_panic_while_one_volume_is_read_is_that_volume_s_failure() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&[]);
    let dataset = dataset(folder.path(), &config);
    let root = folder.path().join("cache");
    let preparation = Preparation { dataset: &dataset, config: &config.volume, root: &root, supply: &Panicking, workers: 2, ranks: &Alone };
    let report = preparation.run(&|_| {}).unwrap();
    assert_eq!((report.prepared, report.failed.len()), (11, 1));
    assert!(report.failed[0].1.contains("study s05: reading it panicked: a decoder's bug"), "{:?}", report.failed);
}
