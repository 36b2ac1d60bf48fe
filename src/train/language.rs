//! A small LLaMA of one's own, trained on the training reports' text alone: the base that adapters are then trained on.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, json};

use crate::config::{Config, LanguageStage};
use crate::data::{Cache, Split};
use crate::decoder::{Llama, LlamaConfig};
use crate::ranks::Communicator;
use crate::text::Tokenizer;
use crate::weights::{self, Params};
use crate::{Error, Result};

use super::bucket::{longest_first, read_numbers, shared_gradients};
use super::call::Call;
use super::micro_batches::in_threads;
use super::optimizer::AdamW;
use super::order::Order;
use super::run_folder::RunFolder;
use super::stage::{Ended, Loop, Stage, StepOutcome};
use super::watch::{Validation, check_patients};

struct Language<'a> {
    config: &'a Config,
    stage: &'a LanguageStage,
    model: Llama,
    reports: Vec<Vec<u32>>,
    watched: Vec<Vec<u32>>,
    order: Order,
    ranks: &'a dyn Communicator,
}

/// Learns a tokenizer and a language model; `RUN/language` becomes a base folder in Hugging Face's layout.
pub fn train_language(config: &Config, cache: &Cache, run: &Path, resume: bool) -> Result<Ended> {
    train_language_for(config, cache, run, Call::alone(resume))
}

/// As [`train_language`], called as `call` says.
pub fn train_language_for(config: &Config, cache: &Cache, run: &Path, call: Call) -> Result<Ended> {
    let Some(stage) = &config.language else {
        return Err(Error::Invalid("language: null: this configuration takes LLaMA from llama.base".to_string()));
    };
    check_patients(cache)?;
    let folder = RunFolder::create(run.join("language"))?;
    let texts = |split: Split| -> Vec<String> { cache.split(split).iter().map(|study| study.report.clone()).collect() };
    let train = texts(Split::Train);
    if train.is_empty() {
        return Err(Error::file(cache.root(), "holds no training study"));
    }
    let tokenizer = call.ranks.leader_first(|| own_tokenizer(&folder, &train, stage.vocabulary))?;
    let vocab_size = if stage.model.vocab_size == 0 { tokenizer.vocabulary() } else { stage.model.vocab_size };
    let sizes = LlamaConfig { vocab_size, ..stage.model.clone() };
    let params = Params::fresh(config.seed, &config.device.open()?);
    let limit = config.llama.max_report_tokens;
    let ids = |texts: &[String]| texts.iter().map(|text| Ok(tokenizer.encode_whole(text, limit)?.0)).collect::<Result<Vec<_>>>();
    let reports = ids(&train)?;
    let order = Order::new(reports.len(), config.seed);
    let watched = ids(&texts(Split::Validation))?;
    let mut model = Llama::new(&sizes, &params)?;
    model.set_recompute(stage.training.recompute);
    let mut language = Language { config, stage, model, reports, watched, order, ranks: call.ranks };
    let mut optimizer = AdamW::new(params.trainable(), stage.training.optimizer.clone());
    let ended = Loop::new(config, &stage.training, &folder, call)?.run(&mut language, &mut optimizer)?;
    call.ranks.leader_only(|| {
        weights::save(&folder.path("model.safetensors"), &params.tensors(), &HashMap::from([("format".to_string(), "pt".to_string())]))?;
        write_config(&folder, &sizes, &tokenizer)
    })?;
    Ok(ended)
}

/// The run's tokenizer, learned where there is none.
fn own_tokenizer(folder: &RunFolder, texts: &[String], vocabulary: usize) -> Result<Tokenizer> {
    let path = folder.path("tokenizer.json");
    if path.is_file() {
        return Tokenizer::read(&path);
    }
    let tokenizer = Tokenizer::train_byte_pair(texts, vocabulary)?;
    tokenizer.save(&path)?;
    Ok(tokenizer)
}

/// `config.json` as transformers reads it.
fn write_config(folder: &RunFolder, sizes: &LlamaConfig, tokenizer: &Tokenizer) -> Result<()> {
    let fault = |e: serde_json::Error| Error::file(folder.path("config.json"), e.to_string());
    let keys = sizes.json(tokenizer.begin, tokenizer.end);
    folder.write_text("config.json", &serde_json::to_string_pretty(&keys).map_err(fault)?)
}

impl Language<'_> {
    /// Sum of the next-token losses of reports, and how many tokens that is.
    fn loss_sum(&self, reports: &[&Vec<u32>]) -> Result<(Tensor, usize)> {
        let longest = reports.iter().map(|report| report.len()).max().unwrap_or(0);
        let length = longest - 1;
        let at = |report: &[u32], index: usize| report.get(index).copied().unwrap_or(0);
        let inputs: Vec<u32> = reports.iter().flat_map(|report| (0..length).map(|index| at(report, index))).collect();
        let targets: Vec<Vec<u32>> = reports.iter().map(|report| (0..length).map(|index| at(report, index + 1)).collect()).collect();
        let weight = |report: &Vec<u32>| (0..length).map(|index| if index + 1 < report.len() { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let weights: Vec<Vec<f32>> = reports.iter().map(|report| weight(report)).collect();
        let embedded = self.model.embed(&Tensor::from_vec(inputs, (reports.len(), length), &Device::Cpu)?)?;
        let hidden = self.model.forward(&embedded, None, None)?;
        let count = reports.iter().map(|report| report.len() - 1).sum();
        Ok((self.model.loss_sum(&hidden, &targets, &weights)?, count))
    }
}

impl Stage for Language<'_> {
    fn name(&self) -> &str {
        "language"
    }

    fn gradients(&mut self, step: u64, optimizer: &AdamW) -> Result<StepOutcome> {
        let training = &self.stage.training;
        let mut batch = self.order.batch(step, training.batch);
        longest_first(&mut batch, |index| self.reports[index].len());
        let tokens: usize = batch.iter().map(|&index| self.reports[index].len() - 1).sum();
        let parts: Vec<&[usize]> = batch.chunks(training.micro_batch).collect();
        let this = &*self;
        let (losses, gradients) = shared_gradients(this.ranks, &parts, this.config.at_once(), optimizer, |_, part| {
            let reports: Vec<&Vec<u32>> = part.iter().map(|&index| &this.reports[index]).collect();
            let loss = (this.loss_sum(&reports)?.0 / tokens as f64)?;
            let gradients = optimizer.gradients(&mut loss.backward()?);
            Ok((loss, gradients))
        })?;
        let metrics = Map::from_iter([("tokens".to_string(), json!(tokens))]);
        Ok(StepOutcome { gradients, loss: losses.iter().sum(), count: tokens, metrics })
    }

    fn validate(&mut self) -> Result<Validation> {
        if self.watched.is_empty() {
            return Ok(Validation::default());
        }
        let this = &*self;
        let parts: Vec<&[Vec<u32>]> = this.watched.chunks(this.stage.training.micro_batch).collect();
        let own = &parts[this.ranks.share(parts.len())];
        let sums = in_threads(own, this.config.at_once(), |_, part| {
            let (loss, _) = this.loss_sum(&part.iter().collect::<Vec<_>>())?;
            Ok(loss.detach())
        })?;
        let loss: f64 = this.ranks.gather_numbers(&read_numbers(&sums)?)?.iter().sum();
        let count: usize = this.watched.iter().map(|report| report.len() - 1).sum();
        let measures = Map::from_iter([("validation_loss".to_string(), json!(loss / count.max(1) as f64))]);
        Ok(Validation { measures, samples: Vec::new() })
    }
}
