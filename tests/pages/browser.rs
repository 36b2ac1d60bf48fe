//! A headless Chromium, driven over chromedriver's WebDriver protocol (w3.org/TR/webdriver2): plain HTTP and JSON.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The key by which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser of its own profile; it ends with the value.
pub struct Browser {
    driver: Child,
    session: String,
    agent: ureq::Agent,
    _profile: TempDir,
}

impl Browser {
    /// `None`, said on stderr, where Chromium or its driver is absent.
    pub fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        let Ok(mut driver) = command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn() else {
            eprintln!("skipped: chromedriver (Debian's chromium-driver) is absent");
            return None;
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.split("successfully on port ").nth(1)?.trim_end_matches('.').parse::<u16>().ok());
        let port = port.expect("chromedriver says its port");
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let profile = tempfile::tempdir().unwrap();
        let folder = format!("--user-data-dir={}", profile.path().display());
        let flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --disable-dev-shm-usage --force-device-scale-factor=1 --window-size=1440,900";
        let flags: Vec<&str> = flags.split_whitespace().chain([folder.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let mut browser = Browser { driver, session: format!("http://127.0.0.1:{port}"), agent, _profile: profile };
        let answer = browser.post("session", &wanted);
        browser.session = format!("{}/session/{}", browser.session, answer["sessionId"].as_str().expect("a session"));
        Some(browser)
    }

    fn post(&self, what: &str, body: &Value) -> Value {
        let mut answer =
            self.agent.post(format!("{}/{what}", self.session)).content_type("application/json").send(body.to_string()).unwrap();
        let text = answer.body_mut().with_config().limit(256 << 20).read_to_string().unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(answer.status().is_success(), "{what} {body}: {}", value["value"]["message"]);
        value["value"].clone()
    }

    /// Opens a page and waits until it is drawn.
    pub fn open(&self, page: &Path) {
        self.post("url", &json!({ "url": format!("file://{}", page.display()) }));
        self.wait("return document.readyState === 'complete'");
    }

    /// Opens a page with a study and waits until that is drawn.
    pub fn open_study(&self, page: &Path) {
        self.open(page);
        self.wait("return document.body.dataset.study !== undefined && Number(document.body.dataset.drawn) > 0");
    }

    /// What a script returns.
    pub fn run(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub fn text(&self, script: &str) -> String {
        self.run(script).as_str().unwrap_or_else(|| panic!("{script} returns no text")).to_string()
    }

    pub fn number(&self, script: &str) -> f64 {
        self.run(script).as_f64().unwrap_or_else(|| panic!("{script} returns no number"))
    }

    /// Waits until a script returns true.
    #[track_caller]
    pub fn wait(&self, script: &str) {
        self.wait_for(script, true);
    }

    /// Waits until a script returns this value: the driver does not wait for a page to have heard its keys.
    #[track_caller]
    pub fn wait_for(&self, script: &str, value: impl Into<Value>) {
        let (begun, value, mut read) = (Instant::now(), value.into(), self.run(script));
        while read != value {
            assert!(begun.elapsed() < PATIENCE, "{script}: still {read}, not {value}");
            std::thread::sleep(Duration::from_millis(20));
            read = self.run(script);
        }
    }

    /// Does something and waits until the page has drawn itself anew.
    pub fn redrawn(&self, act: impl FnOnce(&Self)) {
        let before = self.number("return Number(document.body.dataset.drawn)");
        act(self);
        self.wait(&format!("return Number(document.body.dataset.drawn) > {before}"));
    }

    /// Clicks the middle of what a selector finds first, as a user would: what covers it is in the way.
    pub fn click(&self, selector: &str) {
        let found = self.post("element", &json!({ "using": "css selector", "value": selector }));
        self.post(&format!("element/{}/click", found[ELEMENT].as_str().unwrap()), &json!({}));
    }

    /// Clicks a place of a canvas, given as shares of its width and height.
    pub fn click_at(&self, selector: &str, x: f64, y: f64) {
        let script = format!(
            "const box = document.querySelector('{selector}').getBoundingClientRect(); return [box.x, box.y, box.width, box.height]"
        );
        let sides: Vec<f64> = self.run(&script).as_array().unwrap().iter().map(|side| side.as_f64().unwrap()).collect();
        let point =
            json!({ "type": "pointerMove", "x": (sides[0] + x * sides[2]).round() as i64, "y": (sides[1] + y * sides[3]).round() as i64 });
        let moves = [point, json!({ "type": "pointerDown", "button": 0 }), json!({ "type": "pointerUp", "button": 0 })];
        self.post("actions", &json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": moves }] }));
    }

    /// Presses keys one after the other; WebDriver's code points stand for those without a sign (\u{E013} is arrow up).
    pub fn keys(&self, keys: &str) {
        let each = |key: char| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let presses: Vec<Value> = keys.chars().flat_map(each).collect();
        self.post("actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": presses }] }));
    }

    /// A command of Chromium's own protocol.
    pub fn chromium(&self, command: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// A picture of the window as PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let url = format!("{}/screenshot", self.session);
        let mut answer = self.agent.get(url).call().unwrap();
        let value: Value = serde_json::from_str(&answer.body_mut().with_config().limit(64 << 20).read_to_string().unwrap()).unwrap();
        STANDARD.decode(value["value"].as_str().unwrap()).unwrap()
    }

    /// As [`Browser::screenshot`] once two in a row are alike: a busy machine shows a page before all of it is painted.
    pub fn settled_screenshot(&self) -> Vec<u8> {
        let mut last = self.screenshot();
        for _ in 0..50 {
            let next = self.screenshot();
            if next == last {
                break;
            }
            last = next;
        }
        last
    }

    /// A number that changes with any pixel of a canvas.
    pub fn pixels(&self, plane: &str) -> f64 {
        self.number(&format!(
            "const canvas = document.querySelector('[data-plane={plane}] canvas');
             const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
             let hash = 0; for (let i = 0; i < data.length; i++) hash = (Math.imul(hash, 31) + data[i]) | 0;
             return hash"
        ))
    }

    /// Asserts that nothing was complained of on the console and nothing was asked of a network since the last call.
    #[track_caller]
    pub fn assert_quiet(&self) {
        let said = self.post("se/log", &json!({ "type": "browser" }));
        // what the browser itself says of its first tab, and of tests that read canvases often, is not the page's
        let own =
            |entry: &&Value| !["chrome://", "willReadFrequently"].iter().any(|other| entry["message"].as_str().unwrap().contains(other));
        let said: Vec<&Value> = said.as_array().unwrap().iter().filter(own).collect();
        assert!(said.is_empty(), "{said:?}");
        let log = self.post("se/log", &json!({ "type": "performance" }));
        let asked = log.as_array().unwrap().iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &message["message"];
            let ours = message["params"]["documentURL"].as_str().is_some_and(|url| url.starts_with("file:"));
            (message["method"] == "Network.requestWillBeSent" && ours)
                .then(|| message["params"]["request"]["url"].as_str().map(str::to_string))?
        });
        let outside: Vec<String> = asked.filter(|url| !["file:", "data:", "blob:"].iter().any(|own| url.starts_with(own))).collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
