//! Requests: redirects without giving the token away, answers put into words, patience with a hub that is busy.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::{Error, Result};

use super::{HubFile, HubSettings, Remote, Token};

/// What stays as it is in a path.
const PATH: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
const SEGMENT: AsciiSet = PATH.add(b'/');

/// A longer wait than this is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Hops from the hub to where the bytes lie.
const REDIRECTS: usize = 10;

/// An attempt that failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Worth another attempt, not before so long.
    Again(String, Option<Duration>),
    /// The answer will not change.
    Final(String),
    /// There is no such file.
    Absent(String),
}

/// Why a file could not be described.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Nobody answered.
    Unreachable(String),
    /// The hub said no.
    Answered(String),
    /// The hub has no such file.
    Absent(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (Refusal::Unreachable(what) | Refusal::Answered(what) | Refusal::Absent(what)) = self;
        f.write_str(what)
    }
}

/// Attempts left, and the pause before the next.
#[derive(Debug)]
pub(super) struct Patience {
    settings: (u32, Duration),
    left: u32,
    pause: Duration,
}

impl Patience {
    fn new(retries: u32, pause: Duration) -> Self {
        Patience { settings: (retries, pause), left: retries, pause }
    }

    /// New bytes came: as patient as at the beginning.
    pub(super) fn renew(&mut self) {
        (self.left, self.pause) = self.settings;
    }

    /// Waits before another attempt, or says why there is none.
    pub(super) fn wait(&mut self, fault: Fault) -> std::result::Result<(), Refusal> {
        let (what, after) = match fault {
            Fault::Final(what) => return Err(Refusal::Answered(what)),
            Fault::Absent(what) => return Err(Refusal::Absent(what)),
            Fault::Again(what, after) => (what, after),
        };
        if let Some(after) = after.filter(|after| *after > LONGEST_WAIT) {
            return Err(Refusal::Answered(format!("{what}; it asks to come again in {} s", after.as_secs())));
        }
        if self.left == 0 {
            return Err(Refusal::Unreachable(format!("{what} (after {} attempts)", self.settings.0 + 1)));
        }
        self.left -= 1;
        std::thread::sleep(after.unwrap_or(Duration::ZERO).max(self.pause));
        self.pause *= 2;
        Ok(())
    }
}

/// A blocking client of one hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    retries: u32,
    pause: Duration,
}

impl Client {
    pub(super) fn new(settings: &HubSettings) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            let pem = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates.collect())));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .user_agent(concat!("ctscribe/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build());
        let HubSettings { endpoint, token, retries, pause, .. } = settings.clone();
        Ok(Client { agent: config.build().into(), endpoint, token, retries, pause })
    }

    /// Patience for `retries` attempts in a row that bring nothing.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.retries, self.pause)
    }

    /// Where a file lies at a revision.
    pub(super) fn url(&self, file: &HubFile, revision: &str) -> String {
        let path = utf8_percent_encode(&file.path, &PATH);
        format!("{}/{}/resolve/{}/{path}", self.endpoint, file.repository, utf8_percent_encode(revision, &SEGMENT))
    }

    /// Asks for the headers: redirects are followed until commit, hash and size are known.
    pub(super) fn describe(&self, file: &HubFile) -> std::result::Result<Remote, Refusal> {
        // a name that cannot be reached is told soon: there may be a cached file
        let mut patience = Patience::new(self.retries.min(2), self.pause);
        loop {
            match self.headers(file) {
                Ok(remote) => return Ok(remote),
                Err(fault) => patience.wait(fault)?,
            }
        }
    }

    fn headers(&self, file: &HubFile) -> std::result::Result<Remote, Fault> {
        let (mut url, mut known) = (self.url(file, &file.revision), Known::default());
        for _ in 0..REDIRECTS {
            let response = self.send("HEAD", &url, None)?;
            known.note(&response);
            let status = response.status();
            if let Some(remote) = known.remote().filter(|_| status.is_success() || status.is_redirection()) {
                return Ok(remote);
            }
            if !status.is_redirection() {
                return Err(self.refusal(file, &response).unwrap_or_else(|| Fault::Final(known.missing())));
            }
            url = location(&url, &response)?;
        }
        Err(Fault::Final(format!("more than {REDIRECTS} redirects")))
    }

    /// The content from byte `from` on, at a commit. Redirects are followed; the token goes to the hub alone.
    pub(super) fn open(&self, file: &HubFile, commit: &str, from: u64) -> std::result::Result<Response<Body>, Fault> {
        let mut url = self.url(file, commit);
        for _ in 0..REDIRECTS {
            let response = self.send("GET", &url, (from > 0).then_some(from))?;
            if response.status().is_redirection() {
                url = location(&url, &response)?;
                continue;
            }
            return match self.refusal(file, &response) {
                Some(fault) => Err(fault),
                None => Ok(response),
            };
        }
        Err(Fault::Final(format!("more than {REDIRECTS} redirects")))
    }

    fn send(&self, method: &str, url: &str, from: Option<u64>) -> std::result::Result<Response<Body>, Fault> {
        let mut request = if method == "HEAD" { self.agent.head(url) } else { self.agent.get(url) };
        // compressed answers would have other bytes than the file
        request = request.header("Accept-Encoding", "identity");
        if let Some(from) = from {
            request = request.header("Range", format!("bytes={from}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header("Authorization", token.bearer());
        }
        request.call().map_err(|error| network_fault(url, error))
    }

    /// What an answer that is no content means, and what to do about it.
    fn refusal(&self, file: &HubFile, response: &Response<Body>) -> Option<Fault> {
        let (status, headers) = (response.status(), response.headers());
        let code = text(headers, "x-error-code").unwrap_or_default();
        Some(match status.as_u16() {
            200..=299 | 416 => return None,
            401 | 403 => Fault::Final(self.not_allowed(file, status, &code, text(headers, "x-error-message"))),
            404 if code == "RevisionNotFound" => Fault::Final("there is no such revision (404)".to_string()),
            404 if code == "RepoNotFound" => Fault::Final("there is no such repository (404)".to_string()),
            404 => Fault::Absent("there is no such file in the repository (404)".to_string()),
            408 | 429 | 500..=599 => {
                let what = if status.as_u16() == 429 { "the hub asks for fewer requests".to_string() } else { "the hub fails".to_string() };
                Fault::Again(format!("{what} ({status})"), retry_after(headers))
            }
            _ => Fault::Final(format!("the hub answers {status}")),
        })
    }

    /// Which page to accept, how to give a token.
    fn not_allowed(&self, file: &HubFile, status: StatusCode, code: &str, message: Option<String>) -> String {
        let page = format!("{}/{}", self.endpoint, file.repository);
        let said = message.map_or_else(|| status.to_string(), |message| format!("{status}: {message}"));
        let give = format!(
            "give a token of your account ({}/settings/tokens, read access to gated repositories) as HF_TOKEN, or once with `hf auth login`",
            self.endpoint
        );
        match (&self.token, code) {
            (None, "GatedRepo") => format!("gated ({said}): accept the conditions on {page}, then {give}"),
            (None, _) => format!("not without a token ({said}): accept the conditions on {page} where it is gated, then {give}"),
            (Some(token), "GatedRepo") => format!(
                "gated ({said}): accept the conditions on {page} with the account of the token from {}; the access may have to be granted by hand",
                token.source
            ),
            (Some(token), _) => format!(
                "the token from {} is refused ({said}): it may be expired or lack read access; {give}, and accept the conditions on {page} where it is gated",
                token.source
            ),
        }
    }
}

/// What the headers on the way have told.
#[derive(Debug, Default)]
struct Known {
    commit: Option<String>,
    etag: Option<String>,
    size: Option<u64>,
}

impl Known {
    /// X-Linked-* speak of the file itself; ETag and Content-Length only where it is no redirect.
    fn note(&mut self, response: &Response<Body>) {
        let (headers, last) = (response.headers(), response.status().is_success());
        let own = |linked: &str, plain: &str| text(headers, linked).or_else(|| text(headers, plain).filter(|_| last));
        self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit"));
        self.etag = self.etag.take().or_else(|| own("x-linked-etag", "etag").map(|etag| bare(&etag)));
        self.size = self.size.or_else(|| own("x-linked-size", "content-length")?.parse().ok());
    }

    fn remote(&self) -> Option<Remote> {
        let name = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') && !text.is_empty();
        let (commit, etag) = (self.commit.clone().filter(name)?, self.etag.clone().filter(name)?);
        Some(Remote { commit, etag, size: self.size? })
    }

    fn missing(&self) -> String {
        format!("the answer is no hub's: commit {:?}, hash {:?}, size {:?}; is HF_ENDPOINT right?", self.commit, self.etag, self.size)
    }
}

fn bare(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_string()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_string())
}

/// Retry-After in seconds, or the `t` of RateLimit (`"api";r=0;t=120`).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let limit = || text(headers, "ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t=").map(String::from));
    text(headers, "retry-after").or_else(limit)?.trim().parse().ok().map(Duration::from_secs)
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Where a redirect leads; from https never to http.
fn location(from: &str, response: &Response<Body>) -> std::result::Result<String, Fault> {
    let to = text(response.headers(), "location").ok_or_else(|| Fault::Final(format!("{}: a redirect without Location", origin(from))))?;
    let scheme = &from[..from.find("://").unwrap_or(0)];
    let next = match () {
        () if to.contains("://") => to,
        () if to.starts_with("//") => format!("{scheme}:{to}"),
        () if to.starts_with('/') => format!("{}{to}", origin(from)),
        () => format!("{}/{to}", from.rsplit_once('/').map_or(from, |(folder, _)| folder)),
    };
    if scheme == "https" && !next.starts_with("https://") {
        return Err(Fault::Final(format!("a redirect from https to {}, which is not followed", origin(&next))));
    }
    Ok(next)
}

/// A failure below HTTP: certificates and addresses do not mend themselves, connections do.
fn network_fault(url: &str, error: ureq::Error) -> Fault {
    let what = format!("{}: {error}", origin(url));
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => Fault::Final(what),
        _ => Fault::Again(what, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_ends_before_the_path() {
        assert_eq!(origin("https://a.example:8443/x/y?z"), "https://a.example:8443");
        assert_eq!(origin("http://a.example"), "http://a.example");
        assert_ne!(origin("https://huggingface.co.evil.example/x"), origin("https://huggingface.co"));
        assert_ne!(origin("http://a.example/x"), origin("https://a.example/x"));
    }

    #[test]
    fn a_busy_hub_says_when_to_come_again() {
        let headers = |name: &'static str, value: &'static str| HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        assert_eq!(retry_after(&headers("retry-after", "7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("ratelimit", "\"resolvers\";r=0;t=12")), Some(Duration::from_secs(12)));
        assert_eq!(retry_after(&headers("etag", "x")), None);
    }

    #[test]
    fn patience_ends_and_a_very_long_wait_is_told_instead_of_waited_for() {
        let mut patience = Patience::new(1, Duration::from_millis(1));
        assert!(patience.wait(Fault::Again("cut".into(), None)).is_ok());
        assert_eq!(patience.wait(Fault::Again("cut".into(), None)).unwrap_err().to_string(), "cut (after 2 attempts)");
        patience.renew();
        let long = Fault::Again("busy".into(), Some(Duration::from_secs(4000)));
        assert_eq!(patience.wait(long).unwrap_err().to_string(), "busy; it asks to come again in 4000 s");
    }
}
