//! CT-RATE from the hub, one volume at a time: fetched, prepared, deleted, within a budget of disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::volume::PreparationConfig;
use crate::weights::hub::{Hub, HubFile, incomplete};
use crate::{Error, Result};

use super::cache::volume_path;
use super::ct_rate::{Part, Tables};
use super::preparing::{OnDisk, Supply};
use super::{DataConfig, Dataset, Study};

/// Where CT-RATE lies (gated).
const REPOSITORY: &str = "datasets/ibrahimhamamci/CT-RATE";

/// So many volumes in a row that cannot be fetched end the run: it is not the volumes.
const UNLUCKY: usize = 5;

/// What is wanted of CT-RATE.
#[derive(Debug, Clone)]
pub struct HubPlan<'a> {
    /// Its parts.
    pub parts: &'a [Part],
    /// The first so many studies of each, by name.
    pub limit: Option<usize>,
    /// Branch, tag or commit of the repository.
    pub revision: &'a str,
    /// Which studies, which text.
    pub config: &'a DataConfig,
    /// Where the training patients' split comes from.
    pub seed: u64,
}

fn file(revision: &str, path: String) -> HubFile {
    HubFile { repository: REPOSITORY.to_string(), revision: revision.to_string(), path }
}

/// Where a volume lies in the repository: `dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz`.
fn place(part: Part, volume: &str) -> Option<PathBuf> {
    let (scan, _) = volume.trim_end_matches(".nii.gz").rsplit_once('_')?;
    let (patient, _) = scan.rsplit_once('_')?;
    Some(PathBuf::from(format!("dataset/{}_fixed/{patient}/{scan}/{volume}", part.name())))
}

impl HubPlan<'_> {
    /// Fetches the tables into the hub's cache and reads the studies: those asked for, and those that the cache `root` holds already. A study's path
    /// is its place in the repository.
    pub fn dataset(&self, hub: &Hub, root: &Path) -> Result<Dataset> {
        let mut dataset = Dataset::default();
        for part in Part::ALL {
            let asked = self.parts.contains(&part);
            if !asked && !holds(root, part) {
                continue;
            }
            let mut tables = Vec::new();
            for table in part.tables() {
                let table = file(self.revision, format!("dataset/{table}"));
                tables.push(hub.fetch(&table, None, &mut |_, _| {})?);
            }
            let tables: [PathBuf; 3] = tables.try_into().expect("a part has three tables");
            let tables = Tables::read(part, &tables)?;
            let files: BTreeMap<String, PathBuf> = tables.volumes().filter_map(|name| Some((name.clone(), place(part, name)?))).collect();
            let mut part = tables.studies(&files, self.config, self.seed);
            let limit = if asked { self.limit.unwrap_or(usize::MAX) } else { 0 };
            let mut index = 0;
            part.studies.retain(|study| {
                index += 1;
                index <= limit || volume_path(root, &study.name).is_file()
            });
            dataset.add(part);
        }
        dataset.finish(Path::new(REPOSITORY), "the reports")
    }
}

/// Whether the cache holds a volume of a part.
fn holds(root: &Path, part: Part) -> bool {
    let entries = fs::read_dir(root.join("volumes")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{}_", part.name())))
}

/// Brings volumes from the hub; each is deleted when it has been prepared.
pub struct HubFetch<'h> {
    hub: &'h Hub,
    revision: String,
    root: PathBuf,
    prepared_bytes: u64,
    budget: Arc<Budget>,
    unlucky: AtomicUsize,
}

impl<'h> HubFetch<'h> {
    /// Into the cache `root`, which with its downloads stays below `disk_bytes`.
    pub fn new(hub: &'h Hub, revision: &str, (root, config): (&Path, &PreparationConfig), disk_bytes: u64) -> Result<Self> {
        let downloads = root.join("downloads");
        fs::create_dir_all(&downloads).map_err(|e| Error::io(&downloads, e))?;
        // f16, and a header
        let prepared_bytes = 2 * config.shape().iter().product::<usize>() as u64 + 8192;
        let budget = Arc::new(Budget::new(disk_bytes, folder_bytes(root)?));
        Ok(HubFetch { hub, revision: revision.to_string(), root: root.to_path_buf(), prepared_bytes, budget, unlucky: AtomicUsize::new(0) })
    }

    fn fetch(&self, study: &Study) -> Result<std::result::Result<OnDisk, String>> {
        let file = file(&self.revision, study.path.to_string_lossy().replace('\\', "/"));
        let Some(remote) = self.hub.find(&file)? else {
            return Ok(Err("the hub has a report and no file (404)".to_string()));
        };
        let path = self.root.join("downloads").join(format!("{}.nii.gz", study.name));
        let here = bytes(&incomplete(&path)) + bytes(&path);
        let reserved = remote.size.saturating_sub(here) + self.prepared_bytes;
        if !self.budget.reserve(reserved) {
            return Ok(Err(format!("the disk budget of {} is used up", human(self.budget.limit))));
        }
        // whatever happens from here on, what is not on disk at the end is given back
        let (budget, download, volume) = (self.budget.clone(), path.clone(), volume_path(&self.root, &study.name));
        let release = move || {
            let _ = fs::remove_file(&download);
            let left = bytes(&incomplete(&download)) + bytes(&volume);
            budget.release(reserved + here, left);
        };
        let scan = OnDisk::brought(path, release);
        if !scan.path.is_file() {
            self.hub.download(&file, &remote, &scan.path, &mut |_, _| {})?;
        }
        Ok(Ok(scan))
    }
}

impl Supply for HubFetch<'_> {
    fn bring(&self, study: &Study) -> Result<std::result::Result<OnDisk, String>> {
        if self.unlucky.load(Ordering::Relaxed) >= UNLUCKY {
            return Ok(Err(format!("not tried: {UNLUCKY} volumes in a row could not be fetched")));
        }
        let brought = self.fetch(study);
        match &brought {
            Ok(_) => self.unlucky.store(0, Ordering::Relaxed),
            Err(_) => _ = self.unlucky.fetch_add(1, Ordering::Relaxed),
        }
        brought
    }
}

/// Bytes on disk that are in use or spoken for.
struct Budget {
    limit: u64,
    state: Mutex<Held>,
    changed: Condvar,
}

struct Held {
    bytes: u64,
    in_flight: usize,
    spent: bool,
}

impl Budget {
    fn new(limit: u64, bytes: u64) -> Self {
        Budget { limit, state: Mutex::new(Held { bytes, in_flight: 0, spent: false }), changed: Condvar::new() }
    }

    /// Waits until there is room; false where there will be none, now and for every later scan.
    fn reserve(&self, bytes: u64) -> bool {
        let mut held = self.state.lock().expect("nothing panics while it holds the budget");
        loop {
            if held.spent {
                return false;
            }
            if held.bytes + bytes <= self.limit {
                held.bytes += bytes;
                held.in_flight += 1;
                return true;
            }
            if held.in_flight == 0 {
                held.spent = true;
                self.changed.notify_all();
                return false;
            }
            held = self.changed.wait(held).expect("nothing panics while it holds the budget");
        }
    }

    /// `bytes` were held, `left` of them stay on disk.
    fn release(&self, bytes: u64, left: u64) {
        let mut held = self.state.lock().expect("nothing panics while it holds the budget");
        held.bytes = (held.bytes + left).saturating_sub(bytes);
        held.in_flight -= 1;
        self.changed.notify_all();
    }
}

fn bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let entries = walkdir::WalkDir::new(folder).into_iter();
    let sizes = entries.map(|entry| entry.and_then(|entry| Ok(entry.metadata()?.len())).map_err(|e| Error::file(folder, e.to_string())));
    sizes.sum()
}

/// Bytes in the largest unit that leaves a number of at least one.
fn human(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    units
        .iter()
        .find(|(size, _)| bytes as f64 >= *size)
        .map_or(format!("{bytes} bytes"), |(size, unit)| format!("{:.1} {unit}", bytes as f64 / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_lies_below_its_patient_and_its_scan() {
        let place = place(Part::Valid, "valid_1_a_2.nii.gz").unwrap();
        assert_eq!(place, Path::new("dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_2.nii.gz"));
    }

    #[test]
    fn a_budget_lets_in_what_fits_waits_for_what_will_and_ends_when_nothing_is_under_way() {
        let budget = Arc::new(Budget::new(100, 10));
        assert!(budget.reserve(60));
        let waiting = std::thread::spawn({
            let budget = budget.clone();
            move || budget.reserve(50)
        });
        budget.release(60, 20);
        // 10 before, 20 stay, 50 more
        assert!(waiting.join().unwrap());
        budget.release(50, 50);
        assert!(budget.reserve(20));
        budget.release(20, 0);
        assert!(!budget.reserve(21) && !budget.reserve(1), "once spent, the rest is left");
    }
}
