//! Connections that break, servers that forget, bytes that are wrong.

use std::fs;
use std::path::{Path, PathBuf};

use ctscribe::Result;

use crate::double::{COMMIT, content, file, large, open, settings, sha256};
use crate::server::{Reply, Request, Server};

const SIZE: usize = 90_000;

/// A hub whose one file's bytes are answered by `store`; the client's view of it.
fn fetched(root: &Path, told: &[u8], store: &Server) -> Result<PathBuf> {
    let (told, address) = (told.to_vec(), store.address.clone());
    let hub = Server::start(move |_, _| large(&told, &format!("{address}/bytes")));
    open(settings(&hub.address, root)).fetch(&file("model.bin"), None, &mut |_, _| {})
}

fn partial(root: &Path, told: &[u8]) -> PathBuf {
    root.join("hub/models--owner--model/blobs").join(format!("{}.incomplete", sha256(told)))
}

fn firsts(store: &Server) -> Vec<usize> {
    store.requests().iter().map(|request| request.from().unwrap_or(0)).collect()
}

#[test]
fn a_cut_connection_is_gone_on_with_and_not_begun_again() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|request, _| Reply::range(request, &content(SIZE)).cut(20_000));
    let path = fetched(root.path(), &content(SIZE), &store).unwrap();
    assert_eq!(fs::read(path).unwrap(), content(SIZE));
    // five connections of 20,000 bytes, more than the three retries: each that brings something renews the patience
    assert_eq!(firsts(&store), [0, 20_000, 40_000, 60_000, 80_000]);
    assert!(!partial(root.path(), &content(SIZE)).exists());
}

#[test]
fn a_connection_that_brings_nothing_is_given_up_and_what_came_is_kept_for_the_next_call() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|request, before| Reply::range(request, &content(SIZE)).cut(if before == 0 { 30_000 } else { 0 }));
    let message = fetched(root.path(), &content(SIZE), &store).unwrap_err().to_string();
    assert!(message.contains("owner/model (revision main): model.bin: the connection was cut"), "{message}");
    assert!(message.contains("after 4 attempts") && message.contains("30000 of 90000 bytes are kept"), "{message}");
    assert_eq!(fs::metadata(partial(root.path(), &content(SIZE))).unwrap().len(), 30_000);
    let whole = Server::start(|request, _| Reply::range(request, &content(SIZE)));
    let path = fetched(root.path(), &content(SIZE), &whole).unwrap();
    assert_eq!((firsts(&whole), fs::read(path).unwrap()), (vec![30_000], content(SIZE)));
}

#[test]
fn a_server_without_ranges_is_read_from_the_beginning() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|_, before| {
        let reply = Reply::status(200).body(&content(SIZE));
        if before == 0 { reply.cut(50_000) } else { reply }
    });
    let path = fetched(root.path(), &content(SIZE), &store).unwrap();
    assert_eq!((firsts(&store), fs::read(path).unwrap()), (vec![0, 50_000], content(SIZE)));
}

#[test]
fn another_range_than_asked_for_is_not_appended() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|request, before| match before {
        0 => Reply::range(request, &content(SIZE)).cut(50_000),
        1 => Reply::status(206).with("Content-Range", format!("bytes 10-{}/{SIZE}", SIZE - 1)).body(&content(SIZE)[10..]),
        _ => Reply::range(request, &content(SIZE)),
    });
    let path = fetched(root.path(), &content(SIZE), &store).unwrap();
    assert_eq!((firsts(&store), fs::read(path).unwrap()), (vec![0, 50_000, 0], content(SIZE)));
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let wrong = |request: &Request, _| {
        let mut bytes = content(SIZE);
        bytes[77_777] ^= 1;
        Reply::range(request, &bytes)
    };
    let message = fetched(root.path(), &content(SIZE), &Server::start(wrong)).unwrap_err().to_string();
    assert!(message.contains("what came is not what was promised") && message.contains(&sha256(&content(SIZE))), "{message}");
    let blobs = root.path().join("hub/models--owner--model/blobs");
    assert_eq!(fs::read_dir(blobs).unwrap().count(), 0, "neither a blob nor a part of one is left");
    assert!(!root.path().join("hub/models--owner--model/snapshots").join(COMMIT).exists());
}

#[test]
fn a_damaged_part_of_an_earlier_call_is_thrown_away_and_the_file_fetched_whole() {
    let root = tempfile::tempdir().unwrap();
    let left = partial(root.path(), &content(SIZE));
    fs::create_dir_all(left.parent().unwrap()).unwrap();
    for damaged in [vec![9; 40_000], vec![9; SIZE + 5], vec![9; SIZE]] {
        fs::write(&left, &damaged).unwrap();
        let store = Server::start(|request, _| Reply::range(request, &content(SIZE)));
        let path = fetched(root.path(), &content(SIZE), &store).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content(SIZE));
        assert_eq!(firsts(&store).last(), Some(&0));
        fs::remove_file(path.canonicalize().unwrap()).unwrap();
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn more_bytes_than_the_hub_told_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|_, _| Reply::status(200).body(&content(SIZE + 100)));
    let message = fetched(root.path(), &content(SIZE), &store).unwrap_err().to_string();
    assert!(message.contains("more than the 90000 bytes that the hub told"), "{message}");
}

#[test]
fn the_catalogue_s_hash_binds_even_where_the_hub_tells_another() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|request, _| Reply::range(request, &content(SIZE)));
    let address = store.address.clone();
    let hub = Server::start(move |_, _| large(&content(SIZE), &format!("{address}/bytes")));
    let wanted = "0".repeat(64);
    let error = open(settings(&hub.address, root.path())).fetch(&file("model.bin"), Some(&wanted), &mut |_, _| {}).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("another file than weights.toml names") && message.contains(&wanted), "{message}");
    assert!(store.requests().is_empty(), "nothing is fetched that will be refused");
}
