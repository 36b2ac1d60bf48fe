//! `verify resume`: a run that is killed at random moments and resumed ends like an unbroken one, byte for byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::Value;

use crate::config::{Config, TrainingConfig};
use crate::generate::DecoderKind;
use crate::weights::write_aside;
use crate::{Error, Result};

/// A stage that can be killed and resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifiedStage {
    /// Stage one.
    Structure,
    /// The language model of the run's own.
    Language,
    /// Stage two.
    Report(DecoderKind),
}

impl VerifiedStage {
    /// Its folder in a run.
    pub fn folder(self) -> &'static str {
        match self {
            VerifiedStage::Structure => "structure",
            VerifiedStage::Language => "language",
            VerifiedStage::Report(kind) => kind.name(),
        }
    }

    /// The finished run's folders that it builds on.
    fn needs(self) -> &'static [&'static str] {
        match self {
            VerifiedStage::Structure | VerifiedStage::Language => &[],
            VerifiedStage::Report(_) => &["structure", "language", "observations"],
        }
    }

    fn arguments(self) -> Vec<&'static str> {
        match self {
            VerifiedStage::Structure => vec!["train", "structure"],
            VerifiedStage::Language => vec!["train", "language"],
            VerifiedStage::Report(kind) => vec!["train", "report", "--decoder", kind.name()],
        }
    }

    fn training(self, config: &mut Config) -> Result<&mut TrainingConfig> {
        match self {
            VerifiedStage::Structure => Ok(&mut config.train_structure.training),
            VerifiedStage::Language => match &mut config.language {
                Some(language) => Ok(&mut language.training),
                None => Err(Error::Invalid("language: null: there is no language model to verify".to_string())),
            },
            VerifiedStage::Report(DecoderKind::Llama) => Ok(&mut config.llama.training),
            VerifiedStage::Report(DecoderKind::Bert) => Ok(&mut config.bert.training),
        }
    }
}

/// What is verified.
#[derive(Debug)]
pub struct VerifyResume<'a> {
    /// The program to run, this one.
    pub program: &'a Path,
    /// The cache of prepared volumes.
    pub data: &'a Path,
    /// The configuration; only the number of steps and the checkpoints are shortened.
    pub config: Config,
    /// A run whose earlier stages are done, where the stage builds on them.
    pub run: Option<&'a Path>,
    /// Which stage.
    pub stage: VerifiedStage,
    /// Steps of a run.
    pub steps: u64,
    /// Kills in all.
    pub kills: usize,
    /// Where the runs go.
    pub work: &'a Path,
    /// Where the moments of the kills come from.
    pub seed: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResumeVerdict {
    /// The stage.
    pub stage: String,
    /// Steps of a run.
    pub steps: u64,
    /// Runs that were killed and resumed to their end.
    pub runs: usize,
    /// Kills in all.
    pub kills: usize,
    /// Kills after which a checkpoint was there to go on from.
    pub resumed_from_checkpoint: usize,
    /// Files that are equal byte for byte in every run (metrics: line for line, clocks and memory aside).
    pub equal: Vec<String>,
}

/// Keys of `metrics.jsonl` that no two runs share.
const CLOCKS: [&str; 5] = ["seconds_a_step", "peak_memory_mib", "tokens_per_second", "studies_per_second", "seconds"];

impl VerifyResume<'_> {
    /// Runs the stage unbroken, then again and again with kills until there were enough; the first difference is an error that names the file.
    pub fn verify(&self) -> Result<ResumeVerdict> {
        let config = self.short_config()?;
        fs::create_dir_all(self.work).map_err(|e| Error::io(self.work, e))?;
        let config_path = self.work.join("config.yaml");
        write_aside(&config_path, config.to_yaml()?.as_bytes())?;
        let whole = self.folder("whole")?;
        let clock = Instant::now();
        let unbroken = self.spawn(&whole, &config_path, "unbroken")?;
        self.wait(unbroken, "the unbroken run", &whole)?;
        let duration = clock.elapsed();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut verdict = ResumeVerdict {
            stage: self.stage.folder().to_string(),
            steps: self.steps,
            runs: 0,
            kills: 0,
            resumed_from_checkpoint: 0,
            equal: Vec::new(),
        };
        while verdict.kills < self.kills || verdict.runs == 0 {
            let broken = self.folder(&format!("killed-{}", verdict.runs))?;
            self.kill_and_resume(&broken, &config_path, duration, &mut rng, &mut verdict)?;
            verdict.equal = self.compare(&whole, &broken)?;
            verdict.runs += 1;
            fs::remove_dir_all(&broken).map_err(|e| Error::io(&broken, e))?;
        }
        Ok(verdict)
    }

    fn short_config(&self) -> Result<Config> {
        let mut config = self.config.clone();
        let steps = self.steps;
        let training = self.stage.training(&mut config)?;
        training.steps = steps;
        training.checkpoint_every = 2;
        training.log_every = 1;
        training.keep_checkpoints = 2;
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(Error::Config { source_name: "verify resume".to_string(), faults }) }
    }

    /// A run folder with links to what the stage builds on.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.work.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        for need in self.stage.needs() {
            let Some(run) = self.run else {
                return Err(Error::Invalid(format!("{} builds on a run's {need}: give --run", self.stage.folder())));
            };
            let from = run.join(need);
            if from.is_dir() {
                let from = fs::canonicalize(&from).map_err(|e| Error::io(&from, e))?;
                link(&from, &folder.join(need))?;
            }
        }
        Ok(folder)
    }

    fn spawn(&self, run: &Path, config: &Path, log: &str) -> Result<Child> {
        let path = self.work.join(format!("{log}.log"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut command = Command::new(self.program);
        command.args(self.stage.arguments()).arg("--data").arg(self.data).arg("--run").arg(run).arg("--config").arg(config).arg("--resume");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(file)).spawn();
        child.map_err(|e| Error::io(self.program, e))
    }

    fn wait(&self, mut child: Child, what: &str, run: &Path) -> Result<()> {
        let status = child.wait().map_err(|e| Error::io(self.program, e))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::file(run, format!("{what} ended with {status}; see the logs in {}", self.work.display())))
    }

    /// One run: killed after random delays until it has had its share of kills, then resumed to its end.
    fn kill_and_resume(
        &self,
        run: &Path,
        config: &Path,
        duration: Duration,
        rng: &mut ChaCha8Rng,
        verdict: &mut ResumeVerdict,
    ) -> Result<()> {
        loop {
            let mut child = self.spawn(run, config, "killed")?;
            if verdict.kills >= self.kills {
                return self.wait(child, "the last resumed run", run);
            }
            // anywhere from the first instruction to past the end
            let delay = duration.mul_f64(rng.random_range(0.0..1.1));
            let started = Instant::now();
            while started.elapsed() < delay {
                if let Some(status) = child.try_wait().map_err(|e| Error::io(self.program, e))? {
                    if status.success() {
                        return Ok(());
                    }
                    return self.wait(child, "a resumed run", run);
                }
                std::thread::sleep(Duration::from_millis(2).min(delay));
            }
            child.kill().map_err(|e| Error::io(self.program, e))?;
            child.wait().map_err(|e| Error::io(self.program, e))?;
            verdict.kills += 1;
            let checkpoints = fs::read_dir(run.join(self.stage.folder()).join("checkpoints")).into_iter().flatten().flatten();
            let resumable = checkpoints.into_iter().any(|entry| entry.path().join("state.json").is_file());
            verdict.resumed_from_checkpoint += usize::from(resumable);
        }
    }

    /// Every file of the stage's folder but clocks; the names of the files that are equal.
    fn compare(&self, whole: &Path, broken: &Path) -> Result<Vec<String>> {
        let (whole, broken) = (whole.join(self.stage.folder()), broken.join(self.stage.folder()));
        let mut equal = Vec::new();
        for entry in walkdir::WalkDir::new(&whole).sort_by_file_name().into_iter().flatten().filter(|entry| entry.file_type().is_file()) {
            let name = entry.path().strip_prefix(&whole).unwrap_or(entry.path()).to_path_buf();
            let shown = name.display().to_string();
            if shown.contains("tfevents") || shown.ends_with("curves.svg") {
                continue;
            }
            let other = broken.join(&name);
            let same =
                if shown == "metrics.jsonl" { metrics(entry.path())? == metrics(&other)? } else { read(entry.path())? == read(&other)? };
            if !same {
                return Err(Error::file(&other, format!("differs from the unbroken run's {}", entry.path().display())));
            }
            equal.push(shown);
        }
        Ok(equal)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::io(path, e))
}

/// The lines of a `metrics.jsonl` without clocks and memory.
fn metrics(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let line = |line: &str| -> Result<Value> {
        let mut value: Value = serde_json::from_str(line).map_err(|e| Error::file(path, e.to_string()))?;
        if let Some(keys) = value.as_object_mut() {
            keys.retain(|key, _| !CLOCKS.contains(&key.as_str()));
        }
        Ok(value)
    };
    text.lines().map(line).collect()
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).map_err(|e| Error::io(to, e))
}

#[cfg(not(unix))]
fn link(_: &Path, to: &Path) -> Result<()> {
    Err(Error::file(to, "links to a run's folders need Unix"))
}
