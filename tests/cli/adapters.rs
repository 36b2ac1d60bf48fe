//! Adapters on the command line: merged with proof, verified, taken out and in.

use std::fs;

use crate::trained::{run, succeed, text, trained};

#[test]
fn merging_ends_with_a_comparison_of_logits_and_keeps_nothing_over_the_tolerance() {
    let run_folder = trained().path("run");
    let (adapter, base, root) = (run_folder.join("llama/adapter"), run_folder.join("language"), tempfile::tempdir().unwrap());
    let out = root.path().join("merged");
    let before = fs::read(base.join("model.safetensors")).unwrap();
    let said = succeed(&["adapter", "merge", text(&adapter), "--base", text(&base), "--out", text(&out)]);
    assert!(said.contains("largest difference of a logit over 64 tokens"), "{said}");
    let refused = root.path().join("refused");
    let arguments = ["adapter", "merge", text(&adapter), "--base", text(&base), "--out", text(&refused), "--tolerance", "0"];
    let (code, _, err) = run(&arguments);
    assert!(code == 1 && err.contains("not kept: a logit differs by"), "{err}");
    assert!(!refused.join("model.safetensors").exists());
    assert!(fs::read(base.join("model.safetensors")).unwrap() == before, "the base was written");
}

#[test]
fn a_merged_model_gives_the_adapters_logits() {
    let run_folder = trained().path("run");
    let (adapter, base, root) = (run_folder.join("llama/adapter"), run_folder.join("language"), tempfile::tempdir().unwrap());
    let merged = root.path().join("merged");
    succeed(&["adapter", "merge", text(&adapter), "--base", text(&base), "--out", text(&merged)]);
    let logits = |arguments: &[&str], file: &str| {
        let path = root.path().join(file);
        succeed(&[&["adapter", "logits", "--ids", "1,5,9,33", "--out", text(&path)], arguments].concat());
        let tensor = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap().remove("logits").unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let adapted = logits(&["--base", text(&base), "--adapter", text(&adapter)], "adapted.safetensors");
    let found = logits(&["--base", text(&merged)], "merged.safetensors");
    let plain = logits(&["--base", text(&base)], "plain.safetensors");
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart(&adapted, &found) < 1e-3 && apart(&adapted, &plain) > 1e-3, "{} {}", apart(&adapted, &found), apart(&adapted, &plain));
}

#[test]
fn an_adapter_is_verified_tensor_by_tensor() {
    let run_folder = trained().path("run");
    let (adapter, base) = (run_folder.join("llama/adapter"), run_folder.join("language"));
    let said = succeed(&["adapter", "verify", text(&adapter), "--base", text(&base)]);
    assert!(said.contains("14 loaded, 0 missing, 0 unexpected, 0 of another shape"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(adapter.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let tensors = candle_core::safetensors::load(adapter.join("adapter_model.safetensors"), &candle_core::Device::Cpu).unwrap();
    let deeper = tensors.into_iter().map(|(name, tensor)| (name.replace("layers.0.mlp", "layers.9.mlp"), tensor)).collect();
    candle_core::safetensors::save(&deeper, folder.path().join("adapter_model.safetensors")).unwrap();
    let (code, said, err) = run(&["adapter", "verify", text(folder.path()), "--base", text(&base)]);
    assert!(code == 1 && said.contains("8 loaded, 6 missing, 6 unexpected"), "{said}{err}");
}

#[test]
fn one_folder_is_a_whole_decoder_that_leaves_a_run_and_comes_back() {
    let (run_folder, scan, root) = (trained().path("run"), trained().scan(), tempfile::tempdir().unwrap());
    let out = root.path().join("mine");
    let files = succeed(&["adapter", "export", "--run", text(&run_folder), "--out", text(&out)]);
    assert!(files.contains("adapter_model.safetensors") && files.contains("projector.safetensors"), "{files}");
    let own = succeed(&["generate", text(&scan), "--run", text(&run_folder)]);
    assert_eq!(succeed(&["generate", text(&scan), "--run", text(&run_folder), "--adapter", text(&out)]), own);
    let (code, _, err) = run(&["adapter", "import", text(&out), "--run", text(&run_folder)]);
    assert!(code == 1 && err.contains("--replace"), "{err}");
    succeed(&["adapter", "import", text(&out), "--run", text(&run_folder), "--replace"]);
    assert_eq!(succeed(&["generate", text(&scan), "--run", text(&run_folder)]), own);
}
