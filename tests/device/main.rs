//! The stages on the first CUDA device against the same on the processor. Built with the feature `cuda` only; says so and passes where there
//! is no device. It has run on the driver that computes on the CPU (`scripts/check-cuda run`), on no GPU.

mod llama;
#[path = "../pipeline/observed.rs"]
mod observed;
#[path = "../pipeline/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{DType, Device, Tensor};
use ctscribe::config::Config;
use ctscribe::device::DeviceName;
use ctscribe::generate::{DecoderKind, Observer, observe_volume};
use ctscribe::train::{Call, ReportStage, Stage, StructureStage, train_report_for};
use ctscribe_ops::transfers::Transfers;

const THERE: DeviceName = DeviceName::Cuda(0);

/// Head widths that the kernels take.
fn config(device: DeviceName) -> Config {
    let sets = ["language.model.head_dim=32", "train_structure.training.steps=1"];
    Config { device, ..tiny::config(&sets) }
}

/// The tests take turns on the device; None and a word on stderr where there is none.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    match THERE.open() {
        Ok(_) => Some(TURN.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(e) => {
            eprintln!("nothing was compared: {e}");
            None
        }
    }
}

/// A run of the processor's whose studies are observed, with a language model, made once.
fn run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| observed::run(&config(DeviceName::Cpu)));
    run
}

/// |a|.
fn norm(a: &Tensor) -> f64 {
    let values: Vec<f64> = a.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// |a - b|.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    norm(&(a.to_device(&Device::Cpu).unwrap() - b.to_device(&Device::Cpu).unwrap()).unwrap())
}

/// f32 sums in other orders, through a model and back.
const TOLERANCE: f64 = 1e-3;

#[test]
fn gradients_of_both_stages_and_decoders_are_the_processors() {
    let Some(_turn) = turn() else { return };
    let configs = [DeviceName::Cpu, THERE].map(config);
    let outcomes = |config: &Config| {
        let (mut stage, optimizer) = StructureStage::start(config, tiny::shared()).unwrap();
        let mut outcomes = vec![stage.gradients(0, &optimizer).unwrap()];
        for kind in [DecoderKind::Llama, DecoderKind::Bert] {
            let (mut stage, optimizer) = ReportStage::start(config, tiny::shared(), run(), kind).unwrap();
            outcomes.push(stage.gradients(0, &optimizer).unwrap());
        }
        outcomes
    };
    let [expected, found] = configs.each_ref().map(outcomes);
    for (stage, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert!((expected.loss - found.loss).abs() < TOLERANCE * expected.loss, "stage {stage}: {} for {}", found.loss, expected.loss);
        assert_eq!(expected.gradients.len(), found.gradients.len());
        let largest = expected.gradients.values().map(norm).fold(0.0, f64::max);
        for (name, expected) in &expected.gradients {
            // those of keys' biases are zero but for rounding
            let (apart, size) = (difference(&found.gradients[name], expected), norm(expected) + 0.01 * largest);
            assert!(apart < TOLERANCE * size, "stage {stage}: the gradient of {name} is {apart} apart of {size}");
        }
    }
}

#[test]
fn a_step_waits_once() {
    let Some(_turn) = turn() else { return };
    let mut config = config(THERE);
    (config.llama.training.batch, config.llama.training.micro_batch) = (8, 2);
    let (mut stage, mut optimizer) = ReportStage::start(&config, tiny::shared(), run(), DecoderKind::Llama).unwrap();
    for step in 0..2 {
        let before = Transfers::so_far();
        let outcome = stage.gradients(step, &optimizer).unwrap();
        optimizer.step_within(outcome.gradients, 1e-3, Some(1.0)).unwrap();
        // three tensors a micro-batch, and the optimiser's table
        assert_eq!(Transfers::so_far().since(before), Transfers { reads: 1, uploads: 3 * 4 + 1 });
    }
}

#[test]
fn an_observation_is_the_processors() {
    let Some(_turn) = turn() else { return };
    let (cache, name) = (tiny::shared(), &tiny::shared().studies[0].name);
    let [expected, found] = [DeviceName::Cpu, THERE].map(|device| {
        let observer = Observer::of_run(&config(device), run()).unwrap();
        observe_volume(&observer, &cache.volume(name).unwrap(), cache.geometry(name).unwrap()).unwrap()
    });
    let agree = |found: &Tensor, expected: &Tensor| difference(found, expected) < TOLERANCE * norm(expected);
    assert!(agree(&found.contrast, &expected.contrast));
    // patches of nearly equal attention may change places: the observations stand first of each structure's eleven tokens
    let own = |tokens: &Tensor| tokens.index_select(&Tensor::arange_step(0u32, 110, 11, &Device::Cpu).unwrap(), 0).unwrap();
    assert!(agree(&own(&found.tokens), &own(&expected.tokens)));
}

#[test]
fn a_run_on_the_device_resumes_to_the_same_bytes() {
    let Some(_turn) = turn() else { return };
    let config = config(THERE);
    let [whole, pieces] = [vec![6], vec![2, 4]].map(|pieces: Vec<u64>| {
        let root = tempfile::tempdir().unwrap();
        let own = tiny::run(root.path(), &config);
        for part in ["language", "observations", "structure"] {
            std::os::unix::fs::symlink(run().join(part), own.join(part)).unwrap();
        }
        for (index, steps) in pieces.iter().enumerate() {
            let call = Call { stop_after: Some(*steps), ..Call::alone(index > 0) };
            train_report_for(&config, tiny::shared(), &own, DecoderKind::Llama, call).unwrap();
        }
        tiny::contents(&own.join("llama/adapter/adapter_model.safetensors"))
    });
    assert!(whole == pieces, "a resumed run ends otherwise");
}
