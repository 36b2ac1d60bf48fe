//! The work of the peers' scripts: same shapes, same inputs' kind.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ctscribe_lora::{LoraConfig, Targets};
use ctscribe_ops::awake;
use ctscribe_ops::transfers::{host_values, read, read_number, to_device};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{Measured, measure};
use crate::config::{Config, OptimizerConfig};
use crate::decoder::Run;
use crate::generate::{open_llama, room_to_pack};
use crate::text::bert::{BertConfig, BertEncoder, Precision};
use crate::train::AdamW;
use crate::vision::CtVit;
use crate::weights::{BasePrecision, Params, WeightPrecision};
use crate::{Error, Result, volume};

/// One LoRA training step: r 8, alpha 16, AdamW, gradients clipped at 1.
#[derive(Debug, Clone)]
pub struct StepOptions {
    /// Visual tokens before the text.
    pub visual: usize,
    /// Text tokens without a label.
    pub prompt: usize,
    /// Text tokens with one.
    pub text: usize,
    /// Sequences.
    pub batch: usize,
    /// Whether layers are run again in the backward pass.
    pub recompute: bool,
    /// Of the products with weights.
    pub precision: BasePrecision,
    /// The adapted projections.
    pub targets: Vec<String>,
    /// Runs on the clock.
    pub runs: usize,
}

fn ids(rng: &mut ChaCha8Rng, batch: usize, length: usize, vocabulary: usize) -> Result<Tensor> {
    let ids: Vec<u32> = (0..batch * length).map(|_| rng.random_range(3..vocabulary as u32)).collect();
    Ok(Tensor::from_vec(ids, (batch, length), &Device::Cpu)?)
}

fn noise(rng: &mut ChaCha8Rng, shape: &[usize], scale: f32) -> Result<Tensor> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-scale..scale)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// [`measure`] of work that keeps the cores awake, as training, writing and encoding do.
fn measure_awake(runs: usize, mut work: impl FnMut() -> Result<()> + Send) -> Result<Measured> {
    measure(runs, || awake(&mut work))
}

/// Times a LoRA training step of the base in `base` on `device`.
pub fn lora_step(base: &Path, options: &StepOptions, device: &Device) -> Result<Measured> {
    let mut model = open_llama(base, options.precision, device)?;
    model.attach_lora(&LoraConfig::plain(8, 16.0, Targets::Names(options.targets.clone())), 1)?;
    model.set_recompute(options.recompute);
    let config = OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, no_decay: vec![] };
    let mut optimizer = AdamW::new(model.lora_vars(), config);
    let (mut rng, sizes) = (ChaCha8Rng::seed_from_u64(0), model.config().clone());
    let StepOptions { visual, prompt, text, batch, .. } = *options;
    let patches = noise(&mut rng, &[batch, visual, sizes.hidden_size], 0.02)?;
    let words = ids(&mut rng, batch, prompt + text, sizes.vocab_size)?;
    let length = visual + prompt + text;
    let labels: Vec<Vec<u32>> = host_values(&words)?.chunks(prompt + text).map(<[u32]>::to_vec).collect();
    let next = |words: &[u32], at: usize| (at + 1).checked_sub(visual).and_then(|at| words.get(at)).copied().unwrap_or(0);
    let targets: Vec<Vec<u32>> = labels.iter().map(|words| (0..length).map(|at| next(words, at)).collect()).collect();
    let weights: Vec<f32> = (0..length).map(|at| if at + 1 >= visual + prompt && at + 1 < length { 1.0 } else { 0.0 }).collect();
    let weights = vec![weights; batch];
    measure_awake(options.runs, || {
        let visual = to_device(&patches, device)?.to_dtype(model.dtype())?;
        let input = Tensor::cat(&[&visual, &model.embed(&words)?], 1)?;
        let loss = (model.next_token_loss(&input, &targets, &weights, None)? / (batch * text) as f64)?;
        let gradients = optimizer.gradients(&mut loss.backward()?);
        optimizer.step_within(gradients, 1e-4, Some(1.0))?;
        // waits for the device, as a training step does for its loss
        read_number(&loss).map(|_| ()).map_err(Into::into)
    })
}

/// Greedy decoding after a prompt.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// Embeddings before the first new token.
    pub prompt: usize,
    /// New tokens.
    pub new: usize,
    /// Whether passes are replayed as CUDA graphs, where that can be.
    pub graphs: bool,
    /// Runs on the clock.
    pub runs: usize,
}

/// Times `options.new` tokens after a prompt that was read before the clock started, one a pass, as reports are written.
pub fn decode(base: &Path, options: &DecodeOptions, device: &Device) -> Result<Measured> {
    let mut model = open_llama(base, BasePrecision::Auto, device)?;
    model.set_writing(room_to_pack());
    model.set_replayed(options.graphs);
    let mut replays = model.replays();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let prompt = model.embed(&ids(&mut rng, 1, options.prompt, model.config().vocab_size)?)?;
    let mut cache = model.cache(1, options.prompt + options.new + 1);
    model.forward_cached(&prompt, &mut cache)?;
    measure_awake(options.runs, || {
        cache.truncate(options.prompt);
        let mut word = 5u32;
        for _ in 0..options.new {
            let embedded = model.embed(&Tensor::new(&[[word]], &Device::Cpu)?)?.squeeze(0)?;
            let logits = model.logits_of_runs(&embedded, &mut [Run { cache: &mut cache, rows: 1 }], &mut replays)?;
            word = read(&logits.flatten_all()?.argmax(0)?)?[0];
        }
        Ok(())
    })
}

/// Times reading a prompt and the logits of its last position.
pub fn prefill(base: &Path, options: &DecodeOptions, device: &Device) -> Result<Measured> {
    let model = open_llama(base, BasePrecision::Auto, device)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let prompt = model.embed(&ids(&mut rng, 1, options.prompt, model.config().vocab_size)?)?;
    measure_awake(options.runs, || {
        let hidden = model.read_to_last(&prompt, &mut model.cache(1, options.prompt))?;
        // waits for the device
        read::<f32>(&model.logits(&hidden)?.to_dtype(DType::F32)?)?;
        Ok(())
    })
}

/// CT-CLIP's CT-ViT with random weights for volumes of (D, H, W).
fn ct_vit(shape: [usize; 3], precision: WeightPrecision, params: &Params) -> Result<CtVit> {
    let mut config = Config::load("ct-rate-llama2-7b", &[])?.vision.ct_vit;
    config.image_size = [shape[1], shape[2]];
    let faults = config.faults("shape", shape);
    if !faults.is_empty() {
        return Err(Error::Config { source_name: "the command line".to_string(), faults });
    }
    let mut model = CtVit::new(&config, params)?;
    model.set_precision(precision);
    Ok(model)
}

/// How far tokens lie from those in f32, as shares of these tokens' root mean square.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Distance {
    /// Root mean square of the differences.
    pub rms: f64,
    /// The largest difference.
    pub largest: f64,
}

/// Times CT-ViT's encoding of one volume (D, H, W), quantisation included, and compares its tokens with f32's.
pub fn encode(shape: [usize; 3], precision: WeightPrecision, runs: usize, device: &Device) -> Result<(Measured, Distance)> {
    let mut model = ct_vit(shape, precision, &Params::fresh(1, device).frozen())?;
    let volume = noise(&mut ChaCha8Rng::seed_from_u64(0), &[1, 1, shape[0], shape[1], shape[2]], 1.0)?;
    let measured = measure_awake(runs, || {
        let quantized = model.quantize(&model.encode(&to_device(&volume, device)?)?)?;
        // waits for the device
        read_number(&quantized.commitment)?;
        Ok(())
    })?;
    let found = read::<f32>(&model.encode(&to_device(&volume, device)?)?)?;
    model.set_precision(WeightPrecision::F32);
    let exact = read::<f32>(&model.encode(&to_device(&volume, device)?)?)?;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let root = (square(&mut exact.iter().map(|&x| f64::from(x))) / exact.len() as f64).sqrt();
    let off = || found.iter().zip(&exact).map(|(a, b)| f64::from(a - b));
    let rms = (square(&mut off()) / exact.len() as f64).sqrt() / root;
    Ok((measured, Distance { rms, largest: off().fold(0.0, |largest, off| f64::max(largest, off.abs())) / root }))
}

/// Times CT-ViT's forward and backward pass and an AdamW step on one volume (D, H, W).
pub fn train_encoder(shape: [usize; 3], precision: WeightPrecision, recompute: bool, runs: usize, device: &Device) -> Result<Measured> {
    let params = Params::fresh(1, device);
    let mut model = ct_vit(shape, precision, &params)?;
    model.set_recompute(recompute);
    let config = OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, no_decay: vec![] };
    let mut optimizer = AdamW::new(params.trainable(), config);
    let volume = noise(&mut ChaCha8Rng::seed_from_u64(0), &[1, 1, shape[0], shape[1], shape[2]], 1.0)?;
    measure_awake(runs, || {
        let loss = model.encode(&to_device(&volume, device)?)?.sqr()?.mean_all()?;
        let gradients = optimizer.gradients(&mut loss.backward()?);
        optimizer.step(&gradients, 1e-5)?;
        read_number(&loss).map(|_| ()).map_err(Into::into)
    })
}

/// Times reading a scan and preparing it as CT-CLIP does.
pub fn prepare_file(path: &Path, target: [usize; 3], runs: usize) -> Result<Measured> {
    let mut config = Config::load("ct-rate-llama2-7b", &[])?.volume;
    config.target_shape = target;
    config.target_spacing_mm = [1.5, 0.75, 0.75];
    measure(runs, || {
        volume::prepare(&volume::read(path)?, &config, None)?;
        Ok(())
    })
}

/// Times BERT-base with random weights in `precision` on `sentences` sentences of `tokens` tokens.
pub fn text_encoder((sentences, tokens): (usize, usize), precision: Precision, runs: usize, device: &Device) -> Result<Measured> {
    let config = BertConfig {
        vocab_size: 30_522,
        hidden_size: 768,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        intermediate_size: 3072,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        pad_token_id: 0,
        hidden_dropout_prob: 0.0,
        model_type: "bert".to_string(),
    };
    let model = BertEncoder::new(&config, precision, &Params::fresh(1, device))?;
    let ids = ids(&mut ChaCha8Rng::seed_from_u64(0), sentences, tokens, 30_000)?;
    let mask = ids.ones_like()?;
    measure_awake(runs, || {
        // waits for the device
        read_number(&model.forward(&ids, &mask)?.sum_all()?)?;
        Ok(())
    })
}
