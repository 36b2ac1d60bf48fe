//! `fetch --source ct-rate`: phantoms in CT-RATE's layout, streamed from the double, prepared, deleted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use crate::command::ctscribe;
use crate::double::{hub, large, resolved, small};
use crate::server::{Reply, Server};

const REPOSITORY: &str = "datasets/ibrahimhamamci/CT-RATE";

/// 4 training and 5 validation scans, drawn once.
static PHANTOMS: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let nobody = Server::start(|_, _| Reply::status(500));
    let arguments = ["phantom", "--out", "data", "--train", "4", "--valid", "5"];
    let output = ctscribe(folder.path(), &nobody, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
});

/// All files by their place in the repository.
fn repository() -> BTreeMap<(String, String), Vec<u8>> {
    let root = PHANTOMS.path().join("data");
    let mut files = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let place = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                files.insert((REPOSITORY.to_string(), place), fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn volumes(part: &str) -> Vec<String> {
    let places = repository().into_keys().map(|(_, path)| path).filter(|path| path.starts_with(&format!("dataset/{part}_fixed/")));
    places.map(|path| path.rsplit('/').next().unwrap().trim_end_matches(".nii.gz").to_string()).collect()
}

fn fetch(folder: &Path, server: &Server, more: &[&str]) -> Output {
    let arguments = [&["fetch", "--out", "cache", "--config", "phantom", "--reconstructions", "all"], more].concat();
    ctscribe(folder, server, &arguments)
}

fn said(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn prepared(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder.join("cache/volumes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".safetensors").to_string())
        .collect();
    names.sort();
    names
}

fn downloads(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder.join("cache/downloads")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn listed(folder: &Path, outcome: &str) -> Vec<String> {
    let table = fs::read_to_string(folder.join("cache/prepare.csv")).unwrap();
    table.lines().filter(|line| line.split(',').nth(1) == Some(outcome)).map(String::from).collect()
}

#[test]
fn volumes_are_streamed_prepared_and_deleted_and_equal_those_prepared_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = hub(repository(), 20_000);
    let output = fetch(folder.path(), &server, &["--split", "valid", "--workers", "2"]);
    let (out, err) = said(&output);
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(prepared(folder.path()), volumes("valid"));
    assert!(downloads(folder.path()).is_empty(), "no download is left");
    assert!(out.contains(&format!("{} prepared, 0 kept", volumes("valid").len())), "{out}");
    assert!(out.contains("split ct-rate-valid-volumes: ") && out.contains("split ct-rate-valid-scans: 5 studies"), "{out}");
    let data = PHANTOMS.path().join("data");
    let arguments = ["prepare", data.to_str().unwrap(), "--out", "local", "--config", "phantom", "--reconstructions", "all"];
    assert!(ctscribe(folder.path(), &server, &arguments).status.success());
    for name in volumes("valid") {
        let [streamed, local] =
            ["cache", "local"].map(|cache| fs::read(folder.path().join(format!("{cache}/volumes/{name}.safetensors"))).unwrap());
        assert!(streamed == local, "{name}");
    }
}

#[test]
fn a_second_call_goes_on_where_the_first_ended_and_keeps_the_other_part() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = hub(repository(), 20_000);
    assert!(fetch(folder.path(), &server, &["--split", "valid", "--limit", "2"]).status.success());
    assert_eq!(prepared(folder.path()), volumes("valid")[..2]);
    let before = store.requests().len();
    let (out, _) = said(&fetch(folder.path(), &server, &["--split", "valid", "--limit", "3"]));
    assert!(out.contains("1 prepared, 2 kept"), "{out}");
    assert_eq!(store.requests().len(), before + 1, "only the third is fetched");
    let (out, _) = said(&fetch(folder.path(), &server, &["--split", "train", "--limit", "1"]));
    assert!(out.contains("1 prepared, 3 kept"), "{out}");
    let studies = fs::read_to_string(folder.path().join("cache/studies.jsonl")).unwrap();
    assert_eq!(studies.lines().count(), 4, "both parts are in the cache: {studies}");
}

#[test]
fn the_disk_budget_ends_the_run_with_what_is_left_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = hub(repository(), 20_000);
    // one prepared phantom is some 0.6 MB
    let one = fetch(folder.path(), &server, &["--split", "valid", "--limit", "1"]);
    assert!(one.status.success(), "{:?}", said(&one));
    let size = fs::metadata(folder.path().join(format!("cache/volumes/{}.safetensors", prepared(folder.path())[0]))).unwrap().len();
    let largest =
        repository().into_iter().filter(|((_, path), _)| path.contains("valid_fixed")).map(|(_, bytes)| bytes.len()).max().unwrap() as u64;
    let budget = format!("{}B", 2 * size + largest + 100_000);
    let output = fetch(folder.path(), &server, &["--split", "valid", "--disk-budget", &budget, "--workers", "2"]);
    let (out, err) = said(&output);
    assert_eq!(output.status.code(), Some(3), "{out}{err}");
    assert_eq!(prepared(folder.path()).len(), 2, "{out}{err}");
    assert_eq!(listed(folder.path(), "not brought").len(), volumes("valid").len() - 2);
    assert!(err.contains("the disk budget of") && err.contains("is used up"), "{err}");
    let rest = fetch(folder.path(), &server, &["--split", "valid"]);
    assert!(rest.status.success() && prepared(folder.path()) == volumes("valid"));
}

#[test]
fn a_volume_that_is_missing_or_damaged_on_the_hub_is_listed_and_the_others_are_prepared() {
    let folder = tempfile::tempdir().unwrap();
    let names = volumes("valid");
    let (missing, damaged) = (names[0].clone(), names[2].clone());
    let files = repository();
    let server = Server::start(move |request, _| {
        let Some((_, _, path)) = resolved(&request.path) else { return Reply::status(404) };
        let Some(content) = files.get(&(REPOSITORY.to_string(), path.to_string())) else { return Reply::status(404) };
        if path.ends_with(&format!("{missing}.nii.gz")) {
            return Reply::status(404).with("X-Error-Code", "EntryNotFound");
        }
        if path.ends_with(&format!("{damaged}.nii.gz")) {
            return small(request, &content[..content.len() / 2]);
        }
        small(request, content)
    });
    let output = fetch(folder.path(), &server, &["--split", "valid"]);
    let (out, err) = said(&output);
    assert_eq!(output.status.code(), Some(3), "{out}{err}");
    assert_eq!(prepared(folder.path()).len(), names.len() - 2);
    assert!(listed(folder.path(), "not brought")[0].contains("the hub has a report and no file (404)"));
    let failed = listed(folder.path(), "failed");
    assert!(failed.len() == 1 && failed[0].starts_with(&names[2]) && failed[0].contains("ends early"), "{failed:?}");
    assert!(downloads(folder.path()).is_empty());
}

#[test]
fn a_hub_that_vanishes_is_not_asked_for_every_volume() {
    let folder = tempfile::tempdir().unwrap();
    let files = repository();
    let server = Server::start(move |request, _| {
        let Some((_, _, path)) = resolved(&request.path) else { return Reply::status(404) };
        match files.get(&(REPOSITORY.to_string(), path.to_string())) {
            Some(content) if path.ends_with(".csv") => small(request, content),
            // bytes lie where nobody listens
            Some(_) => Reply::status(403),
            None => large(b"x", "http://127.0.0.1:1/"),
        }
    });
    let output = fetch(folder.path(), &server, &["--split", "all", "--workers", "1"]);
    let (out, err) = said(&output);
    assert_eq!(output.status.code(), Some(3), "{out}{err}");
    assert_eq!(listed(folder.path(), "failed").len(), 5);
    assert!(listed(folder.path(), "not brought").iter().all(|row| row.contains("not tried: 5 volumes in a row could not be fetched")));
}

#[test]
fn without_access_the_command_ends_at_the_tables_with_the_page_to_accept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Reply::status(401).with("X-Error-Code", "GatedRepo"));
    let output = fetch(folder.path(), &server, &["--split", "valid"]);
    let (_, err) = said(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains(&format!("accept the conditions on {}/{REPOSITORY}", server.address)), "{err}");
}
