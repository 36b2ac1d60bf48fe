//! Where files come to lie, and what is asked to get them there.

use std::collections::BTreeMap;
use std::fs;

use crate::double::{COMMIT, content, file, git_blob, hub, open, settings, sha256, token};

fn two_files() -> BTreeMap<(String, String), Vec<u8>> {
    let named = |path: &str| ("owner/model".to_string(), path.to_string());
    BTreeMap::from([(named("sub/model.bin"), content(100_000)), (named("config.json"), b"{}\n".to_vec())])
}

#[test]
fn files_lie_where_python_s_tools_look_and_the_token_stays_at_the_hub() {
    let root = tempfile::tempdir().unwrap();
    let (server, store) = hub(two_files(), 1000);
    let hub = open(token(settings(&server.address, root.path())));
    let mut last = (0, 0);
    let path = hub.fetch(&file("sub/model.bin"), None, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!((fs::read(&path).unwrap(), last), (content(100_000), (100_000, 100_000)));
    let repository = root.path().join("hub/models--owner--model");
    assert_eq!(path, repository.join(format!("snapshots/{COMMIT}/sub/model.bin")));
    let blob = repository.join("blobs").join(sha256(&content(100_000)));
    assert_eq!(path.canonicalize().unwrap(), blob.canonicalize().unwrap());
    assert!(fs::read_link(&path).unwrap().starts_with("../../../blobs"), "{:?}", fs::read_link(&path));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(!store.requests().is_empty() && store.requests().iter().all(|request| request.header("authorization").is_none()));
    // a small file is checked against git's blob id
    let small = hub.fetch(&file("config.json"), None, &mut |_, _| {}).unwrap();
    assert_eq!(fs::read(&small).unwrap(), b"{}\n");
    assert!(repository.join("blobs").join(git_blob(b"{}\n")).is_file());
}

#[test]
fn a_dataset_s_files_have_a_folder_of_their_own_and_its_names_are_escaped() {
    let root = tempfile::tempdir().unwrap();
    let named = ("datasets/owner/data".to_string(), "a%20b/x%23.csv".to_string());
    let (server, _) = hub(BTreeMap::from([(named, b"a,b\n".to_vec())]), 1000);
    let wanted = ctscribe::weights::hub::HubFile {
        repository: "datasets/owner/data".to_string(),
        revision: "refs/pr/1".to_string(),
        path: "a b/x#.csv".to_string(),
    };
    let path = open(settings(&server.address, root.path())).fetch(&wanted, None, &mut |_, _| {}).unwrap();
    let repository = root.path().join("hub/datasets--owner--data");
    assert_eq!(path, repository.join(format!("snapshots/{COMMIT}/a b/x#.csv")));
    assert_eq!(fs::read_to_string(repository.join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert!(server.requests()[0].path.contains("/resolve/refs%2Fpr%2F1/"), "{}", server.requests()[0].path);
}

#[test]
fn what_is_in_the_cache_is_not_fetched_again_and_serves_without_a_network() {
    let root = tempfile::tempdir().unwrap();
    let (server, store) = hub(two_files(), 1000);
    let online = settings(&server.address, root.path());
    let first = open(online.clone()).fetch(&file("sub/model.bin"), None, &mut |_, _| {}).unwrap();
    let sent = store.requests().len();
    let again = open(online.clone()).fetch(&file("sub/model.bin"), None, &mut |_, _| {}).unwrap();
    assert_eq!((again, store.requests().len()), (first.clone(), sent));
    let asked = server.requests().len();
    let mut offline = online.clone();
    offline.offline = true;
    let offline = open(offline);
    assert_eq!(offline.fetch(&file("sub/model.bin"), None, &mut |_, _| {}).unwrap(), first);
    let message = offline.fetch(&file("config.json"), None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(message.starts_with("owner/model (revision main): config.json: HF_HUB_OFFLINE is set"), "{message}");
    assert_eq!(server.requests().len(), asked, "offline asks nothing");
    // nobody listens on port 1
    let mut gone = online;
    gone.endpoint = "http://127.0.0.1:1".to_string();
    let gone = open(gone);
    assert_eq!(gone.fetch(&file("sub/model.bin"), None, &mut |_, _| {}).unwrap(), first);
    let message = gone.fetch(&file("config.json"), None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("http://127.0.0.1:1: ") && message.contains("after 3 attempts"), "{message}");
}

#[test]
fn a_file_that_python_fetched_is_found() {
    let root = tempfile::tempdir().unwrap();
    let repository = root.path().join("hub/models--owner--model");
    for folder in ["blobs", "refs", &format!("snapshots/{COMMIT}")] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    fs::write(repository.join("blobs/abc"), b"from Python").unwrap();
    let link = repository.join(format!("snapshots/{COMMIT}/model.bin"));
    #[cfg(unix)]
    std::os::unix::fs::symlink("../../blobs/abc", &link).unwrap();
    #[cfg(not(unix))]
    fs::copy(repository.join("blobs/abc"), &link).unwrap();
    let mut offline = settings("http://127.0.0.1:1", root.path());
    offline.offline = true;
    let hub = open(offline);
    assert_eq!(hub.fetch(&file("model.bin"), None, &mut |_, _| {}).unwrap(), link);
    let at_commit = ctscribe::weights::hub::HubFile { revision: COMMIT.to_string(), ..file("model.bin") };
    assert_eq!(hub.cached(&at_commit), Some(link));
}
