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

fn mapped(scan: &Volume, mut map: impl FnMut(f64) -> f64) -> Volume {
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

/// A drawn chest, in Hounsfield units.
fn phantom() -> Volume {
    let config = ctscribe::config::Config::load("phantom", &[]).unwrap().phantoms.unwrap();
    let drawn = ctscribe::data::phantom::draw(3, 1, &config);
    let values = drawn.values.iter().map(|value| f32::from(*value)).collect();
    let path = "phantom.nii.gz".into();
    Volume {
        values,
        shape: drawn.shape,
        spacing_mm: drawn.spacing_mm,
        affine: drawn.affine,
        path,
        format: "test".into(),
        notices: Vec::new(),
    }
}

/// What a copy is, and what must be decided.
struct Variant {
    copy: Volume,
    csv: Option<CsvRescale>,
    /// `None`: refused; else the decision and the Hounsfield units that must come out, within a tolerance.
    expected: Option<(&'static str, Volume, f32)>,
    what: String,
}

/// One of each kind, with numbers drawn.
fn variants(scan: &Volume, rng: &mut impl rand::Rng) -> Vec<Variant> {
    let whole = |volume: Volume| mapped(&volume, f64::round);
    let hu = whole(scan.clone());
    let slope = [1.0, 1.0, 1.0, 0.5, 2.0][rng.random_range(0..5)];
    let intercept = [-1024.0, -1000.0, -8192.0, f64::from(rng.random_range(-3000..-300))][rng.random_range(0..4)];
    let rescale = row((slope, intercept));
    let any_row = [None, row((1.0, 0.0)), rescale][rng.random_range(0..3)];
    let stored = whole(mapped(&hu, |hu| (hu - intercept) / slope));
    let shift = f64::from(rng.random_range(200..800)) * [1.0, -1.0][rng.random_range(0..2)];
    let (low, high) = (f64::from(rng.random_range(-1350..-1000)), f64::from(rng.random_range(250..3071)));
    let padding = [-2000.0, -2048.0, -3024.0][rng.random_range(0..3)];
    let noise = f64::from(rng.random_range(5..25));
    let hu_as = |copy: Volume, what: String| Variant { expected: Some(("already_hu", copy.clone(), 0.0)), copy, csv: any_row, what };
    let refused = |copy: Volume, csv: Option<CsvRescale>, what: String| Variant { copy, csv, expected: None, what };
    let mut padded = hu.clone();
    let nx = padded.shape[2];
    padded.values.chunks_exact_mut(nx).for_each(|line| line[..nx / 10].fill(padding as f32));
    let noisy = whole(mapped(&hu, |hu| hu + noise * (rng.random::<f64>() + rng.random::<f64>() + rng.random::<f64>() - 1.5)));
    let clipped = mapped(&hu, |hu| hu.clamp(low, high));
    // of a slope of two or a small intercept such clipping would leave the units whole
    let far = [-1024.0, -1000.0, -8192.0][rng.random_range(0..3)];
    let destroyed = mapped(&hu, |hu| (hu - far).clamp(-1000.0, 1000.0));
    let twice = mapped(&hu, |hu| slope * hu + intercept);
    let back = Some(("rescaled_by_csv", hu.clone(), (slope.abs() / 2.0) as f32 + 2e-3));
    vec![
        hu_as(hu.clone(), "v2: units".to_string()),
        Variant { copy: stored.clone(), csv: rescale, expected: back, what: format!("v1: stored, slope {slope}, intercept {intercept}") },
        refused(stored, None, "v1: stored, without a row".to_string()),
        refused(twice.clone(), rescale, format!("rescaled twice, slope {slope}, intercept {intercept}")),
        refused(twice, None, "rescaled twice, without a row".to_string()),
        refused(mapped(&hu, |hu| hu + shift), None, format!("shifted by {shift}")),
        refused(mapped(&hu, |hu| hu + shift), row((1.0, 0.0)), format!("shifted by {shift}, an idle row")),
        hu_as(clipped, format!("clipped to {low}..{high}")),
        refused(destroyed, row((1.0, far)), format!("stored, clipped as units, intercept {far}")),
        hu_as(padded, format!("padded with {padding}")),
        hu_as(noisy, format!("with noise of {noise}")),
        refused(mapped(&hu, |hu| ((hu.clamp(-1000.0, 400.0) + 1000.0) * 255.0 / 1400.0).round()), any_row, "grey values".to_string()),
    ]
}

#[test]
fn of_more_than_two_hundred_drawn_copies_none_gets_a_wrong_verdict() {
    use rand::SeedableRng;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2026);
    let scans: Vec<Volume> = scans().into_iter().chain([phantom()]).collect();
    let (mut seen, mut wrong) = (0, Vec::new());
    while seen < 216 {
        for variant in scans.iter().flat_map(|scan| variants(scan, &mut rng)) {
            seen += 1;
            let mut copy = variant.copy.clone();
            let verdict = apply_policy(&mut copy, variant.csv, HuPolicy::Auto);
            let right = match (&verdict, &variant.expected) {
                (Err(_), None) => true,
                (Ok(verdict), Some((decision, expected, tolerance))) => {
                    let near = copy.values.iter().zip(&expected.values).all(|(a, b)| (a - b).abs() <= *tolerance);
                    verdict.decision == *decision && near
                }
                _ => false,
            };
            if !right {
                let found = verdict.map_or_else(|error| error.to_string(), |verdict| format!("{} {}", verdict.decision, verdict.evidence));
                wrong.push(format!("{}: {}: {found}", copy.path.display(), variant.what));
            }
        }
    }
    println!("{seen} copies of {} scans, {} wrong", scans.len(), wrong.len());
    assert!(wrong.is_empty(), "{} of {seen}:\n{}", wrong.len(), wrong.join("\n"));
}
