//! The stages of a run, each with what it needs.

use crate::config::{Config, TrainingConfig};
use crate::decoder::{GenerationConfig, Strategy};
use crate::text::EncoderConfig;
use crate::weights::BasePrecision;

use super::models::{Base, Model, Pass, adapters, bert, ct_vit, llama};
use super::{Machine, Stage, Studies};

/// Bytes that AdamW needs of a learning value in f32: itself, its gradient, two moments.
const LEARNED: f64 = 16.0;
/// The same on a device, where the sum over micro-batches is another f64 (docs/cuda.md).
const LEARNED_THERE: f64 = 24.0;
/// The share of a bare product's rate that a whole step reaches on a CPU: norms, attention, activations and small products are slower.
const STEP_SHARE: f64 = 0.7;
/// What a program with its threads and buffers holds, without any model.
const PROGRAM: f64 = 120e6;
/// What a CUDA context and its libraries hold.
const CONTEXT: f64 = 1.2e9;
/// Bytes that preparation holds of a voxel of the scan.
const SCAN: f64 = 4.5;
/// Scans prepared at once, at most.
const WORKERS: usize = 4;
/// Tokens of the prompt around the visual ones.
const PROMPT: usize = 16;
/// The text encoder: BERT-base's parameters without its words, and tokens of the sentences of a structure.
const TEXT_ENCODER: (f64, f64) = (86e6, 40.0);

/// Work of a stage, to be put on a machine.
struct Work {
    name: &'static str,
    disk: f64,
    memory: f64,
    operations: f64,
    reads: f64,
    voxels: f64,
    device: f64,
    bf16: bool,
}

impl Work {
    fn on(self, machine: &Machine) -> Stage {
        let rate = if self.bf16 { machine.bf16_per_s } else { machine.f32_per_s };
        let seconds = self.operations / (rate * STEP_SHARE) + self.reads / machine.read_per_s + self.voxels / machine.voxels_per_s;
        Stage {
            name: self.name.to_string(),
            disk_bytes: self.disk as u64,
            memory_bytes: (self.memory + PROGRAM) as u64,
            operations: self.operations,
            reads: self.reads,
            bf16: self.bf16,
            hours: seconds / 3600.0,
            device_bytes: if self.device > 0.0 { (self.device + CONTEXT) as u64 } else { 0 },
        }
    }
}

/// All stages in their order.
pub(super) fn stages(config: &Config, base: &Base, studies: Studies, machine: &Machine) -> Vec<Stage> {
    let works = [
        prepare(config, studies),
        structure(config, studies),
        observe(config, studies),
        report_llama(config, base, studies),
        report_bert(config, base, studies),
        write_llama(config, base, studies),
    ];
    works.into_iter().map(|work| work.on(machine)).collect()
}

fn prepare(config: &Config, studies: Studies) -> Work {
    let voxels: usize = config.volume.shape().iter().product();
    Work {
        name: "prepare",
        disk: (2 * voxels * studies.all) as f64,
        memory: SCAN * studies.voxels * config.threads.min(WORKERS) as f64,
        operations: 0.0,
        reads: 0.0,
        voxels: studies.voxels * studies.all as f64,
        device: 0.0,
        bf16: false,
    }
}

/// Bytes of checkpoints, the newest and the best ones.
fn checkpoints(training: &TrainingConfig, learned: f64) -> f64 {
    let kept = training.keep_checkpoints + training.best.as_ref().map_or(0, |best| best.keep);
    0.75 * LEARNED * learned * (kept + 1) as f64
}

fn pass(training: &TrainingConfig) -> Pass {
    if training.recompute { Pass::Recompute } else { Pass::Train }
}

fn structure(config: &Config, studies: Studies) -> Work {
    let (model, training) = (encoder(config), &config.train_structure.training);
    let pass = pass(training);
    let (sequences, at_once) = ((training.steps * training.batch as u64) as f64, (training.micro_batch * config.threads) as f64);
    // with recomputation a batch is observed once without gradients, too
    let observed = if training.recompute { model.operations(Pass::Forward) } else { 0.0 };
    let (parameters, tokens) = match config.text.encoder {
        EncoderConfig::Bert { .. } => TEXT_ENCODER,
        EncoderConfig::HashedWords { .. } => (0.0, 0.0),
    };
    let structures = config.structure.queries.structures() as f64;
    Work {
        name: "train structure",
        disk: checkpoints(training, model.parameters),
        memory: LEARNED * model.parameters + 4.0 * model.held(pass) * at_once,
        operations: sequences * (model.operations(pass) + observed) + 2.0 * parameters * tokens * structures * studies.all as f64,
        reads: 0.0,
        voxels: 0.0,
        device: LEARNED_THERE * model.parameters + 4.0 * model.held(pass) * training.micro_batch as f64,
        bf16: false,
    }
}

fn encoder(config: &Config) -> Model {
    ct_vit(&config.vision.ct_vit, config.volume.shape()[0])
}

fn observe(config: &Config, studies: Studies) -> Work {
    let model = encoder(config);
    let token = 2 * config.structure.queries.width();
    Work {
        name: "observe",
        disk: (studies.all * (config.structure.visual_tokens() * token + 2 * config.structure.queries.structures() * model.tokens)) as f64,
        memory: 4.0 * model.parameters + 4.0 * model.held(Pass::Forward) * config.threads as f64,
        operations: model.operations(Pass::Forward) * studies.all as f64,
        reads: 0.0,
        voxels: 0.0,
        device: 4.0 * model.parameters + 4.0 * model.held(Pass::Forward),
        bf16: false,
    }
}

/// Bytes of what passes through LLaMA on a device: f32 through a base that is multiplied so, bf16 through others.
fn value_bytes(config: &Config, base: &Base) -> f64 {
    if base.f32 || config.llama.precision == BasePrecision::F32 { 4.0 } else { 2.0 }
}

/// Bytes of the base on a device.
fn base_there(config: &Config, base: &Base) -> f64 {
    (if config.llama.precision == BasePrecision::F32 { base.bytes_in_f32() } else { base.bytes }) as f64
}

fn report_llama(config: &Config, base: &Base, studies: Studies) -> Work {
    let (stage, visual) = (&config.llama, config.structure.visual_tokens());
    let training = &stage.training;
    let text = |tokens: usize| llama(&base.config, (visual + PROMPT + tokens, tokens), stage.precision.is_exact(base.f32));
    let (typical, longest) = (text(studies.report_tokens.min(stage.max_report_tokens)), text(stage.max_report_tokens));
    let learned = adapters(config, &base.config);
    let (pass, sequences) = (pass(training), (training.steps * training.batch as u64) as f64);
    let at_once = (training.micro_batch * config.threads.min(training.batch.div_ceil(training.micro_batch))) as f64;
    Work {
        name: "train report --decoder llama",
        disk: checkpoints(training, learned),
        memory: base.bytes as f64 + LEARNED * learned + 4.0 * longest.held(pass) * at_once,
        operations: sequences * typical.operations(pass),
        reads: 0.0,
        voxels: 0.0,
        device: base_there(config, base)
            + LEARNED_THERE * learned
            + value_bytes(config, base) * Model { input: 1.0, ..longest }.held(pass) * training.micro_batch as f64,
        bf16: value_bytes(config, base) < 4.0,
    }
}

fn report_bert(config: &Config, base: &Base, studies: Studies) -> Work {
    let (stage, visual) = (&config.bert, config.structure.visual_tokens());
    // BERT's own vocabulary where none is at hand
    let vocabulary = match (stage.model.vocab_size, &config.language) {
        (0, Some(_)) => base.config.vocab_size,
        (0, None) => 30_522,
        (given, _) => given,
    };
    let text = |tokens: usize| bert(&stage.model, vocabulary, tokens, visual);
    let (typical, longest) = (text(studies.report_tokens.min(stage.max_report_tokens)), text(stage.max_report_tokens));
    let training = &stage.training;
    let (pass, at_once) = (pass(training), (training.micro_batch * config.threads) as f64);
    Work {
        name: "train report --decoder bert",
        disk: checkpoints(training, typical.parameters),
        memory: LEARNED * typical.parameters + 4.0 * longest.held(pass) * at_once,
        operations: (training.steps * training.batch as u64) as f64 * typical.operations(pass),
        reads: 0.0,
        voxels: 0.0,
        device: LEARNED_THERE * typical.parameters + 4.0 * longest.held(pass) * training.micro_batch as f64,
        bf16: false,
    }
}

/// Reports that are written at once.
fn width(generation: &GenerationConfig) -> usize {
    match generation.strategy {
        Strategy::Beam { width, .. } => width * generation.batch,
        _ => generation.batch,
    }
}

fn write_llama(config: &Config, base: &Base, studies: Studies) -> Work {
    let (visual, generation) = (config.structure.visual_tokens(), &config.llama.generation);
    let tokens = studies.report_tokens.min(generation.max_new_tokens);
    let (sizes, at_once) = (&base.config, width(generation));
    let [prompt, whole] = [(visual + PROMPT, 1), (visual + PROMPT + tokens, tokens)].map(|tokens| llama(sizes, tokens, false));
    let kv = 2 * sizes.num_hidden_layers * sizes.kv_heads() * sizes.head_width() * (visual + PROMPT + generation.max_new_tokens);
    Work {
        name: "evaluate --decoder llama",
        disk: 0.0,
        memory: base.bytes as f64 + 4.0 * (kv * at_once) as f64 + 4.0 * prompt.held(Pass::Forward) * at_once as f64,
        operations: whole.operations(Pass::Forward) * studies.test as f64,
        reads: base.bytes as f64 * (tokens * studies.test.div_ceil(generation.batch.max(1))) as f64,
        voxels: 0.0,
        device: base_there(config, base)
            + value_bytes(config, base) * ((kv * at_once) as f64 + prompt.held(Pass::Forward) * at_once as f64),
        bf16: value_bytes(config, base) < 4.0,
    }
}
