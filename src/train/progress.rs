//! Progress on stderr: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One task's progress.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: u64,
    started: Instant,
    last_line: Mutex<Instant>,
}

/// Without a terminal, a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(15);

impl Progress {
    /// A task of `total` units called `label`.
    pub fn new(label: impl Into<String>, total: u64) -> Self {
        Progress::with(label.into(), (total, ""), "{prefix:>22} [{bar:30}] {pos}/{len} {elapsed} (left {eta}) {msg}")
    }

    /// A transfer of `total` bytes called `label`.
    pub fn of_bytes(label: impl Into<String>, total: u64) -> Self {
        Progress::with(label.into(), (total, " bytes"), "{prefix:>22} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} (left {eta}) {msg}")
    }

    fn with(label: String, (total, unit): (u64, &'static str), template: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(template);
            let style = style.expect("the template is fixed and valid").progress_chars("=> ");
            ProgressBar::new(total).with_style(style).with_prefix(label.clone())
        });
        if bar.is_none() {
            eprintln!("{label}: {total}{unit} to do");
        }
        Progress { bar, label, total, started: Instant::now(), last_line: Mutex::new(Instant::now()) }
    }

    /// `done` units are done; `message` says how it stands. Several threads may tell.
    pub fn at(&self, done: u64, message: impl Into<String>) {
        let message = message.into();
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message);
            return;
        }
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() >= LINE_EVERY {
            *last_line = Instant::now();
            eprintln!("{}: {done}/{} after {:.0} s {message}", self.label, self.total, self.started.elapsed().as_secs_f64());
        }
    }

    /// The task ended; `message` stays on the screen.
    pub fn finish(self, message: impl Into<String>) {
        let (message, seconds) = (message.into(), self.started.elapsed().as_secs_f64());
        match self.bar {
            Some(bar) => bar.finish_with_message(message),
            None => eprintln!("{}: done in {seconds:.1} s {message}", self.label),
        }
    }
}
