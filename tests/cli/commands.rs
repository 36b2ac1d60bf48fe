//! The commands on a trained run.

use serde_json::Value;

use crate::trained::{run, succeed, text, trained};

#[test]
fn a_scan_gets_a_report_as_text_and_as_json_with_evidence() {
    let (run_folder, scan) = (trained().path("run"), trained().scan());
    let plain = succeed(&["generate", text(&scan), "--run", text(&run_folder)]);
    assert!(!plain.trim().is_empty());
    let streamed = succeed(&["generate", text(&scan), "--run", text(&run_folder), "--stream"]);
    assert_eq!(streamed.trim(), plain.trim());
    let json: Value = serde_json::from_str(&succeed(&["generate", text(&scan), "--run", text(&run_folder), "--format", "json"])).unwrap();
    assert_eq!(json["text"].as_str().unwrap(), plain.trim());
    assert_eq!(json["structures"].as_array().unwrap().len(), 10);
    let patch = &json["structures"][0]["patches"][0];
    assert!(patch["attention_mass"].as_f64().unwrap() > 0.0 && patch["box_mm"][0].as_array().unwrap().len() == 3);
    assert_eq!(json["hounsfield"]["decision"], "already_hu");
}

#[test]
fn decoding_is_chosen_on_the_command_line() {
    let (run_folder, scan) = (trained().path("run"), trained().scan());
    let base = ["generate", text(&scan), "--run", text(&run_folder)];
    let with = |more: &[&str]| succeed(&[&base, more].concat());
    let sampled = ["--temperature", "1.5", "--top-p", "0.95", "--seed", "3"];
    assert_eq!(with(&sampled), with(&sampled));
    assert!(!with(&["--decoder", "bert", "--beams", "3"]).trim().is_empty());
    assert!(with(&["--max-tokens", "3", "--min-tokens", "1"]).len() <= with(&["--max-tokens", "16", "--min-tokens", "16"]).len());
    let (code, _, err) = run(&[&base[..], &["--min-tokens", "50", "--max-tokens", "3"]].concat());
    assert!(code == 1 && err.contains("min_new_tokens 50 and max_new_tokens 3"), "{err}");
}

#[test]
fn a_split_is_scored_and_two_decoders_are_compared() {
    let (run_folder, cache) = (trained().path("run"), trained().path("cache"));
    let (folder, data) = (text(&run_folder), text(&cache));
    for decoder in ["llama", "bert"] {
        let out = succeed(&["evaluate", "--run", folder, "--data", data, "--decoder", decoder, "--json"]);
        let evaluation: Value = serde_json::from_str(&out).unwrap();
        assert!(evaluation["metrics"]["bleu_4.corpus.ptb_like"].is_number() && evaluation["findings"].as_array().unwrap().len() == 18);
        // all of the split, by its hash; the phantoms' label file labelled the references
        let split = &evaluation["split"];
        assert_eq!((&split["name"], &split["missing"], &split["sha256"]), (&"test".into(), &0.into(), &evaluation["split_sha256"]));
        assert_eq!((&evaluation["labeller"], &evaluation["reference_labeller"]), (&"ctscribe rules 2".into(), &"given".into()));
    }
    let (llama, bert) = (run_folder.join("llama"), run_folder.join("bert"));
    let table = succeed(&["compare", text(&llama), text(&bert), "--format", "markdown"]);
    assert!(table.contains("| metric | llama | bert |") && table.contains("labels.f1.macro_supported"), "{table}");
    let recall = succeed(&["retrieve", "--run", folder, "--data", data, "--split", "ct-rate-valid-scans"]);
    assert!(recall.contains("R@1") && recall.contains("volumes of ct-rate-valid-scans (sha256 "), "{recall}");
    let named = succeed(&["evaluate", "--run", folder, "--data", data, "--split", "ct-rate-valid-scans", "--limit", "1", "--json"]);
    let split = serde_json::from_str::<Value>(&named).unwrap()["split"].clone();
    assert_eq!(split["missing"], split["studies"].as_u64().unwrap() - 1);
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(run_folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["published_splits"]["ct-rate-valid-scans"][1], split["sha256"]);
    let (code, _, err) = run(&["evaluate", "--run", folder, "--data", data, "--labeller", "radbert", "--weights", "nowhere"]);
    assert!(code == 1 && err.contains("weights fetch radbert-classifier"), "{err}");
}

#[test]
fn an_adapter_is_inspected_and_merged_into_its_base() {
    let run_folder = trained().path("run");
    let (adapter, base, out) = (run_folder.join("llama/adapter"), run_folder.join("language"), trained().path("merged"));
    assert!(succeed(&["adapter", "inspect", text(&adapter)]).contains("rank     16"));
    succeed(&["adapter", "merge", text(&adapter), "--base", text(&base), "--out", text(&out)]);
    assert!(succeed(&["weights", "inspect", text(&out)]).contains("model.layers.0.mlp.down_proj.weight"));
}

#[test]
fn presets_are_listed_shown_and_checked() {
    let names = succeed(&["config", "list"]);
    assert_eq!(names.lines().collect::<Vec<_>>(), ["phantom", "ct-rate-llama2-7b", "ct-rate-bert", "reference-code", "ctrg-548k"]);
    for name in names.lines() {
        assert!(succeed(&["config", "check", name]).contains("no fault"));
    }
    assert!(succeed(&["config", "show", "phantom", "--set", "llama.lora.r=3"]).contains("r: 3\n"));
    assert!(succeed(&["weights", "list"]).contains("meta-llama/Llama-2-7b-hf"));
}

#[test]
fn reports_from_elsewhere_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.csv");
    std::fs::write(&path, "study,generated,reference\na,Heart size is increased.,Heart size is increased.\n").unwrap();
    let out = succeed(&["evaluate", "--pairs", text(&path)]);
    assert!(out.contains("labels.f1.macro_supported") && out.contains("1.0000"), "{out}");
}

#[test]
fn the_drop_without_visual_tokens_is_told_with_its_interval() {
    let (run_folder, cache) = (trained().path("run"), trained().path("cache"));
    for visual in ["zero", "mean", "shuffled"] {
        let arguments = ["evaluate", "--run", text(&run_folder), "--data", text(&cache), "--visual", visual];
        let found: Value = serde_json::from_str(&succeed(&[&arguments[..], &["--json"]].concat())).unwrap();
        assert_eq!(found["evaluation"]["run"], format!("llama-{visual}"));
        let drop = found["drop"].as_array().unwrap();
        let f1 = drop.iter().find(|row| row["metric"] == "labels.f1.macro_supported").unwrap();
        assert!(f1["interval"][1].is_number() && f1["p_holm"].as_f64().unwrap() <= 1.0);
        assert!(run_folder.join(format!("llama/reports/test-{visual}.jsonl")).is_file());
        assert!(succeed(&arguments).contains("run minus llama"));
    }
}

#[test]
fn predictions_from_elsewhere_are_compared_with_a_run_and_submissions_are_written() {
    let (run_folder, cache, folder) = (trained().path("run"), trained().path("cache"), tempfile::tempdir().unwrap());
    let submission = folder.path().join("predictions.json");
    let whole = ["evaluate", "--run", text(&run_folder), "--data", text(&cache), "--submission", text(&submission)];
    let own = succeed(&whole);
    let again = succeed(&["evaluate", "--pairs", text(&submission), "--data", text(&cache)]);
    let line = |out: &str| out.lines().find(|line| line.contains("rouge_l.coco.ptb_like")).unwrap().to_string();
    assert_eq!(line(&own), line(&again));
    let llama = run_folder.join("llama");
    let both: Value = serde_json::from_str(&succeed(&["compare", text(&llama), text(&submission), "--format", "json"])).unwrap();
    assert_eq!((both["runs"][0].as_str(), both["runs"][1].as_str()), (Some("llama"), Some("predictions")));
    assert!(both["differences"].as_array().unwrap().iter().all(|row| row["difference"] == 0.0 && row["p"] == 1.0));
    assert!(both["facts"][0]["weights"].as_object().unwrap().keys().any(|file| file.contains("adapter")));
    assert!(both["facts"][0]["writing"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    for (format, part) in [("latex", "\\toprule"), ("html", "<svg"), ("markdown", "| p (Holm) |")] {
        assert!(succeed(&["compare", text(&llama), text(&submission), "--format", format]).contains(part), "{format}");
    }
}

#[test]
fn a_part_of_the_predictions_is_reported_and_refused_beside_a_whole_run() {
    let (run_folder, cache, folder) = (trained().path("run"), trained().path("cache"), tempfile::tempdir().unwrap());
    let (whole, part) = (folder.path().join("whole.json"), folder.path().join("part.json"));
    succeed(&["evaluate", "--run", text(&run_folder), "--data", text(&cache), "--submission", text(&whole)]);
    let mut rows: Value = serde_json::from_str(&std::fs::read_to_string(&whole).unwrap()).unwrap();
    let reports = rows[0]["outputs"][0]["value"]["generated_reports"].as_array_mut().unwrap();
    let left_out = reports.pop().unwrap()["input_image_name"].as_str().unwrap().to_string();
    std::fs::write(&part, rows.to_string()).unwrap();
    let (code, out, err) = run(&["evaluate", "--pairs", text(&part), "--data", text(&cache)]);
    assert!(code == 3 && err.contains(&format!("{left_out}: has no prediction")) && out.contains("bleu_4"), "{err}");
    let llama = run_folder.join("llama");
    let (code, _, err) = run(&["compare", text(&llama), text(&part)]);
    assert!(code == 1 && err.contains("different studies") && err.contains("--allow-different-splits"), "{err}");
    assert!(succeed(&["compare", text(&llama), text(&part), "--allow-different-splits"]).contains("llama"));
}

#[test]
fn a_run_says_what_it_was_made_with_and_refuses_other_studies() {
    let run_folder = trained().path("run");
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(run_folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["splits"]["test"][1].as_str().unwrap().len(), 64);
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    let root = tempfile::tempdir().unwrap();
    let (data, cache) = (root.path().join("data"), root.path().join("cache"));
    succeed(&["phantom", "--out", text(&data), "--train", "4", "--valid", "1"]);
    succeed(&["prepare", text(&data), "--out", text(&cache), "--config", "phantom"]);
    let (code, _, err) = run(&["train", "language", "--data", text(&cache), "--run", text(&run_folder), "--resume"]);
    assert!(code == 1 && err.contains("manifest.json: splits"), "{err}");
}
