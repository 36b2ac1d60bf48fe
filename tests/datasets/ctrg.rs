//! CTRG-Chest-548K: slices as pictures, NIfTI files made of them, one JSON of reports.

use std::fs;
use std::path::Path;

use ctscribe::data::{NamedSplit, Split, Subset, read_ctrg};
use ctscribe::volume::{FirstSlice, GreyImages, read_grey};

use crate::chest::{SHAPE, chest, config, prepared, write};

const GREY: &str = "data.grey={window_hu: [-1000.0, 400.0], spacing_mm: [6.0, 5.5, 5.5], first: inferior}";

fn grey() -> GreyImages {
    GreyImages { window_hu: [-1000.0, 400.0], spacing_mm: [6.0, 5.5, 5.5], first: FirstSlice::Inferior }
}

/// The chest as an exporter shows it: -1000 HU black, 400 white.
fn pixels(seed: usize) -> Vec<u8> {
    chest(seed).iter().map(|hu| ((f32::from(*hu) + 1000.0) * 255.0 / 1400.0).round().clamp(0.0, 255.0) as u8).collect()
}

/// Slices as JPEG of the best quality; names count without leading zeros.
fn jpegs(folder: &Path, seed: usize) {
    fs::create_dir_all(folder).unwrap();
    let [_, height, width] = SHAPE;
    for (slice, values) in pixels(seed).chunks(height * width).enumerate() {
        let encoder = jpeg_encoder::Encoder::new_file(folder.join(format!("S_05_{slice}_{slice}.jpg")), 100).unwrap();
        encoder.encode(values, width as u16, height as u16, jpeg_encoder::ColorType::Luma).unwrap();
    }
}

fn pngs(folder: &Path, seed: usize) {
    fs::create_dir_all(folder).unwrap();
    let [_, height, width] = SHAPE;
    for (slice, values) in pixels(seed).chunks(height * width).enumerate() {
        let file = fs::File::create(folder.join(format!("{slice:04}.png"))).unwrap();
        let mut encoder = png::Encoder::new(file, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        let rgb: Vec<u8> = values.iter().flat_map(|value| [*value; 3]).collect();
        encoder.write_header().unwrap().write_image_data(&rgb).unwrap();
    }
}

fn dataset(root: &Path) {
    jpegs(&root.join("images/101"), 1);
    pngs(&root.join("images/102"), 2);
    let values: Vec<i16> = pixels(3).into_iter().map(i16::from).collect();
    write(&root.join("volumes/103.nii.gz"), &values, [1.0; 3]);
    let json = r#"{"train": [{"id": 101, "finding": "The heart is normal.", "impression": "Nothing."}, {"id": "105", "finding": "No scan."}],
        "val": [{"id": "102", "report": "The lungs are clear."}], "test": [{"id": 103, "finding": "No effusion."}, {"id": 104, "finding": "Absent."}]}"#;
    fs::write(root.join("annotation.json"), json).unwrap();
}

#[test]
fn pictures_and_volumes_of_pictures_are_prepared_in_the_units_that_the_window_gives() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let config = config(&[GREY, "data.sections=findings_and_impression"]);
    let dataset = read_ctrg(folder.path(), &config.data).unwrap();
    let splits: Vec<(&str, Split, &str)> =
        dataset.studies.iter().map(|study| (study.name.as_str(), study.split, study.report.as_str())).collect();
    let expected = [
        ("101", Split::Train, "The heart is normal. Nothing."),
        ("102", Split::Validation, "The lungs are clear."),
        ("103", Split::Test, "No effusion."),
    ];
    assert_eq!(splits, expected);
    assert!(dataset.left_out.iter().any(|(name, why)| name == "104" && why.contains("neither a folder nor a NIfTI file")));
    let (report, cache) = prepared(&dataset, &config, &folder.path().join("cache"), 2);
    assert_eq!((report.prepared, report.failed.len()), (3, 0), "{:?}", report.failed);
    let record = cache.split_record(Subset::Named(NamedSplit::CtrgTest), 1).unwrap();
    assert_eq!((record.studies, record.missing), (2, 1));
}

#[test]
fn grey_values_become_units_slices_keep_their_order_and_their_direction_is_heeded() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let step = 1400.0 / 255.0;
    // JPEG of quality 100 errs by a few grey values at sharp edges
    for (place, seed, tolerance) in [("images/101", 1, 8.0 * step), ("images/102", 2, step), ("volumes/103.nii.gz", 3, step)] {
        let volume = read_grey(&folder.path().join(place), &grey()).unwrap();
        assert_eq!((volume.shape, volume.spacing_mm), (SHAPE, [6.0, 5.5, 5.5]), "{place}");
        let worst = volume.values.iter().zip(chest(seed)).map(|(found, hu)| (found - f32::from(hu)).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{place}: {worst} HU");
    }
    let upside = read_grey(&folder.path().join("images/102"), &GreyImages { first: FirstSlice::Superior, ..grey() }).unwrap();
    let straight = read_grey(&folder.path().join("images/102"), &grey()).unwrap();
    let slice = SHAPE[1] * SHAPE[2];
    assert!(upside.values.chunks(slice).rev().flatten().eq(straight.values.iter()));
}

#[test]
fn pictures_that_are_no_stack_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let pictures = folder.path().join("images/101");
    let whole = fs::read(pictures.join("S_05_7_7.jpg")).unwrap();
    fs::write(pictures.join("S_05_7_7.jpg"), &whole[..whole.len() / 3]).unwrap();
    let message = read_grey(&pictures, &grey()).unwrap_err().to_string();
    assert!(message.contains("S_05_7_7.jpg: not a whole JPEG"), "{message}");
    let encoder = jpeg_encoder::Encoder::new_file(pictures.join("S_05_7_7.jpg"), 100).unwrap();
    encoder.encode(&[0; 64], 8, 8, jpeg_encoder::ColorType::Luma).unwrap();
    let message = read_grey(&pictures, &grey()).unwrap_err().to_string();
    assert!(message.contains("S_05_7_7.jpg: 8 x 8 pixels; the slices before have 50 x 40"), "{message}");
    write(&folder.path().join("units.nii.gz"), &chest(1), [1.0; 3]);
    let message = read_grey(&folder.path().join("units.nii.gz"), &grey()).unwrap_err().to_string();
    assert!(message.contains("is no grey value (0..255)"), "{message}");
}

#[test]
fn a_wrong_window_is_found_by_the_voxels_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    // a mediastinal window was believed: air would be -160 HU
    let config = config(&["data.grey={window_hu: [-160.0, 240.0], spacing_mm: [6.0, 5.5, 5.5], first: inferior}"]);
    let dataset = read_ctrg(folder.path(), &config.data).unwrap();
    let root = folder.path().join("cache");
    let (report, _) = prepared(&dataset, &config, &root, 2);
    assert_eq!(report.failed.len(), 3);
    assert!(report.failed.iter().all(|(_, why)| why.contains("no reading looks like Hounsfield units of a chest")), "{:?}", report.failed);
}

#[test]
fn a_folder_without_its_json_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let config = config(&[GREY]);
    fs::write(folder.path().join("annotation.json"), "[1, 2]").unwrap();
    assert!(read_ctrg(folder.path(), &config.data).unwrap_err().to_string().contains("annotation.json: expected lists of id and finding"));
    fs::remove_file(folder.path().join("annotation.json")).unwrap();
    assert!(read_ctrg(folder.path(), &config.data).unwrap_err().to_string().contains("holds 0 JSON files; expected one"));
}
