//! How often a step waits for its device: what it reads back is counted on the processor, where the same calls are made.
//!
//! The counts are of the whole process, so that these tests take turns.

#[path = "../pipeline/observed.rs"]
mod observed;
#[path = "../pipeline/tiny.rs"]
#[expect(dead_code, reason = "the pipeline's tests use all of it")]
mod tiny;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::Tensor;
use ctscribe::config::Config;
use ctscribe::data::CachedStudy;
use ctscribe::decoder::GenerationConfig;
use ctscribe::generate::{DecoderKind, Observer, observe_volume, open_decoder, read_tokens};
use ctscribe::train::{AdamW, ReportStage, Stage, StructureStage, train_report};
use ctscribe_ops::transfers::Transfers;

const STUDIES: usize = 8;

fn config() -> Config {
    tiny::config(&["train_structure.training.steps=1", "llama.training.steps=1", "bert.training.steps=1", "llama.lora.dropout=0.0"])
}

/// A run with every stage at its end, made once.
fn run() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let config = config();
        let (root, run) = observed::run(&config);
        for kind in [DecoderKind::Llama, DecoderKind::Bert] {
            train_report(&config, tiny::shared(), &run, kind, false).unwrap();
        }
        (root, run)
    });
    run
}

fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run();
    turn
}

fn counted<T>(work: impl FnOnce() -> T) -> (T, Transfers) {
    let before = Transfers::so_far();
    let result = work();
    (result, Transfers::so_far().since(before))
}

/// What a whole step of training takes, the second one: some tables are made with the first.
fn step(stage: &mut dyn Stage, optimizer: &mut AdamW) -> Transfers {
    let mut take = |number: u64| {
        counted(|| {
            let outcome = stage.gradients(number, optimizer).unwrap();
            optimizer.step_within(outcome.gradients, 1e-3, Some(1.0)).unwrap();
        })
        .1
    };
    take(0);
    take(1)
}

#[test]
fn a_step_of_stage_two_reads_its_losses_once_and_sends_three_tensors_a_micro_batch() {
    let _turn = alone();
    for kind in [DecoderKind::Llama, DecoderKind::Bert] {
        for recompute in [false, true] {
            let mut config = config();
            for training in [&mut config.llama.training, &mut config.bert.training] {
                (training.batch, training.micro_batch, training.recompute) = (8, 2, recompute);
            }
            config.bert.model.dropout = 0.0;
            let (mut stage, mut optimizer) = ReportStage::start(&config, tiny::shared(), run(), kind).unwrap();
            // visual tokens, words, labels
            assert_eq!(step(&mut stage, &mut optimizer), Transfers { reads: 1, uploads: 3 * 4 }, "{kind:?} {recompute}");
        }
    }
}

#[test]
fn a_step_of_stage_one_reads_its_numbers_once() {
    let _turn = alone();
    for recompute in [false, true] {
        let mut config = config();
        let training = &mut config.train_structure.training;
        (training.batch, training.micro_batch, training.recompute) = (STUDIES, 4, recompute);
        let (mut stage, mut optimizer) = StructureStage::start(&config, tiny::shared()).unwrap();
        // volumes and two tables of places a pass over a micro-batch; texts, queue and the contrast's indices
        let passes = if recompute { 4 } else { 2 };
        assert_eq!(step(&mut stage, &mut optimizer), Transfers { reads: 1, uploads: 3 * passes + 3 }, "{recompute}");
    }
}

/// Visual tokens (n, V, h) of the first test studies.
fn tokens(count: usize) -> Tensor {
    let studies: Vec<&CachedStudy> = tiny::shared().studies.iter().take(count).collect();
    Tensor::stack(&studies.iter().map(|study| read_tokens(run(), &study.name).unwrap()).collect::<Vec<_>>(), 0).unwrap()
}

#[test]
fn a_pass_of_greedy_llama_reads_its_logits_once() {
    let _turn = alone();
    let config = config();
    let decoder = open_decoder(&config, run(), DecoderKind::Llama, None).unwrap();
    for (texts, drafts) in [(1, 0), (3, 0), (3, 7)] {
        let generation = GenerationConfig { max_new_tokens: 12, min_new_tokens: 12, drafts, batch: 8, ..config.llama.generation.clone() };
        let ((ids, effort), counted) = counted(|| decoder.write(&tokens(texts), &generation, &mut |_, _| {}).unwrap());
        let passes = effort.unwrap().passes as u64;
        assert_eq!(ids.len(), texts);
        // visual tokens and the prompt's words; then words and places of every pass that is not over a prompt
        let expected = Transfers { reads: passes, uploads: 2 + 2 * (passes - texts as u64) };
        assert_eq!(counted, expected, "{texts} texts, {drafts} drafts");
    }
}

#[test]
fn a_token_of_bert_reads_its_logits_once() {
    let _turn = alone();
    let config = config();
    let decoder = open_decoder(&config, run(), DecoderKind::Bert, None).unwrap();
    let generation = GenerationConfig { max_new_tokens: 9, min_new_tokens: 9, ..config.bert.generation.clone() };
    let (_, counted) = counted(|| decoder.write(&tokens(2), &generation, &mut |_, _| {}).unwrap());
    // visual tokens, then the words of each pass
    assert_eq!(counted, Transfers { reads: 9, uploads: 1 + 9 });
}

#[test]
fn an_observation_reads_attention_tokens_and_contrast() {
    let _turn = alone();
    let (config, cache) = (config(), tiny::shared());
    let observer = Observer::of_run(&config, run()).unwrap();
    let name = &cache.studies[0].name;
    let look = || observe_volume(&observer, &cache.volume(name).unwrap(), cache.geometry(name).unwrap()).unwrap();
    // the position bias of a frozen encoder is made with the first
    look();
    // the volume, the selected patches
    assert_eq!(counted(look).1, Transfers { reads: 3, uploads: 2 });
}

/// Where a tensor's values may be taken without being counted: from files, in tests, and in the functions that count.
const ELSEWHERE: [&str; 4] =
    ["ops/src/transfers.rs", "src/decoder/drafts/index.rs", "src/decoder/llama/away.rs", "src/train/run_folder.rs"];

/// The source files below `folder`, without the modules of tests that lie in files of their own.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).filter(|path| !path.ends_with("tests.rs")).collect()
}

#[test]
fn nothing_that_a_step_runs_reads_or_moves_a_tensor_past_the_counters() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["ops/src", "src/decoder", "src/structure", "src/vision", "src/text/bert", "src/train"];
    let files = folders
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .chain([root.join("lora/src/layer.rs"), root.join("lora/src/dora.rs")]);
    let mut faults = Vec::new();
    for path in files.filter(|path| !ELSEWHERE.iter().any(|own| path.ends_with(own))) {
        let source = std::fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let calls = [".to_vec0", ".to_vec1", ".to_vec2", ".to_vec3", ".to_scalar", ".to_device(", "Tensor::to_"];
            if calls.iter().any(|call| line.contains(call)) {
                faults.push(format!("{}:{}: {}", path.strip_prefix(root).unwrap().display(), number + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "not through ops::transfers:\n{}", faults.join("\n"));
}
