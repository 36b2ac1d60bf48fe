//! A run that is watched: bad losses stop it, early stopping ends it, the best checkpoints stay, validation patients are nobody's teachers.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use ctscribe::config::{BestConfig, Config, Direction, EarlyStopConfig, TrainingConfig};
use ctscribe::data::{Cache, Split};
use ctscribe::generate::{DecoderKind, observe};
use ctscribe::train::{
    AdamW, BestCheckpoints, Call, Ended, Gradients, Loop, RunFolder, Stage, StepOutcome, Validation, read_scalars, train_language,
    train_report, train_structure,
};
use ctscribe::{Error, Result};
use serde_json::{Map, Value, json};

use crate::tiny;

/// A stage whose losses and validation measures are planted.
struct Planted {
    loss: fn(u64) -> f64,
    measures: Vec<f64>,
    validated: usize,
    learning: bool,
}

impl Stage for Planted {
    fn name(&self) -> &str {
        "planted"
    }

    fn gradients(&mut self, step: u64, _optimizer: &AdamW) -> Result<StepOutcome> {
        self.learning = true;
        let gradient = Tensor::new(&[1.0f32], &Device::Cpu)?;
        let gradients = Gradients::from([("w".to_string(), gradient)]);
        Ok(StepOutcome { gradients, loss: (self.loss)(step + 1), count: 1, metrics: Map::new() })
    }

    fn validate(&mut self) -> Result<Validation> {
        // asked before the first step, only the names count
        let value = if self.learning { self.measures[self.validated] } else { 0.0 };
        self.validated += usize::from(self.learning);
        Ok(Validation { measures: Map::from_iter([("validation_loss".to_string(), json!(value))]), samples: vec![] })
    }
}

/// Twelve steps, a checkpoint every second one, all kept.
fn training() -> TrainingConfig {
    let config = tiny::config(&[]);
    TrainingConfig { steps: 12, checkpoint_every: 2, keep_checkpoints: 9, log_every: 1, clip_norm: None, ..config.llama.training }
}

/// Runs a planted stage in `root`; `measures` are those of the checkpoints still to come.
fn run(root: &Path, training: &TrainingConfig, loss: fn(u64) -> f64, measures: &[f64], stop_after: Option<u64>) -> Result<Ended> {
    let folder = RunFolder::create(root)?;
    let var = Var::from_tensor(&Tensor::new(&[0.0f32], &Device::Cpu)?)?;
    let mut optimizer = AdamW::new(vec![("w".to_string(), var)], training.optimizer.clone());
    let mut stage = Planted { loss, measures: measures.to_vec(), validated: 0, learning: false };
    let config_sha256 = "planted".to_string();
    let call = Call { stop_after, ..Call::alone(true) };
    Loop { training, run: &folder, config_sha256, call }.run(&mut stage, &mut optimizer)
}

fn checkpoints(root: &Path) -> Vec<u64> {
    RunFolder::create(root).unwrap().checkpoint_steps()
}

fn best(root: &Path) -> Vec<(u64, f64)> {
    let best: BestCheckpoints = serde_json::from_str(&std::fs::read_to_string(root.join("best.json")).unwrap()).unwrap();
    best.checkpoints.iter().map(|scored| (scored.step, scored.value)).collect()
}

fn smallest(keep: usize) -> Option<BestConfig> {
    Some(BestConfig { metric: "validation_loss".to_string(), direction: Direction::Min, keep })
}

fn patience(patience: usize, min_delta: f64) -> Option<EarlyStopConfig> {
    Some(EarlyStopConfig { metric: "validation_loss".to_string(), direction: Direction::Min, patience, min_delta })
}

const FALLING: [f64; 6] = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0];

#[test]
fn a_loss_that_is_no_number_stops_the_run_with_the_last_good_checkpoint_named() {
    let root = tempfile::tempdir().unwrap();
    let error = run(root.path(), &training(), |step| if step == 8 { f64::NAN } else { 1.0 }, &FALLING, None).unwrap_err().to_string();
    let named = root.path().join("checkpoints/00000006").display().to_string();
    assert!(error.contains("planted: step 8: loss NaN") && error.ends_with(&format!("the last good checkpoint is {named}")), "{error}");
    assert_eq!(checkpoints(root.path()), [2, 4, 6]);
    assert!(!root.path().join("finished.json").exists());
}

#[test]
fn a_loss_far_above_its_median_stops_the_run_with_the_last_good_checkpoint_named() {
    let (root, training) = (tempfile::tempdir().unwrap(), TrainingConfig { explode_factor: Some(10.0), ..training() });
    let error = run(root.path(), &training, |step| if step == 10 { 10.5 } else { 1.0 }, &FALLING, None).unwrap_err().to_string();
    assert!(error.contains("planted: step 10: loss 10.5 is more than 10 times its running median 1"), "{error}");
    assert!(error.ends_with("checkpoints/00000008"), "{error}");
    assert_eq!(checkpoints(root.path()), [2, 4, 6, 8]);
}

#[test]
fn a_resumed_run_judges_a_loss_by_the_losses_before_the_interruption() {
    let (root, training) = (tempfile::tempdir().unwrap(), TrainingConfig { explode_factor: Some(10.0), ..training() });
    let loss: fn(u64) -> f64 = |step| if step == 10 { 10.5 } else { 1.0 };
    run(root.path(), &training, loss, &FALLING, Some(9)).unwrap();
    assert!(run(root.path(), &training, loss, &FALLING, None).unwrap_err().to_string().contains("running median"));
}

#[test]
fn early_stopping_ends_after_its_patience_and_says_so() {
    let (root, training) = (tempfile::tempdir().unwrap(), TrainingConfig { early_stop: patience(2, 0.1), ..training() });
    // 0.95 is better by too little, 2.0 is worse: the second checkpoint in a row after step 4
    let ended = run(root.path(), &training, |_| 1.0, &[3.0, 1.0, 0.95, 2.0, 0.0, 0.0], None).unwrap();
    let why = "validation_loss 1 of step 4 was not bettered by more than 0.1 in 2 checkpoints";
    assert_eq!(ended, Ended { steps: 8, finished: true, stopped_early: Some(why.to_string()), model_of_step: 8 });
    assert_eq!(checkpoints(root.path()), [2, 4, 6, 8]);
    let written: Ended = serde_json::from_str(&std::fs::read_to_string(root.path().join("finished.json")).unwrap()).unwrap();
    assert_eq!(written, ended);
    // asked to go on, it stays ended
    assert_eq!(run(root.path(), &training, |_| 1.0, &[], None).unwrap(), ended);
}

#[test]
fn early_stopping_counts_alike_across_interruptions_between_checkpoints() {
    let (root, training) = (tempfile::tempdir().unwrap(), TrainingConfig { early_stop: patience(2, 0.1), ..training() });
    for (piece, measures) in [(3, &[3.0][..]), (4, &[1.0, 0.95]), (9, &[2.0, 0.0, 0.0])] {
        run(root.path(), &training, |_| 1.0, measures, Some(piece)).unwrap();
    }
    assert_eq!(*checkpoints(root.path()).last().unwrap(), 8);
}

#[test]
fn the_best_checkpoints_stay_beside_the_newest_and_the_model_is_the_best_ones() {
    let root = tempfile::tempdir().unwrap();
    let training = TrainingConfig { keep_checkpoints: 1, best: smallest(2), ..training() };
    let ended = run(root.path(), &training, |_| 1.0, &[3.0, 1.0, 2.0, 1.0, f64::NAN, 5.0], None).unwrap();
    // of two equal ones the earlier is the better
    assert_eq!(best(root.path()), [(4, 1.0), (8, 1.0)]);
    assert_eq!(checkpoints(root.path()), [4, 8, 12]);
    assert_eq!(ended, Ended { steps: 12, finished: true, stopped_early: None, model_of_step: 4 });
}

#[test]
fn a_resumed_run_keeps_the_same_best_checkpoints() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let training = TrainingConfig { keep_checkpoints: 1, best: smallest(2), ..training() };
    let measures = [3.0, 1.5, 2.0, 1.25, 4.0, 5.0];
    run(whole.path(), &training, |_| 1.0, &measures, None).unwrap();
    for (piece, measures) in [(5, &measures[..2]), (2, &measures[2..3]), (9, &measures[3..])] {
        run(broken.path(), &training, |_| 1.0, measures, Some(piece)).unwrap();
    }
    assert_eq!(best(whole.path()), [(8, 1.25), (4, 1.5)]);
    for root in [&whole, &broken] {
        assert_eq!(checkpoints(root.path()), [4, 8, 12]);
    }
    for file in ["best.json", "finished.json", "checkpoints/00000008/optimizer.safetensors"] {
        assert!(std::fs::read(whole.path().join(file)).unwrap() == std::fs::read(broken.path().join(file)).unwrap(), "{file} differs");
    }
}

#[test]
fn a_measure_that_a_stage_does_not_take_is_refused_with_the_list_of_those_it_takes() {
    let set = |key: &str, value: &str| Config::load("phantom", &[format!("{key}={value}")]).unwrap_err().to_string();
    let fault = set("train_structure.training.best", "{metric: bleu, direction: max, keep: 1}");
    assert!(
        fault.contains("train_structure.training.best.metric: bleu is not measured here; measured: validation_loss, retrieval_recall_at_1")
    );
    let fault = set("llama.training.early_stop", "{metric: labels.recall.rare, direction: max, patience: 0, min_delta: 0.0}");
    assert!(fault.contains("labels.recall.rare is not measured here; measured: validation_loss\n"), "{fault}");
    assert!(fault.contains("llama.training.early_stop.patience: must be at least 1"), "{fault}");
    let sets = ["bert.training.watch={samples: 0, studies: 4}", "bert.training.best={metric: labels.recall.rare, direction: max, keep: 1}"];
    assert!(Config::load("phantom", &sets.map(String::from)).is_ok());
}

#[test]
fn a_measure_that_the_validation_studies_cannot_give_is_refused_before_the_first_step() {
    let (config, root) = (
        tiny::config(&["train_structure.training.best={metric: retrieval_recall_at_100, direction: max, keep: 1}"]),
        tempfile::tempdir().unwrap(),
    );
    let error = train_structure(&config, tiny::shared(), root.path(), false).unwrap_err().to_string();
    assert!(
        error.starts_with("step 0: retrieval_recall_at_100, by which checkpoints are selected, was not measured; measured: "),
        "{error}"
    );
    assert!(!root.path().join("structure/metrics.jsonl").exists());
}

#[test]
fn validation_and_test_patients_are_never_training_patients() {
    let (config, cache, root) = (tiny::config(&[]), tiny::shared(), tempfile::tempdir().unwrap());
    let patients = |split: Split| cache.split(split).iter().map(|study| study.patient.clone()).collect::<HashSet<_>>();
    assert!(patients(Split::Train).is_disjoint(&patients(Split::Validation)) && !patients(Split::Validation).is_empty());
    assert!(patients(Split::Train).is_disjoint(&patients(Split::Test)));
    let mut mixed: Cache = cache.clone();
    let learned = mixed.split(Split::Train)[0].patient.clone();
    mixed.studies.iter_mut().find(|study| study.split == Split::Validation).unwrap().patient = learned.clone();
    let refused = |error: Error| assert!(error.to_string().contains(&format!("patient {learned} is in the training split")), "{error}");
    refused(train_language(&config, &mixed, root.path(), false).unwrap_err());
    refused(train_structure(&config, &mixed, root.path(), false).unwrap_err());
    refused(train_report(&config, &mixed, root.path(), DecoderKind::Bert, false).unwrap_err());
}

/// Lines of a stage's metrics: those of training, those of validation.
fn lines(folder: &Path) -> [Vec<Value>; 2] {
    let (watched, trained) =
        RunFolder::create(folder).unwrap().metrics().unwrap().into_iter().partition(|line| line.get("validation").is_some());
    [trained, watched]
}

#[test]
fn every_stage_tells_what_it_is_watched_by() {
    let sets = [
        "train_structure.training.checkpoint_every=3",
        "llama.training.watch={samples: 2, studies: 4}",
        "llama.training.checkpoint_every=3",
    ];
    let (config, cache, root) = (tiny::config(&sets), tiny::shared(), tempfile::tempdir().unwrap());
    let run = tiny::run(root.path(), &config);
    train_language(&config, cache, &run, false).unwrap();
    train_structure(&config, cache, &run, false).unwrap();
    observe(&config, cache, &run, |_| {}).unwrap();
    train_report(&config, cache, &run, DecoderKind::Llama, false).unwrap();
    check_structure(&run.join("structure"));
    check_llama(&run.join("llama"), cache);
    for stage in ["structure", "language", "llama"] {
        check_files(&run.join(stage));
    }
}

#[test]
fn the_references_stage_one_is_watched_alike_but_its_queue_knows_no_age() {
    let sets = [
        "train_structure.training.steps=2",
        "structure.queries={kind: reference, structures: 10, patch_width: 32, width: 32, heads: 4, depth: 1, ffn_width: 64, eps: 1.0e-12, dropout: 0.0}",
        "structure.loss={kind: reference, alpha: 0.2, temperature: 0.07, other_structure_weight: 0.1}",
        "structure.head={width: 32, train_text: false, temperature: !fixed 0.07, centre_text: false}",
        "structure.queue={kind: reference, length: 8}",
    ];
    let (config, root) = (tiny::config(&sets), tempfile::tempdir().unwrap());
    train_structure(&config, tiny::shared(), root.path(), false).unwrap();
    let [_, watched] = lines(&root.path().join("structure"));
    for key in ["validation_loss", "queue_similarity", "target_entropy", "retrieval_recall_at_1"] {
        assert!(number(&watched[0], key).is_finite());
    }
    assert!(watched[0].get("queue_age").is_none());
}

fn number(line: &Value, key: &str) -> f64 {
    line.get(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("{key} is no number in {line}"))
}

fn groups(line: &Value) -> Vec<&str> {
    line["gradient_norms"].as_object().unwrap().keys().map(String::as_str).collect()
}

fn check_structure(folder: &Path) {
    let [trained, watched] = lines(folder);
    assert_eq!((trained.len(), watched.len()), (6, 2));
    assert_eq!(groups(&trained[0]), ["head", "queries", "vision"]);
    let norms: Vec<f64> = trained[0]["gradient_norms"].as_object().unwrap().values().map(|norm| norm.as_f64().unwrap()).collect();
    let all = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
    assert!((all - number(&trained[0], "gradient_norm")).abs() < 1e-9 * all);
    assert!(number(&trained[0], "studies_per_second") > 0.0 && number(&trained[0], "peak_memory_mib") > 0.0);
    for key in ["validation_loss", "retrieval_recall_at_1", "queue_similarity", "queue_age", "target_entropy"] {
        assert!(number(&watched[1], key).is_finite());
    }
    for key in ["queue_similarity_by_structure", "queue_age_by_structure", "target_entropy_by_structure"] {
        assert_eq!(watched[1][key].as_object().unwrap().len(), 10);
    }
    // six steps: no entry is older
    assert!(number(&watched[1], "queue_age") <= 6.0);
}

fn check_llama(folder: &Path, cache: &Cache) {
    let [trained, watched] = lines(folder);
    assert_eq!(groups(&trained[0]), ["lora_a", "lora_b", "projector"]);
    assert_eq!(trained[0]["gradient_norms"]["lora_a"], 0.0);
    assert!(number(&trained[1], "tokens_per_second") > 0.0);
    assert!(number(&watched[0], "collapse.unique_share") > 0.0 && watched[0].get("labels.recall.rare").is_some());
    for step in [3, 6] {
        let text = std::fs::read_to_string(folder.join(format!("samples/{step:08}.jsonl"))).unwrap();
        let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = &cache.split(Split::Validation)[..2];
        assert_eq!(samples.len(), 2);
        for (sample, study) in samples.iter().zip(expected) {
            assert_eq!((sample["study"].as_str(), sample["reference"].as_str()), (Some(study.name.as_str()), Some(study.report.as_str())));
        }
    }
}

/// Events say what the lines say, and there is a picture.
fn check_files(folder: &Path) {
    let [trained, watched] = lines(folder);
    let scalars: BTreeMap<(String, u64), f32> =
        read_scalars(folder).unwrap().into_iter().map(|scalar| ((scalar.tag, scalar.step), scalar.value)).collect();
    for (lines, tag, key) in [(trained, "train/loss", "loss"), (watched, "validation/loss", "validation_loss")] {
        assert!(!lines.is_empty());
        for line in lines {
            let step = line["step"].as_u64().unwrap();
            assert_eq!(scalars[&(tag.to_string(), step)], number(&line, key) as f32);
        }
    }
    assert!(std::fs::read_to_string(folder.join("curves.svg")).unwrap().starts_with("<svg"));
}
