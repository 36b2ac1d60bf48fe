//! Stage two: report learning from selected visual tokens, with LLaMA and LoRA or with the BERT decoder (method.md, stage two).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor, Var};
use ctscribe_ops::transfers;
use serde_json::{Map, json};

use crate::config::{Config, TrainingConfig};
use crate::data::{Cache, CachedStudy, Split};
use crate::decoder::{GenerationConfig, Network, ReportDecoder, Strategy, TargetReport, token_statistics, weigh_rare_tokens};
use crate::evaluate::{Pair, rare_findings};
use crate::generate::{
    Assembled, DecoderKind, SplitWriter, Visual, Written, assemble_bert, assemble_llama, decoder_file, draft_file, read_tokens, run_adapter,
};
use crate::ranks::{Alone, Communicator};
use crate::text::label_report;
use crate::weights::{self, Params};
use crate::{Error, Result};

use super::bucket::{longest_first, read_numbers, shared_gradients};
use super::call::Call;
use super::micro_batches::in_threads;
use super::optimizer::AdamW;
use super::order::{Order, step_rng};
use super::run_folder::{Checkpoint, RunFolder};
use super::stage::{Ended, Loop, Stage, StepOutcome};
use super::watch::{Validation, check_patients, report_measures};

/// What stage two gave.
#[derive(Debug, Clone)]
pub struct ReportOutcome {
    /// How it ended.
    pub ended: Ended,
    /// Training and validation studies.
    pub studies: [usize; 2],
    /// Training reports that exceed `max_report_tokens` and were cut.
    pub cut: usize,
}

/// Stage two between its steps.
pub struct ReportStage<'a> {
    config: &'a Config,
    training: &'a TrainingConfig,
    kind: DecoderKind,
    run: &'a Path,
    decoder: ReportDecoder,
    params: Params,
    studies: Vec<&'a CachedStudy>,
    reports: Vec<TargetReport>,
    watched: Vec<(&'a CachedStudy, TargetReport)>,
    /// The findings that are rarest among the training studies.
    rare: Vec<usize>,
    order: Order,
    cut: usize,
    ranks: &'a dyn Communicator,
}

/// Validation studies whose loss is measured at each checkpoint.
const WATCHED: usize = 200;

/// Trains a decoder on the run's observations of the cache's training studies.
pub fn train_report(config: &Config, cache: &Cache, run: &Path, kind: DecoderKind, resume: bool) -> Result<ReportOutcome> {
    train_report_for(config, cache, run, kind, Call::alone(resume))
}

/// As [`train_report`], called as `call` says.
pub fn train_report_for(config: &Config, cache: &Cache, run: &Path, kind: DecoderKind, call: Call) -> Result<ReportOutcome> {
    check_patients(cache)?;
    let folder = RunFolder::create(run.join(kind.name()))?;
    let (stage, mut optimizer) = ReportStage::start(config, cache, run, kind)?;
    let mut stage = stage.shared(call.ranks);
    let ended = Loop::new(config, stage.training, &folder, call)?.run(&mut stage, &mut optimizer)?;
    if ended.finished {
        call.ranks.leader_only(|| stage.save())?;
    }
    Ok(ReportOutcome { ended, studies: [stage.studies.len(), stage.watched.len()], cut: stage.cut })
}

/// A decoder to be trained, with its trained tensors by name.
fn fresh(config: &Config, run: &Path, kind: DecoderKind) -> Result<(Assembled, Vec<(String, Var)>)> {
    match kind {
        DecoderKind::Llama => {
            let mut assembled = assemble_llama(config, run, Params::fresh(config.seed, &config.device.open()?))?;
            let mut trainable = assembled.params.trainable();
            if let Network::Llama { model, .. } = assembled.decoder.network_mut() {
                model.attach_lora(&config.llama.lora, config.seed)?;
                trainable.extend(model.lora_vars());
            }
            Ok((assembled, trainable))
        }
        DecoderKind::Bert => {
            let assembled = assemble_bert(config, run, Params::fresh(config.seed, &config.device.open()?))?;
            let trainable = assembled.params.trainable();
            if let Some(folder) = &config.bert.weights {
                take_bert(folder, &trainable)?;
            }
            Ok((assembled, trainable))
        }
    }
}

/// Takes a pretrained BERT's embeddings and layers into the decoder: its cross-attention has no counterpart and stays fresh.
fn take_bert(folder: &Path, trainable: &[(String, Var)]) -> Result<()> {
    let tensors = weights::open(folder)?;
    let mut taken = 0;
    for (name, var) in trainable {
        let Some(name) = name.strip_prefix("decoder.") else { continue };
        let found = tensors.get(name).or_else(|| tensors.get(name.strip_prefix("bert.")?));
        let Some(tensor) = found else {
            if name.contains("crossattention") || name.starts_with("cls.") || name.contains("token_type_embeddings") {
                continue;
            }
            return Err(Error::Tensor { source_name: folder.display().to_string(), tensor: name.to_string(), what: "missing".to_string() });
        };
        if tensor.dims() != var.dims() {
            let what = format!("expected {:?}, found {:?}", var.dims(), tensor.dims());
            return Err(Error::Tensor { source_name: folder.display().to_string(), tensor: name.to_string(), what });
        }
        var.set(&transfers::to_device(&tensor.to_dtype(DType::F32)?, var.device())?)?;
        taken += 1;
    }
    if taken == 0 { Err(Error::file(folder, "holds no tensor of a BERT")) } else { Ok(()) }
}

impl<'a> ReportStage<'a> {
    /// The stage and its optimiser before the first step, from a run that has observed the cache's studies.
    pub fn start(config: &'a Config, cache: &'a Cache, run: &'a Path, kind: DecoderKind) -> Result<(Self, AdamW)> {
        let (assembled, trainable) = fresh(config, run, kind)?;
        let stage = ReportStage::new(config, cache, run, kind, assembled)?;
        let factor = if kind == DecoderKind::Llama { config.llama.projector_lr_factor } else { 1.0 };
        let optimizer = AdamW::new(trainable, stage.training.optimizer.clone());
        Ok((stage, optimizer.scale_lr(factor, |name| name.starts_with("projector."))))
    }

    /// The same, each batch shared among `ranks`.
    pub fn shared(self, ranks: &'a dyn Communicator) -> Self {
        ReportStage { ranks, ..self }
    }

    fn new(config: &'a Config, cache: &'a Cache, run: &'a Path, kind: DecoderKind, assembled: Assembled) -> Result<Self> {
        let Assembled { mut decoder, params } = assembled;
        let (training, limit, rare) = match kind {
            DecoderKind::Llama => (&config.llama.training, config.llama.max_report_tokens, config.llama.rare_token_weight),
            DecoderKind::Bert => (&config.bert.training, config.bert.max_report_tokens, config.bert.rare_token_weight),
        };
        match decoder.network_mut() {
            Network::Llama { model, .. } => model.set_recompute(training.recompute),
            Network::Bert(model) => model.set_recompute(training.recompute),
        }
        let studies = cache.split(Split::Train);
        if studies.is_empty() {
            return Err(Error::file(cache.root(), "holds no training study"));
        }
        let target = |study: &CachedStudy| decoder.target(&study.report, limit);
        let (mut reports, cut): (Vec<TargetReport>, Vec<bool>) =
            studies.iter().map(|study| target(study)).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let watched = cache.split(Split::Validation).into_iter().take(WATCHED);
        let watched = watched.map(|study| Ok((study, target(study)?.0))).collect::<Result<_>>()?;
        weigh_rare_tokens(&mut reports, decoder.tokenizer().vocabulary(), rare);
        if let Some(projector) = decoder.projector_mut() {
            let tokens = studies.iter().map(|study| read_tokens(run, &study.name));
            if projector.standardises() {
                let (mean, deviation) = token_statistics(tokens, config.structure.queries.structures())?;
                projector.set_statistics(&mean, &deviation)?;
            }
        }
        let order = Order::new(studies.len(), config.seed.wrapping_add(1));
        let cut = cut.into_iter().filter(|cut| *cut).count();
        let labels = studies.iter().map(|study| study.labels.unwrap_or_else(|| label_report(&study.report)));
        let rare = if training.watch.studies > 0 { rare_findings(&labels.collect::<Vec<_>>()) } else { Vec::new() };
        Ok(ReportStage { config, training, kind, run, decoder, params, studies, reports, watched, rare, order, cut, ranks: &Alone })
    }

    /// Visual tokens (n, V, h) of studies, as they lie in their files, in the host's memory.
    fn tokens(&self, names: &[&str]) -> Result<Tensor> {
        let tokens: Vec<Tensor> = names.iter().map(|name| read_tokens(self.run, name)).collect::<Result<_>>()?;
        Ok(Tensor::stack(&tokens, 0)?)
    }

    /// Greedy reports for the first `count` validation studies.
    fn write(&self, count: usize) -> Result<Vec<Pair>> {
        let studies: Vec<&CachedStudy> = self.watched.iter().take(count).map(|(study, _)| *study).collect();
        let generation = GenerationConfig { strategy: Strategy::Greedy, ..self.kind.generation(self.config).clone() };
        let writer = SplitWriter { decoder: &self.decoder, generation: &generation, run: self.run, ranks: self.ranks };
        let (written, _) = writer.write(&studies, Visual::Own, &mut |_| {})?;
        let pair = |(study, written): (&CachedStudy, Written)| Pair {
            study: study.name.clone(),
            generated: written.text,
            reference: study.report.clone(),
            labels: study.labels,
        };
        Ok(studies.into_iter().zip(written).map(pair).collect())
    }

    /// Writes the finished decoder: LLaMA's adapter in PEFT's format with the projector beside it, or BERT whole.
    fn save(&self) -> Result<()> {
        let mut tensors = self.params.tensors();
        if let Some(projector) = self.decoder.projector() {
            tensors.extend(projector.statistics().into_iter().map(|(name, tensor)| (format!("projector.{name}"), tensor)));
        }
        if let Network::Llama { model, .. } = self.decoder.network() {
            // the run's own base is named from the adapter's folder, so that a run can be moved
            let base = self.config.llama.base.as_ref().map_or("../../language".to_string(), |base| base.display().to_string());
            model.save_adapter(&run_adapter(self.run), &self.config.llama.lora, &base)?;
            self.decoder.draft_index(&self.reports).save(&draft_file(self.run))?;
        }
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        weights::save(&decoder_file(self.run, self.kind), &tensors, &metadata)
    }
}

impl Stage for ReportStage<'_> {
    fn name(&self) -> &str {
        match self.kind {
            DecoderKind::Llama => "report-llama",
            DecoderKind::Bert => "report-bert",
        }
    }

    fn gradients(&mut self, step: u64, optimizer: &AdamW) -> Result<StepOutcome> {
        let mut batch = self.order.batch(step, self.training.batch);
        longest_first(&mut batch, |index| self.reports[index].ids.len());
        let counted = |index: &usize| self.reports[*index].weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        let weight: f64 = batch.iter().map(counted).sum();
        let tokens: usize = batch.iter().map(|&index| self.reports[index].ids.len()).sum();
        let parts: Vec<&[usize]> = batch.chunks(self.training.micro_batch).collect();
        let this = &*self;
        let (losses, gradients) = shared_gradients(this.ranks, &parts, this.config.at_once(), optimizer, |part_index, part| {
            let names: Vec<&str> = part.iter().map(|&index| this.studies[index].name.as_str()).collect();
            let reports: Vec<&TargetReport> = part.iter().map(|&index| &this.reports[index]).collect();
            let mut dropout = step_rng(this.config.seed ^ 0xD1, step, part_index);
            let loss = (this.decoder.loss_sum(&this.tokens(&names)?, &reports, Some(&mut dropout))? / weight)?;
            let gradients = optimizer.gradients(&mut loss.backward()?);
            Ok((loss, gradients))
        })?;
        let metrics = Map::from_iter([
            ("tokens".to_string(), json!(tokens)),
            ("epoch".to_string(), json!(self.order.epoch(step, self.training.batch))),
        ]);
        Ok(StepOutcome { gradients, loss: losses.iter().sum(), count: tokens, metrics })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let statistics = self.decoder.projector().map(|projector| projector.statistics()).unwrap_or_default();
        Ok(statistics.into_iter().map(|(name, tensor)| (format!("projector.{name}"), tensor)).collect())
    }

    fn restore(&mut self, _checkpoint: &mut Checkpoint) -> Result<()> {
        // the statistics are the training set's, taken again at the start
        Ok(())
    }

    /// Loss a token on validation studies, all tokens alike; measures of the reports written for the first ones.
    fn validate(&mut self) -> Result<Validation> {
        if self.watched.is_empty() {
            return Ok(Validation::default());
        }
        let this = &*self;
        let parts: Vec<&[(&CachedStudy, TargetReport)]> = this.watched.chunks(this.training.micro_batch).collect();
        let own = &parts[this.ranks.share(parts.len())];
        let sums = in_threads(own, this.config.at_once(), |_, part| {
            let names: Vec<&str> = part.iter().map(|(study, _)| study.name.as_str()).collect();
            let reports: Vec<&TargetReport> = part.iter().map(|(_, report)| report).collect();
            Ok(this.decoder.loss_sum(&this.tokens(&names)?, &reports, None)?.detach())
        })?;
        let sums = this.ranks.gather_numbers(&read_numbers(&sums)?)?;
        let count: usize = this.watched.iter().map(|(_, report)| report.ids.len()).sum();
        let mut measures = Map::from_iter([("validation_loss".to_string(), json!(sums.iter().sum::<f64>() / count.max(1) as f64))]);
        let watch = this.training.watch;
        let mut samples = this.write(watch.samples.max(watch.studies))?;
        let measured = &samples[..watch.studies.min(samples.len())];
        if !measured.is_empty() {
            measures.extend(report_measures(this.name(), measured, &this.rare)?);
        }
        samples.truncate(watch.samples);
        Ok(Validation { measures, samples })
    }
}
