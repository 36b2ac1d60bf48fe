//! `weights fetch`, `verify` and `convert` as they are typed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use candle_core::{Device, Tensor};
use ctscribe::weights;

use crate::double::{content, hub};
use crate::server::Server;

const CT_RATE: &str = "datasets/ibrahimhamamci/CT-RATE";

/// A fixture file, or `None` (said on stderr) where the fixtures are absent.
fn fixture(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/fixtures")).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// The program in `folder`, with the hub at `server` and its cache in the same folder.
pub fn ctscribe(folder: &Path, server: &Server, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ctscribe"));
    for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(variable);
    }
    command.current_dir(folder).env("HF_ENDPOINT", &server.address).env("HF_HOME", folder.join("hf")).args(arguments);
    command.output().unwrap()
}

#[track_caller]
fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn one_dimension(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weights_are_fetched_converted_and_verified_and_their_tensors_keep_names_and_values() {
    let Some(archive) = fixture("clip_mini.pt") else { return };
    let path = (CT_RATE.to_string(), "models/CT-CLIP-Related/CT-CLIP_v2.pt".to_string());
    let (server, store) = hub(BTreeMap::from([(path, fs::read(&archive).unwrap())]), 1000);
    let folder = tempfile::tempdir().unwrap();
    let said = succeed(&ctscribe(folder.path(), &server, &["weights", "fetch", "ct-clip-v2", "--json"]));
    let files: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(files[0]["path"], "weights/ct-clip-v2/CT-CLIP_v2.pt");
    let converted = folder.path().join("weights/ct-clip-v2/CT-CLIP_v2.safetensors");
    let found = candle_core::safetensors::load(&converted, &Device::Cpu).unwrap();
    let original = weights::open(&archive).unwrap();
    assert_eq!(found.len(), original.len());
    for (name, tensor) in &original {
        assert_eq!((found[name].dims(), found[name].dtype()), (tensor.dims(), tensor.dtype()), "{name}");
        assert_eq!(one_dimension(&found[name]), one_dimension(tensor), "{name}");
    }
    assert!(found["visual_transformer.enc_spatial_transformer.layers.0.1.null_kv"].elem_count() == 0 && found["temperature"].rank() == 0);
    succeed(&ctscribe(folder.path(), &server, &["weights", "verify", "ct-clip-v2"]));
    // a second call fetches nothing and converts nothing
    let (asked, written) = (store.requests().len(), fs::metadata(&converted).unwrap().modified().unwrap());
    succeed(&ctscribe(folder.path(), &server, &["weights", "fetch", "ct-clip-v2"]));
    assert_eq!((store.requests().len(), fs::metadata(&converted).unwrap().modified().unwrap()), (asked, written));
    // an altered blob is found
    let blob = folder.path().join("weights/ct-clip-v2/CT-CLIP_v2.pt").canonicalize().unwrap();
    fs::write(&blob, b"altered").unwrap();
    let refused = ctscribe(folder.path(), &server, &["weights", "verify", "ct-clip-v2"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("has changed since it was fetched"));
}

#[test]
fn a_classifier_s_archive_is_converted_under_the_names_that_it_has() {
    let Some(archive) = fixture("radbert/RadBertClassifier.pth") else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("RadBertClassifier.pth");
    fs::copy(&archive, &copy).unwrap();
    let path = weights::convert(&copy).unwrap();
    assert_eq!(path, folder.path().join("RadBertClassifier.safetensors"));
    let (found, expected) = (weights::open(&path).unwrap(), weights::open(&archive).unwrap());
    assert!(found.contains_key("classifier.weight") && found.len() == expected.len());
    for (name, tensor) in &expected {
        assert_eq!(one_dimension(&found[name]), one_dimension(tensor), "{name}");
    }
}

#[test]
fn a_gated_repository_ends_the_command_with_what_to_do() {
    let server = Server::start(|_, _| crate::server::Reply::status(401).with("X-Error-Code", "GatedRepo"));
    let folder = tempfile::tempdir().unwrap();
    let output = ctscribe(folder.path(), &server, &["weights", "fetch", "llama-2-7b"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&format!("accept the conditions on {}/meta-llama/Llama-2-7b-hf", server.address)), "{said}");
    assert!(said.contains("LLaMA 2 Community License"), "{said}");
}

#[test]
fn another_file_than_the_catalogue_s_is_refused_before_it_is_fetched() {
    let named = |path: &str| ("sentence-transformers/all-MiniLM-L6-v2".to_string(), path.to_string());
    let files = BTreeMap::from([(named("config.json"), b"{}".to_vec()), (named("model.safetensors"), content(5000))]);
    let (server, store) = hub(files, 1000);
    let folder = tempfile::tempdir().unwrap();
    let output = ctscribe(folder.path(), &server, &["weights", "fetch", "all-minilm-l6-v2"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("all-MiniLM-L6-v2 (revision main): model.safetensors: the repository holds another file"), "{said}");
    assert!(!output.status.success() && store.requests().is_empty());
    let unknown = ctscribe(folder.path(), &server, &["weights", "fetch", "nothing"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nothing: no such entry"));
}

#[test]
fn files_put_there_by_hand_are_kept() {
    let server = Server::start(|_, _| crate::server::Reply::status(500));
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("weights/cxr-bert-general");
    fs::create_dir_all(&own).unwrap();
    for name in ["config.json", "vocab.txt"] {
        fs::write(own.join(name), b"mine").unwrap();
    }
    let output = ctscribe(folder.path(), &server, &["weights", "fetch", "cxr-bert-general"]);
    assert!(!output.status.success(), "the archive is still asked for, and the hub fails");
    assert_eq!(fs::read(own.join("config.json")).unwrap(), b"mine");
    assert!(server.requests().iter().all(|request| request.path.ends_with("pytorch_model.bin")));
}
