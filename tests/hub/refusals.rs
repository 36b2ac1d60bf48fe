//! The hub's refusals, put into words: what to accept, how to give a token, what is not there, when to come again.

use std::time::{Duration, Instant};

use crate::double::{content, file, large, open, settings, small, token};
use crate::server::{Reply, Server};

/// What a hub that answers so is made of.
#[track_caller]
fn told(reply: Reply, with_token: bool) -> (String, String) {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(move |_, _| reply.clone());
    let plain = settings(&server.address, root.path());
    let hub = open(if with_token { token(plain) } else { plain });
    (hub.fetch(&file("model.bin"), None, &mut |_, _| {}).unwrap_err().to_string(), server.address)
}

#[test]
fn a_gated_repository_names_its_page_and_how_to_give_a_token() {
    let gated = |status| Reply::status(status).with("X-Error-Code", "GatedRepo").with("X-Error-Message", "Access is restricted.");
    let (message, address) = told(gated(401), false);
    for part in [
        "owner/model (revision main): model.bin: gated (401".to_string(),
        "Access is restricted.".to_string(),
        format!("accept the conditions on {address}/owner/model"),
        "HF_TOKEN".to_string(),
        format!("{address}/settings/tokens"),
        "hf auth login".to_string(),
    ] {
        assert!(message.contains(&part), "{part:?} is missing in: {message}");
    }
    let (message, address) = told(gated(403), true);
    assert!(
        message.contains(&format!("accept the conditions on {address}/owner/model with the account of the token from HF_TOKEN")),
        "{message}"
    );
    assert!(!message.contains("hf_secret"), "{message}");
}

#[test]
fn a_refused_token_is_told_from_a_missing_one() {
    let (without, _) = told(Reply::status(401), false);
    assert!(without.contains("not without a token (401"), "{without}");
    let (with, _) = told(Reply::status(401).with("X-Error-Message", "Invalid credentials"), true);
    assert!(with.contains("the token from HF_TOKEN is refused (401") && with.contains("Invalid credentials"), "{with}");
}

#[test]
fn what_is_not_there_is_told_apart_repository_revision_file() {
    for (code, words) in
        [("RepoNotFound", "no such repository"), ("RevisionNotFound", "no such revision"), ("EntryNotFound", "no such file")]
    {
        let (message, _) = told(Reply::status(404).with("X-Error-Code", code), false);
        assert!(message.starts_with("owner/model (revision main): model.bin: ") && message.contains(words), "{message}");
    }
}

#[test]
fn a_busy_hub_is_asked_again_when_it_says_so() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(|request, before| match before {
        0 => Reply::status(429).with("Retry-After", 1),
        1 => Reply::status(503),
        2 => small(request, b"content"),
        3 => Reply::status(429).with("Retry-After", 0),
        _ => small(request, b"content"),
    });
    let started = Instant::now();
    let path = open(settings(&server.address, root.path())).fetch(&file("model.bin"), None, &mut |_, _| {}).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"content");
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After is heeded");
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn a_hub_that_stays_busy_is_given_up_and_one_that_asks_for_an_hour_is_not_waited_for() {
    let (message, _) = told(Reply::status(429).with("Retry-After", 0), false);
    assert!(message.contains("the hub asks for fewer requests (429") && message.contains("after 3 attempts"), "{message}");
    let (message, _) = told(Reply::status(429).with("Retry-After", 3600), false);
    assert!(message.contains("it asks to come again in 3600 s"), "{message}");
}

#[test]
fn redirects_inside_the_hub_keep_the_token_and_a_circle_ends() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(|request, _| match request.path.as_str() {
        "/api/moved" => small(request, b"content"),
        _ => Reply::status(307).with("Location", "/api/moved"),
    });
    open(token(settings(&server.address, root.path()))).fetch(&file("model.bin"), None, &mut |_, _| {}).unwrap();
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let (message, _) = told(Reply::status(302).with("Location", "/round"), false);
    assert!(message.contains("more than 10 redirects"), "{message}");
}

#[test]
fn an_answer_that_is_no_hub_s_is_said_to_be_none() {
    let (message, _) = told(Reply::status(200).body(b"<html>a login page</html>"), false);
    assert!(message.contains("the answer is no hub's") && message.contains("HF_ENDPOINT"), "{message}");
    let hostile = Reply::status(200).with("X-Repo-Commit", "../../../etc").with("ETag", "\"../../x\"").body(b"x");
    assert!(told(hostile, false).0.contains("the answer is no hub's"));
}

#[test]
fn a_refusal_in_the_middle_of_a_download_is_told_as_well() {
    let root = tempfile::tempdir().unwrap();
    let store = Server::start(|_, _| Reply::status(403));
    let address = store.address.clone();
    let server = Server::start(move |_, _| large(&content(5000), &format!("{address}/bytes")));
    let message =
        open(token(settings(&server.address, root.path()))).fetch(&file("model.bin"), None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("403"), "{message}");
}
