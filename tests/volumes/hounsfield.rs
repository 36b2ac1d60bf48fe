//! `Auto` on copies of one chest in units known beforehand: the right verdict or a refusal, never a silent wrong one.
//!
//! What no look at the voxels can tell, and is not tested: shifts under 100 HU and slopes within a tenth of one.

use ctscribe::volume::{CsvRescale, HuPolicy, Volume, apply_policy, read};

use crate::data;

/// A body that needs no data: air, lung, fat, muscle, bone in layers.
fn synthetic() -> Volume {
    let layers = [(-1000.0, 30), (-850.0, 22), (-100.0, 15), (45.0, 28), (300.0, 5)];
    let line: Vec<f32> = layers.iter().flat_map(|(hu, count)| vec![*hu; *count]).collect();
    Volume {
        values: line.repeat(100),
        shape: [10, 10, 100],
        spacing_mm: [1.0; 3],
        affine: Volume::lps_affine([1.0; 3], [0.0; 3]),
        path: "synthetic.nii.gz".into(),
        format: "test".to_string(),
        notices: Vec::new(),
    }
}

/// The scans, in Hounsfield units; the abdomen's decision must be right as well.
fn scans() -> Vec<Volume> {
    let names = ["lung1_image", "Chest_CT", "chest_crop_contrast", "3DCT_lung_baseline_small", "abdomen_not_chest_ras_int32"]
        .map(|name| data(&format!("ct/{name}.nii.gz")));
    let real = names.into_iter().flatten().map(|path| thinned(read(&path).unwrap()));
    real.chain([synthetic()]).collect()
}

/// Some 300,000 voxels in whole lines, spread evenly: the same shares, and a test that does not wait.
fn thinned(scan: Volume) -> Volume {
    let nx = scan.shape[2];
    let step = (scan.values.len() / 300_000).max(1);
    let values: Vec<f32> = scan.values.chunks_exact(nx).step_by(step).flatten().copied().collect();
    Volume { shape: [1, values.len() / nx, nx], values, ..scan }
}

/// Slope and intercept as metadata lists them.
const ROWS: [(f64, f64); 6] = [(1.0, -1024.0), (1.0, -1000.0), (1.0, -8192.0), (1.0, 1024.0), (0.5, -1024.0), (2.0, -1024.0)];

fn row((slope, intercept): (f64, f64)) -> Option<CsvRescale> {
    Some(CsvRescale { slope, intercept })
}

fn mapped(scan: &Volume, map: impl Fn(f64) -> f64) -> Volume {
    Volume { values: scan.values.iter().map(|value| map(f64::from(*value)) as f32).collect(), ..scan.clone() }
}

/// `copy` must be decided so, and become `expected`.
#[track_caller]
fn decided(mut copy: Volume, csv: Option<CsvRescale>, decision: &str, expected: &Volume) {
    let verdict = apply_policy(&mut copy, csv, HuPolicy::Auto).unwrap();
    assert_eq!(verdict.decision, decision, "{csv:?}: {}", verdict.evidence);
    let worst = copy.values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // f32 of stored values about 8192
    assert!(worst <= 2e-3, "{}: {csv:?}: differs by {worst} HU", expected.path.display());
}

/// `copy` must be refused in one line that names file and field, and stay as it was.
#[track_caller]
fn refused(copy: Volume, csv: Option<CsvRescale>, reason: &str) {
    let mut after = copy.clone();
    let line = match apply_policy(&mut after, csv, HuPolicy::Auto) {
        Err(error) => error.to_string(),
        Ok(verdict) => panic!("{}: {csv:?}: {} {}", copy.path.display(), verdict.decision, verdict.evidence),
    };
    assert!(line.starts_with(&format!("{}: Hounsfield units: ", copy.path.display())) && line.lines().count() == 1, "{line}");
    assert!(line.contains(reason) && line.contains("volume.hounsfield"), "{line}");
    assert_eq!(after.values, copy.values);
}

const NEITHER: &str = "no reading looks like Hounsfield units";

#[test]
fn hounsfield_units_stay_whatever_the_metadata_lists() {
    for scan in scans() {
        decided(scan.clone(), None, "already_hu", &scan);
        decided(scan.clone(), row((1.0, 0.0)), "already_hu", &scan);
        for csv in ROWS {
            decided(scan.clone(), row(csv), "already_hu", &scan);
        }
    }
}

#[test]
fn stored_values_are_rescaled_by_the_metadata_and_refused_without() {
    for scan in scans() {
        for (slope, intercept) in ROWS {
            let stored = mapped(&scan, |hu| (hu - intercept) / slope);
            refused(stored.clone(), None, NEITHER);
            refused(stored.clone(), row((1.0, 0.0)), NEITHER);
            decided(stored, row((slope, intercept)), "rescaled_by_csv", &scan);
        }
    }
}

#[test]
fn a_row_without_usable_numbers_counts_as_none() {
    let (scan, stored) = (synthetic(), mapped(&synthetic(), |hu| hu + 1024.0));
    for csv in [(f64::NAN, -1024.0), (0.0, -1024.0), (1.0, f64::NAN), (f64::INFINITY, 0.0)] {
        decided(scan.clone(), row(csv), "already_hu", &scan);
        refused(stored.clone(), row(csv), NEITHER);
    }
}

#[test]
fn what_was_rescaled_twice_is_refused() {
    for scan in scans() {
        for (slope, intercept) in ROWS.into_iter().chain([(1.0, -500.0), (1.0, -200.0)]) {
            let twice = mapped(&scan, |hu| slope * hu + intercept);
            refused(twice.clone(), None, NEITHER);
            refused(twice, row((slope, intercept)), NEITHER);
        }
    }
}

#[test]
fn clipped_hounsfield_units_stay() {
    for scan in scans() {
        for [low, high] in [[-1000.0, 1000.0], [-1000.0, 200.0], [-1024.0, 3071.0], [-1350.0, 150.0]] {
            let clipped = mapped(&scan, |hu| hu.clamp(low, high));
            decided(clipped.clone(), None, "already_hu", &clipped);
            decided(clipped.clone(), row((1.0, -1024.0)), "already_hu", &clipped);
            let stored = mapped(&clipped, |hu| hu + 1024.0);
            decided(stored, row((1.0, -1024.0)), "rescaled_by_csv", &clipped);
        }
    }
}

#[test]
fn what_clipping_destroyed_is_refused() {
    for scan in scans() {
        for intercept in [-1024.0, -1000.0, -8192.0] {
            let csv = row((1.0, intercept));
            // stored values and values rescaled twice, clipped as if they were Hounsfield units
            refused(mapped(&scan, |hu| (hu - intercept).clamp(-1000.0, 1000.0)), csv, NEITHER);
            refused(mapped(&scan, |hu| (hu + intercept).clamp(-1000.0, 1000.0)), csv, NEITHER);
        }
        // a soft-tissue window; negative values lost
        refused(mapped(&scan, |hu| hu.clamp(-160.0, 240.0)), row((1.0, -1024.0)), NEITHER);
        refused(mapped(&scan, |hu| hu.max(0.0)), row((1.0, -1024.0)), NEITHER);
    }
}

#[test]
fn other_units_are_refused() {
    for scan in scans() {
        for csv in [None, row((1.0, -1024.0))] {
            refused(mapped(&scan, |hu| hu.clamp(-1000.0, 1000.0) / 1000.0), csv, NEITHER);
            refused(mapped(&scan, |hu| ((hu.clamp(-1000.0, 1000.0) + 1000.0) * 255.0 / 2000.0).round()), csv, NEITHER);
            refused(mapped(&scan, |hu| -hu), csv, NEITHER);
            refused(mapped(&scan, |hu| -1000.0 - hu), csv, NEITHER);
            refused(mapped(&scan, |_| 0.0), csv, NEITHER);
        }
    }
}

#[test]
fn a_small_shift_that_either_reading_survives_is_refused() {
    for scan in scans() {
        refused(scan.clone(), row((1.0, -10.0)), "both readings look like Hounsfield units");
        refused(mapped(&scan, |hu| hu + 10.0), row((1.0, -10.0)), "both readings look like Hounsfield units");
    }
}

#[test]
fn padding_far_below_air_does_not_disturb_the_decision() {
    for padding in [-2000.0, -2048.0, -3024.0] {
        let mut padded = synthetic();
        padded.values.chunks_exact_mut(100).for_each(|line| line[..20].fill(padding));
        decided(padded.clone(), row((1.0, -1024.0)), "already_hu", &padded);
        decided(mapped(&padded, |hu| hu + 1024.0), row((1.0, -1024.0)), "rescaled_by_csv", &padded);
    }
}

#[test]
fn the_other_policies_do_as_they_say() {
    let csv = row((2.0, -1024.0));
    // what becomes of a value: slope and intercept
    let cases = [(HuPolicy::Header, 1.0, 0.0), (HuPolicy::HeaderThenCsv, 2.0, -1024.0), (HuPolicy::HeaderThenCsvIntercept, 1.0, -1024.0)];
    for (policy, slope, intercept) in cases {
        let mut volume = synthetic();
        assert_eq!(apply_policy(&mut volume, csv, policy).unwrap().decision, "by_policy");
        assert_eq!(volume.values, mapped(&synthetic(), |value| slope * value + intercept).values);
        let without = apply_policy(&mut volume, None, policy).map_err(|error| error.to_string());
        assert_eq!(without.is_ok(), policy == HuPolicy::Header);
        let named = "synthetic.nii.gz: RescaleSlope: the policy wants the metadata's slope and intercept, and there is no row";
        assert!(without.is_ok() || without == Err(named.to_string()));
    }
}
