//! Which checkpoints are the best, and when no better one is to be expected. Decided on validation studies alone.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{BestConfig, EarlyStopConfig, TrainingConfig};
use crate::{Error, Result};

/// A checkpoint's value of a measure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    /// The checkpoint's step.
    pub step: u64,
    /// The value; null where it was not a number.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
}

fn number_or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What `best.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestCheckpoints {
    /// Which measure, which direction, how many.
    pub rule: BestConfig,
    /// The kept checkpoints, the best first; of equal ones the earlier.
    pub checkpoints: Vec<Scored>,
}

/// Sees every checkpoint's measures in turn. A function of the series alone: a resumed run shows it the lines of `metrics.jsonl` again.
#[derive(Debug, Clone)]
pub struct Selection {
    best: Option<BestConfig>,
    early: Option<EarlyStopConfig>,
    kept: Vec<Scored>,
    /// The early stop's best so far.
    improved: Option<Scored>,
    /// Checkpoints since then.
    waited: usize,
}

impl Selection {
    /// By the keys of a stage.
    pub fn new(training: &TrainingConfig) -> Self {
        let (best, early) = (training.best.clone(), training.early_stop.clone());
        Selection { best, early, kept: Vec::new(), improved: None, waited: 0 }
    }

    /// Whether anything is selected or stopped by.
    pub fn asks(&self) -> bool {
        self.best.is_some() || self.early.is_some()
    }

    /// Takes in what was measured at `step`.
    pub fn see(&mut self, step: u64, measures: &Map<String, Value>) -> Result<()> {
        if let Some(best) = &self.best {
            let scored = scored(step, &best.metric, measures)?;
            // behind its equals: the earlier one stays the better one
            let at = self.kept.iter().take_while(|other| !best.direction.better(scored.value, other.value, 0.0)).count();
            self.kept.insert(at, scored);
            self.kept.truncate(best.keep);
        }
        if let Some(early) = &self.early {
            let scored = scored(step, &early.metric, measures)?;
            if self.improved.is_none_or(|so_far| early.direction.better(scored.value, so_far.value, early.min_delta)) {
                (self.improved, self.waited) = (Some(scored), 0);
            } else {
                self.waited += 1;
            }
        }
        Ok(())
    }

    /// Why the stage ends here, if it does.
    pub fn stopped(&self) -> Option<String> {
        let (early, so_far) = (self.early.as_ref()?, self.improved?);
        let (metric, delta, waited) = (&early.metric, early.min_delta, self.waited);
        let why =
            format!("{metric} {} of step {} was not bettered by more than {delta} in {waited} checkpoints", so_far.value, so_far.step);
        (waited >= early.patience).then_some(why)
    }

    /// The best checkpoints, where they are asked for.
    pub fn best(&self) -> Option<BestCheckpoints> {
        self.best.clone().map(|rule| BestCheckpoints { rule, checkpoints: self.kept.clone() })
    }

    /// Steps whose checkpoints must stay.
    pub fn kept(&self) -> Vec<u64> {
        self.kept.iter().map(|scored| scored.step).collect()
    }
}

fn scored(step: u64, metric: &str, measures: &Map<String, Value>) -> Result<Scored> {
    let Some(value) = measures.get(metric) else {
        let found = measures.iter().filter(|(_, value)| value.is_number()).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "nothing: there is no validation study" } else { &found };
        return Err(Error::Invalid(format!(
            "step {step}: {metric}, by which checkpoints are selected, was not measured; measured: {found}"
        )));
    };
    // a number that is none is written as null
    Ok(Scored { step, value: value.as_f64().unwrap_or(f64::NAN) })
}
