//! What every stage's loop does: schedule, clipping, step, metrics, checkpoints, resume.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use crate::config::{Config, TrainingConfig};
use crate::{Error, Result};

use super::micro_batches::clip;
use super::optimizer::{AdamW, Gradients};
use super::progress::Progress;
use super::run_folder::{Checkpoint, CheckpointTensors, RunFolder, peak_memory_mib};

/// What one step's forward and backward gave.
#[derive(Debug, Default)]
pub struct StepOutcome {
    /// Of the whole batch.
    pub gradients: Gradients,
    /// The loss that is minimised.
    pub loss: f64,
    /// What else is worth a line in `metrics.jsonl`.
    pub metrics: Map<String, Value>,
}

/// A stage: what differs between structure, language and report learning.
pub trait Stage {
    /// Its name in checkpoints and metrics.
    fn name(&self) -> &str;

    /// Forward and backward of step `step`.
    fn gradients(&mut self, step: u64, optimizer: &AdamW) -> Result<StepOutcome>;

    /// State beside trained tensors and moments that a resumed run needs (queue, running statistics).
    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::new())
    }

    /// Takes up [`Stage::state`].
    fn restore(&mut self, _checkpoint: &mut Checkpoint) -> Result<()> {
        Ok(())
    }

    /// Measured on validation studies, at every checkpoint.
    fn validate(&mut self) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }
}

/// A stage's loop.
#[derive(Debug)]
pub struct Loop<'a> {
    /// The loop's numbers.
    pub training: &'a TrainingConfig,
    /// Where metrics and checkpoints go.
    pub run: &'a RunFolder,
    /// SHA-256 of the resolved configuration.
    pub config_sha256: String,
    /// Goes on after the newest checkpoint.
    pub resume: bool,
    /// Stops after this many steps of this call, with a checkpoint; `None`: runs to the end.
    pub stop_after: Option<u64>,
}

impl<'a> Loop<'a> {
    /// The loop of `training` in `run`.
    pub fn new(config: &Config, training: &'a TrainingConfig, run: &'a RunFolder, resume: bool) -> Result<Self> {
        Ok(Loop { training, run, config_sha256: config.sha256()?, resume, stop_after: None })
    }

    /// Trains `stage` to its end; returns the steps done in all.
    pub fn run(&self, stage: &mut dyn Stage, optimizer: &mut AdamW) -> Result<u64> {
        let start = self.start(stage, optimizer)?;
        let steps = self.training.steps;
        let last = self.stop_after.map_or(steps, |more| steps.min(start + more));
        let progress = Progress::new(stage.name(), steps);
        let (mut clock, mut said) = (Instant::now(), String::new());
        for step in start..last {
            let lr = self.training.schedule.at(step, steps);
            let StepOutcome { gradients, loss, metrics } = stage.gradients(step, optimizer)?;
            let (gradients, norm) = clip(gradients, self.training.clip_norm)?;
            if !loss.is_finite() || !norm.is_finite() {
                return Err(self.exploded(stage.name(), step, loss, norm));
            }
            optimizer.step(&gradients, lr)?;
            let done = step + 1;
            if done % self.training.log_every == 0 || done == steps {
                let seconds = clock.elapsed().as_secs_f64();
                clock = Instant::now();
                let line = json!({
                    "stage": stage.name(), "step": done, "loss": loss, "learning_rate": lr, "gradient_norm": norm,
                    "seconds_a_step": seconds / self.training.log_every as f64, "peak_memory_mib": peak_memory_mib(),
                });
                self.run.append_metrics(&joined(line, metrics))?;
                said = format!("loss {loss:.4}");
            }
            progress.at(done, said.clone());
            if done % self.training.checkpoint_every == 0 || done == last {
                self.checkpoint(stage, optimizer, done)?;
            }
        }
        progress.finish(said);
        Ok(last)
    }

    /// The step to begin with: 0, or that of the newest checkpoint.
    fn start(&self, stage: &mut dyn Stage, optimizer: &mut AdamW) -> Result<u64> {
        let Some(mut checkpoint) = self.run.latest_checkpoint()? else {
            // lines of a run that was killed before its first checkpoint
            self.run.cut_metrics(0)?;
            return Ok(0);
        };
        let source = checkpoint.path.display().to_string();
        if !self.resume {
            return Err(Error::file(self.run.root(), "holds checkpoints already: resume it (--resume) or give another folder"));
        }
        if checkpoint.state.stage != stage.name() {
            return Err(Error::file(&source, format!("a checkpoint of {}, not of {}", checkpoint.state.stage, stage.name())));
        }
        if checkpoint.state.config_sha256 != self.config_sha256 {
            return Err(Error::file(&source, "was written under another configuration: a resumed run must not change its numbers"));
        }
        for (name, var) in optimizer.vars() {
            let fault = |what: String| Error::Tensor { source_name: source.clone(), tensor: name.to_string(), what };
            let tensor = checkpoint.model.get(name).ok_or_else(|| fault("missing".to_string()))?;
            if tensor.dims() != var.dims() {
                return Err(fault(format!("expected {:?}, found {:?}", var.dims(), tensor.dims())));
            }
            var.set(tensor)?;
        }
        let step = checkpoint.state.step;
        optimizer.restore(&source, &checkpoint.optimizer, step)?;
        stage.restore(&mut checkpoint)?;
        self.run.cut_metrics(step)?;
        Ok(step)
    }

    fn checkpoint(&self, stage: &mut dyn Stage, optimizer: &AdamW, step: u64) -> Result<()> {
        let validation = stage.validate()?;
        if !validation.is_empty() {
            self.run.append_metrics(&joined(json!({ "stage": stage.name(), "step": step, "validation": true }), validation))?;
        }
        let model = optimizer.vars().map(|(name, var)| (name.to_string(), var.as_detached_tensor())).collect();
        let mut state = optimizer.state()?;
        state.extend(stage.state()?);
        let tensors = CheckpointTensors { model, optimizer: state };
        self.run.save_checkpoint(stage.name(), step, &self.config_sha256, &tensors, self.training.keep_checkpoints)?;
        Ok(())
    }

    fn exploded(&self, stage: &str, step: u64, loss: f64, norm: f64) -> Error {
        let last = self.run.checkpoint_steps().last().map_or("there is no checkpoint".to_string(), |step| {
            format!("the last good checkpoint is {}", self.run.path(format!("checkpoints/{step:08}")).display())
        });
        Error::Invalid(format!("{stage}: step {}: loss {loss}, gradient norm {norm}; {last}", step + 1))
    }
}

fn joined(line: Value, more: Map<String, Value>) -> Value {
    let Value::Object(mut line) = line else { return line };
    line.extend(more);
    Value::Object(line)
}
