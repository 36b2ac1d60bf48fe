//! Preparation against CT-CLIP's two scripts and the authors' loader; real scans.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ctscribe::volume::*;

use crate::fixtures::{assert_close, data, folder, max_difference, tensors};

fn clip_config(folder: &Path, clip: Clip) -> PreparationConfig {
    let keys: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let axis = |key: &str, axis: &str| keys[key][axis].as_f64().unwrap();
    let three = |key: &str| ["axis2", "axis0", "axis1"].map(|name| axis(key, name));
    let window = keys["window_hu"].as_array().unwrap();
    PreparationConfig {
        orientation: Orientation::AsStored,
        hounsfield: HuPolicy::HeaderThenCsv,
        spacing: SpacingSource::Csv,
        target_spacing_mm: three("target_spacing_mm"),
        target_shape: three("target_shape").map(|size| size as usize),
        clip_hu: [window[0].as_f64().unwrap(), window[1].as_f64().unwrap()],
        clip,
        window_hu: None,
        pad: -1.0,
        layout: Layout::Zxy,
    }
}

#[test]
fn both_scripts_of_ct_clip_are_reproduced() {
    let Some(root) = folder("prep") else { return };
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let keys: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let mut reader = csv::Reader::from_path(folder.join("metadata.csv")).unwrap();
        let head = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        let cell = |name: &str| row.get(head.iter().position(|head| head == name).unwrap()).unwrap().to_string();
        let number = |name: &str| cell(name).trim_matches(['[', ']']).split(',').next().unwrap().trim().parse::<f64>().unwrap();
        let expected = tensors(folder.join("expected.safetensors"));
        for (name, clip) in [("expected_infer", Clip::BeforeResampling), ("expected_train", Clip::AfterResampling)] {
            let config = clip_config(&folder, clip);
            let mut volume = read(&folder.join(keys["volume"].as_str().unwrap())).unwrap();
            let csv = CsvRescale { slope: number("RescaleSlope"), intercept: number("RescaleIntercept") };
            apply_policy(&mut volume, Some(csv), config.hounsfield).unwrap();
            let prepared = prepare(&volume, &config, Some([number("ZSpacing"), number("XYSpacing")])).unwrap();
            assert_close(name, &prepared.tensor, &expected[name], 1e-6);
            let resampled = Tensor::new(prepared.geometry.resampled.map(|n| n as i64).to_vec(), &Device::Cpu).unwrap();
            assert_eq!(max_difference(&resampled, &expected["resampled_shape"]), 0.0);
        }
    }
}

#[test]
fn the_authors_loader_is_reproduced() {
    let Some(folder) = folder("method") else { return };
    let f = tensors(folder.join("volume.safetensors"));
    for case in (0..).take_while(|case| f.contains_key(&format!("case{case}.in"))) {
        let stored = &f[&format!("case{case}.in")];
        let target: Vec<i64> = f[&format!("case{case}.target")].to_vec1().unwrap();
        let (z, x, y) = stored.dims3().unwrap();
        let hu = (stored.transpose(1, 2).unwrap().contiguous().unwrap().to_dtype(DType::F64).unwrap() * 1000.0).unwrap();
        let volume = Volume {
            values: hu.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap(),
            shape: [z, y, x],
            spacing_mm: [1.5, 0.75, 0.75],
            affine: Volume::lps_affine([1.5, 0.75, 0.75], [0.0; 3]),
            path: "case".into(),
            format: "test".into(),
            notices: vec![],
        };
        let config = PreparationConfig {
            orientation: Orientation::AsStored,
            hounsfield: HuPolicy::Header,
            spacing: SpacingSource::Header,
            target_spacing_mm: [1.5, 0.75, 0.75],
            target_shape: [0, 1, 2].map(|axis| target[axis] as usize),
            clip_hu: [-1000.0, 1000.0],
            clip: Clip::BeforeResampling,
            window_hu: Some([-1000.0, 200.0]),
            pad: 0.0,
            layout: Layout::Zyx,
        };
        let prepared = prepare(&volume, &config, None).unwrap();
        assert_close("volume", &prepared.tensor.squeeze(0).unwrap(), &f[&format!("case{case}.out")], 1e-6);
    }
}

#[test]
fn a_scan_is_the_same_from_dicom_and_from_nifti() {
    let (Some(nifti), Some(dicom)) = (data("ct/Chest_CT.nii.gz"), data("ct/Chest_CT_dicom")) else { return };
    let oriented = |path: &Path| orient(read(path).unwrap(), Orientation::Lps);
    let (a, b) = (oriented(&nifti), oriented(&dicom));
    assert_eq!(a.shape, b.shape);
    let worst = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1.0, "differs by {worst} HU");
    for (row_a, row_b) in a.affine.iter().zip(&b.affine) {
        assert!(row_a.iter().zip(row_b).all(|(a, b)| (a - b).abs() < 0.01), "{:?} {:?}", a.affine, b.affine);
    }
}

#[test]
fn real_scans_are_recognised_as_chests_and_the_abdomen_is_not() {
    let names = [
        ("lung1_image.nii.gz", true),
        ("Chest_CT.nii.gz", true),
        ("Chest_CT_dicom", true),
        ("chest_crop_contrast.nii.gz", true),
        ("3DCT_lung_baseline_small.nii.gz", true),
        ("abdomen_not_chest_ras_int32.nii.gz", false),
    ];
    for (name, chest) in names {
        let Some(path) = data(&format!("ct/{name}")) else { return };
        let inspection = inspect(&path, None).unwrap();
        println!("{inspection}");
        assert_eq!(inspection.chest.is_chest, chest, "{inspection}");
    }
}
