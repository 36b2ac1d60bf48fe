//! Where the hub is, where its cache lies, who asks: the variables that Hugging Face's own tools read.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// A secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    /// Where it was found: a variable or a file.
    pub source: String,
}

impl Token {
    /// `secret`, found at `source`.
    pub fn new(secret: impl Into<String>, source: impl Into<String>) -> Self {
        Token { secret: secret.into(), source: source.into() }
    }

    /// The value of an Authorization header.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Token(from {})", self.source)
    }
}

/// How the hub is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// `https://huggingface.co`, or a mirror (HF_ENDPOINT).
    pub endpoint: String,
    /// The folder of `models--OWNER--NAME` (HF_HUB_CACHE, else HF_HOME/hub).
    pub cache: PathBuf,
    /// HF_TOKEN, or the file that `hf auth login` writes (HF_TOKEN_PATH, else HF_HOME/token).
    pub token: Option<Token>,
    /// Whether the network is left alone (HF_HUB_OFFLINE).
    pub offline: bool,
    /// A connection that says nothing for so long is cut (HF_HUB_DOWNLOAD_TIMEOUT, seconds).
    pub silence: Duration,
    /// Attempts after one that brought no new byte.
    pub retries: u32,
    /// Pause before the first such attempt; it doubles each time.
    pub pause: Duration,
    /// Certificates to trust instead of Mozilla's, in PEM (SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE).
    pub certificates: Option<PathBuf>,
}

const ENDPOINT: &str = "https://huggingface.co";

impl HubSettings {
    /// As the environment says.
    pub fn from_env() -> Result<Self> {
        HubSettings::read(&|name| std::env::var(name).ok())
    }

    /// As `variable` says of each name; an empty value counts as none.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.trim().is_empty()));
        let path = |names: &[&str]| first(names).map(|value| expanded(&value));
        let home = path(&["HF_HOME"]).or_else(|| Some(path(&["XDG_CACHE_HOME"])?.join("huggingface")));
        let home = home.or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let home = home.ok_or_else(|| Error::Invalid("HF_HOME: not set, and there is no home folder to keep the hub's files in".into()))?;
        let endpoint = first(&["HF_ENDPOINT"]).unwrap_or_else(|| ENDPOINT.to_string());
        Ok(HubSettings {
            endpoint: checked_endpoint(&endpoint)?,
            cache: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| home.join("hub")),
            token: token(&first, &path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"))),
            offline: first(&["HF_HUB_OFFLINE"]).is_some_and(|value| truth(&value)),
            silence: seconds(first(&["HF_HUB_DOWNLOAD_TIMEOUT"]))?,
            retries: 5,
            pause: Duration::from_secs(1),
            certificates: path(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]).filter(|path| path.is_file()),
        })
    }
}

/// No slash at the end; http or https.
fn checked_endpoint(endpoint: &str) -> Result<String> {
    let endpoint = endpoint.trim().trim_end_matches('/');
    if endpoint.starts_with("https://") || endpoint.starts_with("http://") {
        return Ok(endpoint.to_string());
    }
    Err(Error::Invalid(format!("HF_ENDPOINT: {endpoint}: expected an address that begins with https:// or http://")))
}

fn token(first: &dyn Fn(&[&str]) -> Option<String>, file: &Path) -> Option<Token> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(secret) = first(&[name]) {
            return Some(Token::new(secret.trim(), name));
        }
    }
    let secret = fs::read_to_string(file).ok()?;
    (!secret.trim().is_empty()).then(|| Token::new(secret.trim(), file.display().to_string()))
}

fn truth(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}

fn seconds(value: Option<String>) -> Result<Duration> {
    let Some(value) = value else { return Ok(Duration::from_secs(30)) };
    let seconds = value.trim().parse::<u64>().ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| Error::Invalid(format!("HF_HUB_DOWNLOAD_TIMEOUT: {value}: expected seconds")))?;
    Ok(Duration::from_secs(seconds))
}

fn expanded(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::read(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn the_hub_s_variables_are_read_as_its_own_tools_read_them() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().to_str().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let of_file = read(&[("HF_HOME", folder), ("HF_ENDPOINT", "https://mirror.example/")]).unwrap();
        assert_eq!((of_file.cache, of_file.endpoint.as_str()), (home.path().join("hub"), "https://mirror.example"));
        assert_eq!(of_file.token, Some(Token::new("hf_file", home.path().join("token").display().to_string())));
        let of_variable = read(&[("HF_HOME", folder), ("HF_TOKEN", "hf_env"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "Yes")]).unwrap();
        assert_eq!(of_variable.token, Some(Token::new("hf_env", "HF_TOKEN")));
        assert!(of_variable.offline && of_variable.cache == Path::new("/c"));
        assert!(!read(&[("HF_HOME", folder), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert_eq!(read(&[("XDG_CACHE_HOME", "/x")]).unwrap().cache, Path::new("/x/huggingface/hub"));
        assert!(read(&[("HF_ENDPOINT", "huggingface.co")]).unwrap_err().to_string().contains("HF_ENDPOINT: huggingface.co"));
    }

    #[test]
    fn a_token_is_never_printed() {
        assert_eq!(format!("{:?}", Token::new("hf_secret", "HF_TOKEN")), "Token(from HF_TOKEN)");
    }
}
