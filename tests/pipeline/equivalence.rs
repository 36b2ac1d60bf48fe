//! A batch is the same batch however it is cut and whatever is recomputed: gradients of the real stages, against each other and against one graph.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{Tensor, Var};
use ctscribe::config::Config;
use ctscribe::data::Split;
use ctscribe::generate::{DecoderKind, Observer, centre, encode_reports, stack_features, structure_means};
use ctscribe::structure::{Contrast, LossConfig, contrast};
use ctscribe::train::{AdamW, Gradients, Order, ReportStage, Stage, StructureStage};

use crate::recompute::{bits, noise};
use crate::{observed, tiny};

/// How a batch of 8 is cut.
const CUTS: [usize; 3] = [8, 2, 1];

/// Where dropout draws once a micro-batch, cuts are compared without it.
const PLAIN: [&str; 5] = [
    "train_structure.training.batch=8",
    "llama.training.batch=8",
    "llama.lora.dropout=0.0",
    "bert.training.batch=8",
    "bert.model.dropout=0.0",
];

const REFERENCE: [&str; 4] = [
    "structure.queries={kind: reference, structures: 10, patch_width: 32, width: 32, heads: 4, depth: 2, ffn_width: 64, eps: 1.0e-12, dropout: 0.1}",
    "structure.loss={kind: reference, alpha: 0.2, temperature: 0.07, other_structure_weight: 0.1}",
    "structure.head={width: 32, train_text: false, temperature: !fixed 0.07, centre_text: false}",
    "structure.queue={kind: reference, length: 8}",
];

/// `PLAIN`, all three stages cut and recomputed alike, and `more`.
fn config(micro_batch: usize, recompute: bool, more: &[&str]) -> Config {
    let of = |stage: &str| [format!("{stage}.training.micro_batch={micro_batch}"), format!("{stage}.training.recompute={recompute}")];
    let sets: Vec<String> = ["train_structure", "llama", "bert"].into_iter().flat_map(of).collect();
    let sets: Vec<&str> = PLAIN.into_iter().chain(sets.iter().map(String::as_str)).chain(more.iter().copied()).collect();
    tiny::config(&sets)
}

/// A run whose studies are observed, with a language model, made once.
fn run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| observed::run(&tiny::config(&["train_structure.training.steps=1"])));
    run
}

fn structure_gradients(config: &Config) -> (Gradients, f64) {
    let (mut stage, optimizer) = StructureStage::start(config, tiny::shared()).unwrap();
    let outcome = stage.gradients(0, &optimizer).unwrap();
    assert_eq!(outcome.gradients.len(), optimizer.vars().count());
    (outcome.gradients, outcome.loss)
}

/// With adapters that are not zero, as after some steps.
fn report_gradients(config: &Config, kind: DecoderKind) -> (Gradients, f64) {
    let (mut stage, optimizer) = ReportStage::start(config, tiny::shared(), run(), kind).unwrap();
    for (index, (_, var)) in optimizer.vars().filter(|(name, _)| name.contains("lora_B")).enumerate() {
        var.set(&(noise(var.dims(), index as u64) * 0.1).unwrap()).unwrap();
    }
    let outcome = stage.gradients(0, &optimizer).unwrap();
    assert_eq!(outcome.gradients.len(), optimizer.vars().count());
    (outcome.gradients, outcome.loss)
}

/// Fails unless the whole gradients are less apart than `tolerance` times their norm, and the losses as near as 1e-6.
#[track_caller]
fn assert_near(what: &str, (found, loss): &(Gradients, f64), (expected, expected_loss): &(Gradients, f64), tolerance: f64) {
    assert!((loss / expected_loss - 1.0).abs() < 1e-6, "{what}: loss {loss}, expected {expected_loss}");
    assert_eq!(found.len(), expected.len(), "{what}");
    let length = |gradient: &Tensor| f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    let norm = expected.values().map(&length).sum::<f64>().sqrt();
    let apart = found.iter().map(|(name, gradient)| length(&(gradient - &expected[name]).unwrap())).sum::<f64>().sqrt();
    assert!(apart < tolerance * norm, "{what}: {apart:e} apart, norm {norm:e}");
}

#[track_caller]
fn assert_same(what: &str, (found, loss): &(Gradients, f64), (expected, expected_loss): &(Gradients, f64)) {
    assert_eq!(loss.to_bits(), expected_loss.to_bits(), "{what}");
    assert_eq!(found.len(), expected.len(), "{what}");
    found.iter().for_each(|(name, gradient)| assert!(bits(gradient) == bits(&expected[name]), "{what}: {name} differs"));
}

#[test]
fn stage_two_gives_the_same_gradients_however_the_batch_is_cut() {
    for kind in [DecoderKind::Llama, DecoderKind::Bert] {
        let whole = report_gradients(&config(CUTS[0], false, &[]), kind);
        for cut in CUTS {
            let kept = report_gradients(&config(cut, false, &[]), kind);
            assert_near(&format!("{}, micro-batches of {cut}", kind.name()), &kept, &whole, 1e-6);
            assert_same(&format!("{}, recomputed in {cut}", kind.name()), &report_gradients(&config(cut, true, &[]), kind), &kept);
        }
    }
}

#[test]
fn stage_two_recomputed_draws_the_same_dropout() {
    let dropout = ["llama.lora.dropout=0.2", "bert.model.dropout=0.2"];
    for (kind, threads) in [(DecoderKind::Llama, "threads=1"), (DecoderKind::Bert, "threads=3")] {
        let sets: Vec<&str> = dropout.into_iter().chain([threads]).collect();
        let (kept, recomputed) = (report_gradients(&config(2, false, &sets), kind), report_gradients(&config(2, true, &sets), kind));
        assert_same(kind.name(), &recomputed, &kept);
    }
}

/// Stage one's first step as a single graph: no features first, no leaf, no surrogate.
fn single_graph(config: &Config) -> (Gradients, f64) {
    let cache = tiny::shared();
    let studies = cache.split(Split::Train);
    let (mut features, width) = encode_reports(config, &studies, None).unwrap();
    let means = structure_means(&features, width).unwrap();
    centre(&mut features, Some(&means)).unwrap();
    let mut observer = Observer::fresh(config, width).unwrap();
    let optimizer = AdamW::new(observer.trainable(), config.train_structure.training.optimizer.clone());
    let batch = Order::new(studies.len(), config.seed).batch(0, 8);
    let volumes: Vec<Tensor> = batch.iter().map(|&index| cache.volume(&studies[index].name).unwrap()).collect();
    let tokens = observer.observe(&Tensor::stack(&volumes, 0).unwrap(), None).unwrap().tokens;
    let tokens = match observer.standardiser_mut() {
        Some(standardiser) => standardiser.train(&tokens).unwrap(),
        None => tokens,
    };
    let (features, present) = stack_features(&batch.iter().map(|&index| &features[index]).collect::<Vec<_>>(), width).unwrap();
    let LossConfig::Ours(loss) = &config.structure.loss else { panic!("not our loss") };
    let contrasted = Contrast { observations: &tokens, features: &features, present: &present, queue: &[] };
    let loss = contrast(observer.head(), &contrasted, loss).unwrap().loss;
    (optimizer.gradients(&mut loss.backward().unwrap()), f64::from(loss.to_scalar::<f32>().unwrap()))
}

#[test]
fn stage_one_equals_a_single_graph_however_the_batch_is_cut() {
    // standardising over the batch takes the studies' mean off their gradients: the micro-batches' sums cancel, their rounding does not
    for (momentum, tolerance) in [("null", 1e-6), ("0.1", 1e-5)] {
        let momentum = format!("structure.queries.standardise_momentum={momentum}");
        let sets = ["train_structure.intensity_offset=0.0", momentum.as_str()];
        let direct = single_graph(&config(8, false, &sets));
        for cut in CUTS {
            let kept = structure_gradients(&config(cut, false, &sets));
            assert_near(&format!("{momentum}, micro-batches of {cut}"), &kept, &direct, tolerance);
            assert_same(&format!("{momentum}, recomputed in {cut}"), &structure_gradients(&config(cut, true, &sets)), &kept);
        }
    }
}

#[test]
fn stage_one_recomputed_draws_the_same_dropout_and_augmentation() {
    for (more, threads) in [(&REFERENCE[..], "threads=3"), (&[], "threads=1")] {
        let sets: Vec<&str> = more.iter().copied().chain(["train_structure.intensity_offset=0.05", threads]).collect();
        let gradients = |recompute: bool| structure_gradients_of_read(&config(2, recompute, &sets));
        assert_same(threads, &gradients(true), &gradients(false));
    }
}

/// As [`structure_gradients`]; the reference's queries hold tensors that nothing reads.
fn structure_gradients_of_read(config: &Config) -> (Gradients, f64) {
    let (mut stage, optimizer) = StructureStage::start(config, tiny::shared()).unwrap();
    let outcome = stage.gradients(0, &optimizer).unwrap();
    let unread = |name: &str| !outcome.gradients.contains_key(name);
    let missing: Vec<(&str, &Var)> = optimizer.vars().filter(|(name, _)| unread(name)).collect();
    assert!(missing.iter().all(|(name, _)| name.contains("unread")), "no gradient: {missing:?}");
    (outcome.gradients, outcome.loss)
}
