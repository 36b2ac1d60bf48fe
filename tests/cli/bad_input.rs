//! One clear line, naming file and field, and a non-zero exit; the others are served.

use std::fs;

use crate::trained::{run, text, trained};

#[track_caller]
fn refused(arguments: &[&str], parts: &[&str]) {
    let (code, _, err) = run(arguments);
    assert_eq!(code, 1, "{arguments:?}: {err}");
    for part in parts {
        assert!(err.contains(part), "expected {part:?} in: {err}");
    }
    assert_eq!(err.lines().filter(|line| line.starts_with("error:")).count(), 1, "{err}");
}

#[test]
fn in_a_folder_of_scans_bad_ones_are_named_and_the_others_get_their_reports() {
    let (folder, run_folder) = (tempfile::tempdir().unwrap(), trained().path("run"));
    let whole = fs::read(trained().scan()).unwrap();
    fs::write(folder.path().join("a_good.nii.gz"), &whole).unwrap();
    fs::write(folder.path().join("b_truncated.nii.gz"), &whole[..whole.len() / 2]).unwrap();
    fs::write(folder.path().join("c_empty.nii.gz"), b"").unwrap();
    fs::write(folder.path().join("d_text.nii"), b"not a scan").unwrap();
    fs::write(folder.path().join("e_good.nii.gz"), &whole).unwrap();
    let (code, out, err) = run(&["generate", text(folder.path()), "--run", text(&run_folder)]);
    assert_eq!(code, 3, "{err}");
    assert!(out.contains("a_good.nii.gz") && out.contains("e_good.nii.gz"), "{out}");
    for name in ["b_truncated.nii.gz", "c_empty.nii.gz", "d_text.nii"] {
        assert!(err.lines().any(|line| line.starts_with("error:") && line.contains(name)), "{name}: {err}");
    }
    assert!(err.contains("3 of 5 failed"), "{err}");
}

#[test]
fn what_is_missing_is_named() {
    let (run_folder, cache) = (trained().path("run"), trained().path("cache"));
    let (code, _, err) = run(&["generate", "nowhere.nii.gz", "--run", text(&run_folder)]);
    assert!(code == 3 && err.contains("nowhere.nii.gz: no such file"), "{err}");
    refused(&["generate", "x.nii", "--run", "nowhere"], &["nowhere: not a run folder"]);
    refused(&["observe", "--data", "nowhere", "--run", text(&run_folder)], &["nowhere: not a cache of prepared volumes"]);
    refused(&["prepare", "nowhere", "--out", text(&trained().path("x")), "--config", "phantom"], &["nowhere: no such folder"]);
    refused(&["train", "structure", "--data", text(&cache), "--run", text(&trained().path("fresh"))], &["give --config"]);
}

#[test]
fn a_bad_configuration_stops_before_the_first_step() {
    let (root, cache) = (tempfile::tempdir().unwrap(), trained().path("cache"));
    let path = root.path().join("mine.yaml");
    let good = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/phantom.yaml")).unwrap();
    fs::write(&path, good.replace("seed: 7\nthreads", "sed: 7\nthreads")).unwrap();
    refused(&["config", "check", text(&path)], &["mine.yaml", "sed"]);
    fs::write(&path, good.replace("selection: {layout: ours, patches: 10}", "selection: {layout: ours, patches: 9999}")).unwrap();
    let run_folder = root.path().join("run");
    refused(
        &["train", "structure", "--data", text(&cache), "--run", text(&run_folder), "--config", text(&path)],
        &["mine.yaml", "structure.selection.patches: 9999 exceeds the 288 patches"],
    );
    assert!(!run_folder.exists(), "a bad configuration leaves nothing behind");
}

#[test]
fn a_checkpoint_of_another_shape_is_refused_with_every_tensor() {
    let root = tempfile::tempdir().unwrap();
    let run_folder = root.path().join("run");
    fs::create_dir_all(run_folder.join("structure")).unwrap();
    fs::copy(trained().path("run/structure/model.safetensors"), run_folder.join("structure/model.safetensors")).unwrap();
    let config = fs::read_to_string(trained().path("run/config.yaml")).unwrap();
    assert!(config.contains("ffn_width: 256"));
    fs::write(run_folder.join("config.yaml"), config.replace("ffn_width: 256", "ffn_width: 128")).unwrap();
    refused(
        &["observe", "--data", text(&trained().path("cache")), "--run", text(&run_folder)],
        &["model.safetensors", "queries.blocks.0.up.weight: expected [128, 128], found [256, 128]"],
    );
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let (folder, scan, run_folder) = (tempfile::tempdir().unwrap(), trained().scan(), trained().path("run"));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(trained().path("run/llama/adapter").join(name), folder.path().join(name)).unwrap();
    }
    let arguments = ["generate", text(&scan), "--run", text(&run_folder), "--adapter", text(folder.path())];
    let path = folder.path().join("adapter_model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let deeper = tensors.into_iter().map(|(name, tensor)| (name.replace("layers.0", "layers.7"), tensor)).collect();
    candle_core::safetensors::save(&deeper, &path).unwrap();
    refused(&arguments, &["adapter"]);
    let config = folder.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap().replace("\"use_dora\": false", "\"use_dora\": true");
    fs::write(&config, text).unwrap();
    refused(&arguments, &["lora_magnitude_vector is missing"]);
}

#[test]
fn an_unreadable_report_row_is_named_and_the_others_are_prepared() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let (code, _, err) = run(&["phantom", "--out", text(&data), "--train", "3", "--valid", "1"]);
    assert_eq!(code, 0, "{err}");
    let path = data.join("dataset/radiology_text_reports/train_reports.csv");
    let mut rows = fs::read(&path).unwrap();
    rows.extend(b"train_9_a_1.nii.gz,\xff\xfe,x,y,z\ntrain_8_a_1.nii.gz,too few\n");
    fs::write(&path, rows).unwrap();
    let out = root.path().join("cache");
    let (code, said, err) = run(&["prepare", text(&data), "--out", text(&out), "--config", "phantom"]);
    assert_eq!(code, 3, "{said}{err}");
    assert!(err.contains("train_reports.csv: row") && said.contains("0 failed") && said.contains("2 unreadable rows"), "{said}{err}");
    assert!(fs::read_to_string(out.join("prepare.csv")).unwrap().contains("unreadable row"));
}

#[cfg(not(feature = "mpi"))]
#[test]
fn without_mpi_a_program_that_was_started_several_times_does_nothing() {
    let mut command = crate::trained::ctscribe();
    command.args(["config", "list"]).env("OMPI_COMM_WORLD_RANK", "1").env("OMPI_COMM_WORLD_SIZE", "2");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(said.contains("mpirun started this process as rank 1 of 2, but this ctscribe was built without MPI"), "{said}");
}
