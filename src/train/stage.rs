//! What every stage's loop does: schedule, clipping, step, metrics, validation, checkpoints, selection, resume.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::Tensor;
use ctscribe_ops::transfers;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{Config, TrainingConfig};
use crate::ranks::Communicator;
use crate::{Error, Result};

use super::call::Call;
use super::gauges::{Losses, Meter, group_norms};
use super::optimizer::{AdamW, Gradients};
use super::parameters::{not_finite, sha256};
use super::progress::Progress;
use super::run_folder::{Checkpoint, CheckpointTensors, RunFolder, peak_memory_mib};
use super::selection::Selection;
use super::watch::{Record, Validation};

/// What one step's forward and backward gave.
#[derive(Debug, Default)]
pub struct StepOutcome {
    /// Of the whole batch.
    pub gradients: Gradients,
    /// The loss that is minimised.
    pub loss: f64,
    /// Tokens or studies ([`Stage::unit`]) learned from.
    pub count: usize,
    /// What else is worth a line in `metrics.jsonl`.
    pub metrics: Map<String, Value>,
}

/// A stage: what differs between structure, language and report learning.
pub trait Stage {
    /// Its name in checkpoints and metrics.
    fn name(&self) -> &str;

    /// What its speed is counted in.
    fn unit(&self) -> &str {
        "tokens"
    }

    /// Forward and backward of step `step`; on every rank the whole batch's.
    fn gradients(&mut self, step: u64, optimizer: &AdamW) -> Result<StepOutcome>;

    /// State beside trained tensors and moments that a resumed run needs (queue, running statistics).
    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::new())
    }

    /// Takes up [`Stage::state`].
    fn restore(&mut self, _checkpoint: &mut Checkpoint) -> Result<()> {
        Ok(())
    }

    /// Measured on validation studies, at every checkpoint of the configuration. Changes nothing of what is learned.
    fn validate(&mut self) -> Result<Validation> {
        Ok(Validation::default())
    }
}

/// How a call of [`Loop::run`] ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Steps done in all.
    pub steps: u64,
    /// Whether the stage is at its end, by its last step or by early stopping.
    pub finished: bool,
    /// Why it stopped early, if it did.
    pub stopped_early: Option<String>,
    /// The step whose model is left in memory: where it is finished, the best checkpoint's if `best` is set.
    pub model_of_step: u64,
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
    /// From where, how far, and with whom: the leader alone writes, all ranks take the same steps.
    pub call: Call<'a>,
}

/// What the loop carries from step to step beside the model.
struct Course<'a> {
    step: u64,
    /// The leader's.
    record: Option<Record<'a>>,
    selection: Selection,
    losses: Losses,
    meter: Meter,
    said: String,
}

impl<'a> Loop<'a> {
    /// The loop of `training` in `run`.
    pub fn new(config: &Config, training: &'a TrainingConfig, run: &'a RunFolder, call: Call<'a>) -> Result<Self> {
        let (parts, ranks) = (training.batch.div_ceil(training.micro_batch), call.ranks.size());
        if parts < ranks {
            return Err(Error::Invalid(format!(
                "a batch of {} in micro-batches of {} is {parts} piece(s) of work, too few for {ranks} ranks: \
                 take a smaller micro_batch, a larger batch or fewer ranks",
                training.batch, training.micro_batch
            )));
        }
        Ok(Loop { training, run, config_sha256: config.sha256()?, call })
    }

    /// Trains `stage` to its end; says how it ended.
    pub fn run(&self, stage: &mut dyn Stage, optimizer: &mut AdamW) -> Result<Ended> {
        let mut course = self.start(stage, optimizer)?;
        let steps = self.training.steps;
        let last = self.call.stop_after.map_or(steps, |more| steps.min(course.step + more));
        let progress = self.ranks().leads().then(|| Progress::new(stage.name(), steps));
        while course.step < last && course.selection.stopped().is_none() {
            self.step(stage, optimizer, &mut course)?;
            progress.iter().for_each(|progress| progress.at(course.step, course.said.clone()));
            let due = course.step.is_multiple_of(self.training.checkpoint_every) || course.step == steps;
            if due || course.step == last {
                self.checkpoint(stage, optimizer, &mut course, due)?;
            }
        }
        let ended = self.end(stage, optimizer, &course)?;
        if let Some(progress) = progress {
            progress.finish(match &ended.stopped_early {
                Some(why) => format!("{}; stopped early: {why}", course.said),
                None => course.said,
            });
        }
        Ok(ended)
    }

    fn ranks(&self) -> &'a dyn Communicator {
        self.call.ranks
    }

    fn step(&self, stage: &mut dyn Stage, optimizer: &mut AdamW, course: &mut Course) -> Result<()> {
        let clock = Instant::now();
        let (step, done) = (course.step, course.step + 1);
        let lr = self.training.schedule.at(step, self.training.steps);
        let StepOutcome { gradients, loss, count, metrics } = stage.gradients(step, optimizer)?;
        let logged = done.is_multiple_of(self.training.log_every) || done == self.training.steps;
        let norms = if logged { group_norms(&gradients)? } else { BTreeMap::new() };
        if let Some(what) = course.losses.see(loss, self.training.explode_factor) {
            return Err(self.exploded(stage.name(), done, &what));
        }
        let norm = optimizer.step_within(gradients, lr, self.training.clip_norm)?;
        // a device's norm is waited for with the lines that tell it; in between a norm that is no number shows in the next step's loss
        let norm = if logged { Some(norm.read()?) } else { norm.known() };
        if let Some(norm) = norm.filter(|norm| !norm.is_finite()) {
            return Err(self.exploded(stage.name(), done, &format!("loss {loss}, gradient norm {norm}")));
        }
        course.step = done;
        course.meter.add(clock.elapsed(), count);
        if !logged {
            return Ok(());
        }
        let [seconds, speed] = course.meter.read();
        let mut line = Map::from_iter([
            ("loss".to_string(), json!(loss)),
            ("learning_rate".to_string(), json!(lr)),
            ("gradient_norm".to_string(), json!(norm)),
            ("gradient_norms".to_string(), json!(norms)),
            ("seconds_a_step".to_string(), json!(seconds)),
            (format!("{}_per_second", stage.unit()), json!(speed)),
            ("peak_memory_mib".to_string(), json!(peak_memory_mib())),
        ]);
        line.extend(metrics);
        course.said = format!("loss {loss:.4}");
        course.record.as_mut().map_or(Ok(()), |record| record.training(done, line))
    }

    /// Where to begin: at step 0, or at the newest checkpoint.
    fn start(&self, stage: &mut dyn Stage, optimizer: &mut AdamW) -> Result<Course<'a>> {
        let (mut step, mut losses, mut selection) = (0, Losses::default(), Selection::new(self.training));
        if let Some(mut checkpoint) = self.run.latest_checkpoint()? {
            if !self.call.resume {
                return Err(Error::file(self.run.root(), "holds checkpoints already: resume it (--resume) or give another folder"));
            }
            step = checkpoint.state.step;
            self.take(stage, optimizer, &mut checkpoint)?;
            optimizer.restore(&checkpoint.path.display().to_string(), &checkpoint.optimizer, step)?;
            losses.restore(&mut checkpoint.optimizer)?;
        }
        let beginning = format!("step {step} of {} under configuration {}", stage.name(), self.config_sha256);
        self.ranks().agree("where training begins (do all see the same run folder?)", &beginning)?;
        let open = || self.ranks().leads().then(|| Record::open(self.run, stage.name(), step)).transpose();
        let record = self.ranks().leader_first(open)?;
        if step == 0 && selection.asks() {
            // a measure that these validation studies cannot give is refused before the first step
            selection.clone().see(0, &stage.validate()?.measures)?;
        }
        for line in self.run.metrics()?.iter().filter_map(Value::as_object).filter(|line| line.contains_key("validation")) {
            selection.see(line.get("step").and_then(Value::as_u64).unwrap_or(0), line)?;
        }
        self.write_best(&selection)?;
        Ok(Course { step, record, selection, losses, meter: Meter::default(), said: String::new() })
    }

    /// Takes a checkpoint's model and the stage's own state.
    fn take(&self, stage: &mut dyn Stage, optimizer: &AdamW, checkpoint: &mut Checkpoint) -> Result<()> {
        let source = checkpoint.path.display().to_string();
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
            var.set(&transfers::to_device(tensor, var.device())?)?;
        }
        stage.restore(checkpoint)
    }

    /// Writes a checkpoint. `due`: one of the configuration's, validated and selected on; else an interrupted call's.
    fn checkpoint(&self, stage: &mut dyn Stage, optimizer: &AdamW, course: &mut Course, due: bool) -> Result<()> {
        let step = course.step;
        let model = on_host(optimizer.vars().map(|(name, var)| (name.to_string(), var.as_detached_tensor())))?;
        if let Some(name) = not_finite(&model)? {
            return Err(self.exploded(stage.name(), step, &format!("{name} is not finite")));
        }
        if due {
            let found = stage.validate()?;
            course.selection.see(step, &found.measures)?;
            if let Some(record) = &mut course.record {
                record.validation(step, &found)?;
                record.draw()?;
            }
        }
        let state = on_host(stage.state()?)?;
        if self.ranks().size() > 1 {
            let own = sha256(model.iter().chain(&state))?;
            self.ranks().agree(&format!("what they have learned by step {step}"), &own)?;
        }
        self.ranks().leader_only(|| self.save(stage.name(), optimizer, course, CheckpointTensors { model, optimizer: state }))
    }

    fn save(&self, stage: &str, optimizer: &AdamW, course: &Course, mut tensors: CheckpointTensors) -> Result<()> {
        tensors.optimizer.extend(optimizer.state()?);
        tensors.optimizer.extend(course.losses.state()?);
        self.run.save_checkpoint(stage, course.step, &self.config_sha256, &tensors)?;
        self.write_best(&course.selection)?;
        self.run.prune(self.training.keep_checkpoints, &course.selection.kept())
    }

    fn write_best(&self, selection: &Selection) -> Result<()> {
        let Some(best) = selection.best().filter(|_| self.ranks().leads()) else { return Ok(()) };
        let text = serde_json::to_string_pretty(&best).map_err(|e| Error::file(self.run.path("best.json"), e.to_string()))?;
        self.run.write_text("best.json", &text)
    }

    /// The stage's end: the best model is taken, where one is asked for, and `finished.json` says which it is.
    fn end(&self, stage: &mut dyn Stage, optimizer: &AdamW, course: &Course) -> Result<Ended> {
        let stopped_early = course.selection.stopped().filter(|_| course.step < self.training.steps);
        let finished = stopped_early.is_some() || course.step == self.training.steps;
        let mut ended = Ended { steps: course.step, finished, stopped_early, model_of_step: course.step };
        if !finished {
            return Ok(ended);
        }
        if let Some(best) = course.selection.kept().first().filter(|best| **best != course.step) {
            self.take(stage, optimizer, &mut self.run.checkpoint(*best)?)?;
            ended.model_of_step = *best;
        }
        let text = serde_json::to_string_pretty(&ended).map_err(|e| Error::file(self.run.path("finished.json"), e.to_string()))?;
        self.ranks().leader_only(|| self.run.write_text("finished.json", &text))?;
        Ok(ended)
    }

    fn exploded(&self, stage: &str, step: u64, what: &str) -> Error {
        let last = self.run.checkpoint_steps().last().map_or("there is no checkpoint".to_string(), |step| {
            format!("the last good checkpoint is {}", self.run.path(format!("checkpoints/{step:08}")).display())
        });
        Error::Invalid(format!("{stage}: step {step}: {what}; {last}"))
    }
}

/// Named tensors in the host's memory.
fn on_host(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<BTreeMap<String, Tensor>> {
    tensors.into_iter().map(|(name, tensor)| Ok((name, transfers::to_host(&tensor)?))).collect()
}
