//! Peak memory and processor time of a training step with and without recomputation, each in a process of its own: `cargo run --release --example recompute`.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use ctscribe::config::Config;
use ctscribe::data::phantom::write_dataset;
use ctscribe::data::{Cache, prepare, read_ct_rate};
use ctscribe::decoder::{Llama, LlamaConfig};
use ctscribe::train::{Stage, StructureStage, peak_memory_mib, step_rng};
use ctscribe::weights::Params;
use ctscribe_lora::{LoraConfig, Targets};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const LLAMA: LlamaConfig = LlamaConfig {
    hidden_size: 256,
    intermediate_size: 688,
    num_hidden_layers: 12,
    num_attention_heads: 8,
    num_key_value_heads: None,
    head_dim: None,
    vocab_size: 2048,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    initializer_range: 0.02,
};

/// A CT-ViT of four layers each, on phantoms.
const STRUCTURE: [&str; 6] = [
    "vision.ct_vit.dim=128",
    "vision.ct_vit.spatial_depth=4",
    "vision.ct_vit.temporal_depth=4",
    "structure.queries.patch_width=128",
    "train_structure.training.micro_batch=1",
    "threads=1",
];

fn main() -> Outcome<()> {
    ctscribe_ops::reuse_freed_memory();
    ctscribe_ops::keep_one_heap();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["llama", recompute] => report("LLaMA, 12 layers, 4 x 512", recompute, &llama(recompute == "true")?),
        ["structure", folder, batch, recompute] => {
            report(&format!("stage one, batch of {batch}"), recompute, &structure(Path::new(folder), batch, recompute)?)
        }
        _ => Err("no arguments, please".into()),
    }
}

/// Every case in a process of its own: a peak does not go down again.
fn compare() -> Outcome<()> {
    let root = tempfile::tempdir()?;
    let config = Config::load("phantom", &[])?;
    let mut phantoms = config.phantoms.clone().ok_or("the preset has phantoms")?;
    (phantoms.train, phantoms.valid) = (72, 2);
    write_dataset(&root.path().join("dataset"), &phantoms, |_| {})?;
    let dataset = read_ct_rate(&root.path().join("dataset"), &config.data, config.seed)?;
    let folder = root.path().join("cache");
    prepare(&dataset, &config.volume, &folder, |_| {})?;
    let folder = folder.display().to_string();
    for case in [&["llama"][..], &["structure", &folder, "2"], &["structure", &folder, "64"]] {
        for recompute in ["false", "true"] {
            std::process::Command::new(std::env::current_exe()?).args(case).arg(recompute).status()?;
        }
    }
    Ok(())
}

struct Measured {
    at_rest_mib: u64,
    seconds: f64,
}

fn report(what: &str, recompute: &str, measured: &Measured) -> Outcome<()> {
    let peak = peak_memory_mib().ok_or("/proc/self/status says nothing of memory")?;
    let Measured { at_rest_mib, seconds } = measured;
    println!(
        "{what:<28} recompute {recompute:<5}  peak {peak:6} MiB, {:6} of them the steps'   {seconds:6.2} s of processor a step",
        peak - at_rest_mib
    );
    Ok(())
}

/// Seconds that all cores together have worked for this process: other processes on the machine do not count.
fn processor_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("/proc/self/stat has no name")?;
    // proc_pid_stat(5): fields 14 and 15, in hundredths of a second
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>());
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// The best of three steps.
fn time(mut step: impl FnMut() -> Outcome<()>) -> Outcome<Measured> {
    let at_rest_mib = peak_memory_mib().ok_or("/proc/self/status says nothing of memory")?;
    let mut seconds = f64::INFINITY;
    for _ in 0..3 {
        let start = processor_seconds()?;
        step()?;
        seconds = seconds.min(processor_seconds()? - start);
    }
    Ok(Measured { at_rest_mib, seconds })
}

fn llama(recompute: bool) -> Outcome<Measured> {
    let mut model = Llama::new(&LLAMA, &Params::fresh(1, &Device::Cpu).frozen())?;
    let target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).to_vec();
    model.attach_lora(&LoraConfig { dropout: 0.05, ..LoraConfig::plain(16, 32.0, Targets::Names(target_modules)) }, 3)?;
    model.set_recompute(recompute);
    let (rows, length) = (4, 512);
    let visual = Var::from_tensor(&model.embed(&Tensor::zeros((rows, length), candle_core::DType::U32, &Device::Cpu)?)?)?;
    let targets = vec![(0..length as u32).collect::<Vec<_>>(); rows];
    time(|| {
        let hidden = model.forward(visual.as_tensor(), None, Some(&mut step_rng(4, 0, 0)))?;
        let gradients = model.loss_sum(&hidden, &targets, &vec![vec![1.0; length]; rows])?.backward()?;
        gradients.get(&visual).map(drop).ok_or_else(|| "no gradient of the input".into())
    })
}

fn structure(folder: &Path, batch: &str, recompute: &str) -> Outcome<Measured> {
    let key = |name: &str, value: &str| format!("train_structure.training.{name}={value}");
    let sets = STRUCTURE.map(String::from).into_iter().chain([key("batch", batch), key("recompute", recompute)]);
    let (config, cache) = (Config::load("phantom", &sets.collect::<Vec<_>>())?, Cache::open(folder)?);
    let (mut stage, optimizer) = StructureStage::start(&config, &cache)?;
    let mut step = 0;
    time(|| {
        step += 1;
        stage.gradients(step, &optimizer)?;
        Ok(())
    })
}
