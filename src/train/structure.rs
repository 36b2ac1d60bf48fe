//! Stage one: structure learning (method.md, stage one).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor, Var};
use ctscribe_ops::transfers;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::data::{Cache, CachedStudy, Split};
use crate::evaluate::retrieval;
use crate::generate::{Features, Observer, centre, encode_reports, stack_features, structure_means};
use crate::ranks::{Alone, Communicator};
use crate::structure::{
    Contrast, ContrastLoss, DiversityQueue, LossConfig, Queue, QueueConfig, ReferenceQueue, RetrievalRule, contrast, reference_contrast,
    report_to_volume_scores,
};
use crate::text::Structures;
use crate::weights;
use crate::{Error, Result};

use super::call::Call;
use super::micro_batches::{in_threads, sum_gradients, sum_in_threads};
use super::optimizer::AdamW;
use super::order::{Order, step_rng};
use super::run_folder::{Checkpoint, RunFolder};
use super::stage::{Ended, Loop, Stage, StepOutcome};
use super::watch::{Validation, by_structure, check_patients};

/// Validation studies whose retrieval is measured at each checkpoint.
const WATCHED: usize = 200;

/// What stage one gave.
#[derive(Debug, Clone)]
pub struct StructureOutcome {
    /// How it ended.
    pub ended: Ended,
    /// Training and validation studies.
    pub studies: [usize; 2],
    /// Sizes of the queue a structure at the end.
    pub queue: Vec<usize>,
}

/// Stage one between its steps.
pub struct StructureStage<'a> {
    config: &'a Config,
    cache: &'a Cache,
    studies: Vec<&'a CachedStudy>,
    features: Features,
    text_width: usize,
    watched: Vec<&'a CachedStudy>,
    watched_features: Features,
    observer: Observer,
    queue: Queue,
    order: Order,
    /// Their names.
    structures: Vec<String>,
    ranks: &'a dyn Communicator,
}

/// Trains stage one on the cache's training studies; the finished model is written to `RUN/structure/model.safetensors`.
pub fn train_structure(config: &Config, cache: &Cache, run: &Path, resume: bool) -> Result<StructureOutcome> {
    train_structure_for(config, cache, run, Call::alone(resume))
}

/// As [`train_structure`], called as `call` says.
pub fn train_structure_for(config: &Config, cache: &Cache, run: &Path, call: Call) -> Result<StructureOutcome> {
    cache.check(&config.volume)?;
    check_patients(cache)?;
    let folder = RunFolder::create(run.join("structure"))?;
    // the leader's encoded texts are in the cache for the others
    let (stage, mut optimizer) = call.ranks.leader_first(|| StructureStage::start(config, cache))?;
    let mut stage = stage.shared(call.ranks);
    let looped = Loop::new(config, &config.train_structure.training, &folder, call)?;
    let ended = looped.run(&mut stage, &mut optimizer)?;
    if ended.finished {
        let path = folder.path("model.safetensors");
        call.ranks.leader_only(|| weights::save(&path, &stage.observer.tensors(), &std::collections::HashMap::new()))?;
    }
    let queue = match &stage.queue {
        Queue::Features(queue) => (0..config.structure.queries.structures()).map(|s| queue.len(s)).collect(),
        Queue::Reference(_) => Vec::new(),
    };
    Ok(StructureOutcome { ended, studies: [stage.studies.len(), stage.watched.len()], queue })
}

impl<'a> StructureStage<'a> {
    /// The stage and its optimiser before the first step.
    pub fn start(config: &'a Config, cache: &'a Cache) -> Result<(Self, AdamW)> {
        let stage = StructureStage::new(config, cache)?;
        let optimizer = AdamW::new(stage.observer.trainable(), config.train_structure.training.optimizer.clone());
        Ok((stage, optimizer))
    }

    /// The same, each batch shared among `ranks`.
    pub fn shared(self, ranks: &'a dyn Communicator) -> Self {
        StructureStage { ranks, ..self }
    }

    fn new(config: &'a Config, cache: &'a Cache) -> Result<Self> {
        let studies = cache.split(Split::Train);
        let mut watched = cache.split(Split::Validation);
        watched.truncate(WATCHED);
        let batch = config.train_structure.training.batch;
        if studies.len() < batch {
            let what = format!("{} training studies are fewer than train_structure.training.batch {batch}", studies.len());
            return Err(Error::file(cache.root(), what));
        }
        let all: Vec<&CachedStudy> = studies.iter().chain(&watched).copied().collect();
        let (mut features, text_width) = encode_reports(config, &all, Some(cache.root()))?;
        let mut watched_features = features.split_off(studies.len());
        // the mean is the training set's alone
        let means = config.structure.head.centre_text.then(|| structure_means(&features, text_width)).transpose()?;
        // the reference projects raw features; ours are centred and of unit length
        if matches!(config.structure.loss, LossConfig::Ours(_)) {
            centre(&mut features, means.as_ref())?;
            centre(&mut watched_features, means.as_ref())?;
        }
        let mut observer = Observer::fresh(config, text_width)?;
        observer.set_text_mean(means);
        observer.set_recompute(config.train_structure.training.recompute);
        let order = Order::new(studies.len(), config.seed);
        let queue = queue(config);
        let structures = Structures::load(&config.text.structures)?.names().into_iter().map(String::from).collect();
        Ok(StructureStage {
            config,
            cache,
            studies,
            features,
            text_width,
            watched,
            watched_features,
            observer,
            queue,
            order,
            structures,
            ranks: &Alone,
        })
    }

    /// Volumes (n, 1, D, H, W) of a micro-batch; `step`: augmented as that training step says.
    fn volumes(&self, names: &[&str], augment: Option<(u64, usize)>) -> Result<Tensor> {
        let std = self.config.train_structure.intensity_offset;
        let volume = |(index, name): (usize, &&str)| -> Result<Tensor> {
            let volume = self.cache.volume(name)?;
            match augment {
                Some((step, first)) if std > 0.0 => {
                    let normal = Normal::new(0.0, std).map_err(|e| Error::Invalid(format!("train_structure.intensity_offset: {e}")))?;
                    let offset = normal.sample(&mut step_rng(self.config.seed, step, first + index));
                    Ok((volume + offset)?.clamp(-1f32, 1f32)?)
                }
                _ => Ok(volume),
            }
        };
        let volumes: Vec<Tensor> = names.iter().enumerate().map(volume).collect::<Result<_>>()?;
        Ok(Tensor::stack(&volumes, 0)?)
    }

    /// The observations of studies in training step `step`, the first of them its batch's `first`: augmented, with dropout, the same
    /// whenever it is called. -> (n, S, h).
    fn observe(&self, step: u64, first: usize, studies: &[usize]) -> Result<Tensor> {
        let names: Vec<&str> = studies.iter().map(|&index| self.studies[index].name.as_str()).collect();
        let volumes = self.volumes(&names, Some((step, first)))?;
        let mut dropout = step_rng(self.config.seed ^ 0xD0, step, first);
        Ok(self.observer.observe(&volumes, Some(&mut dropout))?.tokens)
    }

    /// All ranks' observations (n, S, h) one after another, without a graph. They leave their device only where there are other ranks.
    fn whole(&self, observed: &[Tensor]) -> Result<Tensor> {
        if self.ranks.size() == 1 {
            return Ok(Tensor::cat(observed, 0)?.detach());
        }
        let queries = &self.config.structure.queries;
        let observed: Vec<Tensor> = observed.iter().map(transfers::to_host).collect::<candle_core::Result<_>>()?;
        let all = self.ranks.gather_rows(&observed, &[queries.structures(), queries.width()])?;
        Ok(transfers::to_device(&all, self.observer.device())?)
    }

    /// The loss over a batch's observations (a leaf), its gradient to them and to the head, and what to log.
    fn contrast(&mut self, tokens: &Var, batch: &[usize], optimizer: &AdamW) -> Result<(Tensor, StepOutcome)> {
        let rows: Vec<_> = batch.iter().map(|&index| &self.features[index]).collect();
        let (features, present) = stack_features(&rows, self.text_width)?;
        let features = transfers::to_device(&features, self.observer.device())?;
        let standardised = match self.observer.standardiser_mut() {
            Some(standardiser) => standardiser.train(tokens.as_tensor())?,
            None => tokens.as_tensor().clone(),
        };
        // the loss, and where its numbers are
        let (loss, parts) = match (&self.config.structure.loss, &self.queue) {
            (LossConfig::Ours(loss), Queue::Features(queue)) => {
                let queue = queue.tensors(self.observer.device())?;
                let contrasted = Contrast { observations: &standardised, features: &features, present: &present, queue: &queue };
                let parts = contrast(self.observer.head(), &contrasted, loss)?;
                (parts.loss.clone(), Some(parts))
            }
            (LossConfig::Reference(loss), Queue::Reference(queue)) => {
                let structures = self.config.structure.queries.structures();
                let flat = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.flatten_to(1)?) };
                let visual = self.observer.head().visual_raw(&flat(&standardised)?)?;
                let text = self.observer.head().text(&flat(&features)?)?;
                let queue = transfers::to_device(&queue.tensor()?, self.observer.device())?;
                (reference_contrast(&visual, &text, &queue, structures, loss)?.loss, None)
            }
            _ => {
                return Err(Error::Invalid(
                    "structure.queue: the reference's loss needs the reference's queue, ours one of features".to_string(),
                ));
            }
        };
        let mut store = loss.backward()?;
        let gradient = store.remove(tokens).map_or_else(|| tokens.zeros_like(), Ok)?;
        let gradients = optimizer.gradients(&mut store);
        let (loss, metrics) = match parts {
            Some(parts) => self.numbers(&parts)?,
            None => (transfers::read_number(&loss)?, Map::new()),
        };
        let outcome = StepOutcome { gradients, loss: f64::from(loss), count: batch.len(), metrics };
        self.push(&rows.into_iter().cloned().collect::<Vec<_>>(), &features)?;
        Ok((gradient, outcome))
    }

    /// A loss and what is to be logged of it.
    fn numbers(&self, parts: &ContrastLoss) -> Result<(f32, Map<String, Value>)> {
        let numbers = parts.read()?;
        let entropy: Vec<f64> = numbers.target_entropy.iter().map(|entropy| f64::from(*entropy)).collect();
        let mut metrics = Map::new();
        metrics.insert("contrastive".into(), json!(numbers.contrastive));
        metrics.insert("divergence".into(), json!(numbers.divergence));
        metrics.extend(by_structure("target_entropy", &self.structures, &entropy));
        metrics.insert("rows".into(), json!(parts.rows));
        metrics.insert("temperature".into(), json!(numbers.temperature));
        Ok((numbers.loss, metrics))
    }

    /// The batch's texts enter the queue, after its loss.
    fn push(&mut self, rows: &[Vec<Option<Vec<f32>>>], features: &Tensor) -> Result<()> {
        match (&mut self.queue, &self.config.structure.loss) {
            (Queue::Features(queue), _) => queue.push(rows),
            (Queue::Reference(queue), LossConfig::Reference(loss)) => {
                queue.update(&self.observer.head().text(features)?.detach(), loss.temperature)?;
            }
            (Queue::Reference(_), LossConfig::Ours(_)) => {}
        }
        Ok(())
    }
}

fn queue(config: &Config) -> Queue {
    let structures = config.structure.queries.structures();
    match config.structure.queue {
        QueueConfig::Ours { length, same_cosine } => Queue::Features(DiversityQueue::new(structures, length, Some(same_cosine))),
        QueueConfig::Fifo { length } => Queue::Features(DiversityQueue::new(structures, length, None)),
        QueueConfig::Reference { length } => {
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            Queue::Reference(ReferenceQueue::new(structures, length, config.structure.head.width, &mut rng))
        }
    }
}

impl Stage for StructureStage<'_> {
    fn name(&self) -> &str {
        "structure"
    }

    fn unit(&self) -> &str {
        "studies"
    }

    /// Features first, then the loss over the whole batch, then gradients micro-batch by micro-batch (GradCache, Gao et al., 2021). With
    /// `recompute` no graph outlives the features: a micro-batch is observed again for its gradients. Ranks observe and learn their share of
    /// the micro-batches; the loss between is that of the whole batch on every rank, and so are the head's gradients, the queue and the
    /// running statistics.
    fn gradients(&mut self, step: u64, optimizer: &AdamW) -> Result<StepOutcome> {
        let (training, threads) = (&self.config.train_structure.training, self.config.at_once());
        let batch = self.order.batch(step, training.batch);
        let parts: Vec<(usize, &[usize])> =
            batch.chunks(training.micro_batch).enumerate().map(|(i, part)| (i * training.micro_batch, part)).collect();
        let own = &parts[self.ranks.share(parts.len())];
        let this = &*self;
        let observed = in_threads(own, threads, |_, (first, part)| {
            let tokens = this.observe(step, *first, part)?;
            Ok(if training.recompute { tokens.detach() } else { tokens })
        })?;
        let tokens = Var::from_tensor(&self.whole(&observed)?)?;
        let (gradient, mut outcome) = self.contrast(&tokens, &batch, optimizer)?;
        let this = &*self;
        let (_, bucket) = sum_in_threads(own, threads, optimizer, |index, (first, part)| {
            let tokens = if training.recompute { this.observe(step, *first, part)? } else { observed[index].clone() };
            let gradient = gradient.narrow(0, *first, part.len())?;
            let mut store = (tokens * gradient)?.sum_all()?.backward()?;
            Ok(((), optimizer.gradients(&mut store)))
        })?;
        outcome.gradients = sum_gradients(outcome.gradients, bucket.over(self.ranks)?.gradients()?)?;
        Ok(outcome)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = match &self.queue {
            Queue::Features(queue) => queue.state()?,
            Queue::Reference(queue) => queue.state()?,
        };
        state.extend(self.observer.statistics());
        Ok(state)
    }

    fn restore(&mut self, checkpoint: &mut Checkpoint) -> Result<()> {
        let source = checkpoint.path.display().to_string();
        if let Some(standardiser) = self.observer.standardiser_mut() {
            standardiser.restore(&source, &mut checkpoint.optimizer)?;
        }
        match &mut self.queue {
            Queue::Features(queue) => queue.restore(&source, &mut checkpoint.optimizer),
            Queue::Reference(queue) => queue.restore(&source, &mut checkpoint.optimizer),
        }
    }

    /// Loss and report-to-volume retrieval among validation studies, entropy of their soft targets, diversity of the queue.
    fn validate(&mut self) -> Result<Validation> {
        let mut measures = self.queue_measures();
        if self.watched.len() < 2 {
            return Ok(Validation { measures, samples: Vec::new() });
        }
        let this = &*self;
        let own = &this.watched[this.ranks.share(this.watched.len())];
        let observed = in_threads(own, this.config.at_once(), |_, study| {
            let observation = this.observer.observe(&this.volumes(&[&study.name], None)?, None)?;
            Ok(this.observer.standardise(&observation.tokens.detach())?.to_dtype(DType::F32)?)
        })?;
        let observations = this.whole(&observed)?;
        let rows: Vec<_> = this.watched_features.iter().collect();
        let (features, present) = stack_features(&rows, this.text_width)?;
        let features = transfers::to_device(&features, self.observer.device())?;
        measures.extend(this.contrast_measures(&observations, &features, &present)?);
        let (visual, text) = (this.observer.head().visual(&observations)?.detach(), this.observer.head().text(&features)?.detach());
        let rule = match this.config.structure.loss {
            LossConfig::Ours(_) => RetrievalRule::MeanOfPresent,
            LossConfig::Reference(_) => RetrievalRule::SumOfAll,
        };
        let reports: Vec<&str> = this.watched.iter().map(|study| study.report.as_str()).collect();
        let scores = retrieval(&report_to_volume_scores(&visual, &text, &present, rule)?, &reports);
        for (k, recall) in &scores.recall_at {
            measures.insert(format!("retrieval_recall_at_{k}"), json!(recall));
        }
        measures.insert("retrieval_volumes".into(), json!(scores.volumes));
        Ok(Validation { measures, samples: Vec::new() })
    }
}

impl StructureStage<'_> {
    /// Mean cosine between a structure's entries; how many steps ago they came (the reference's queue does not know).
    fn queue_measures(&self) -> Map<String, Value> {
        match &self.queue {
            Queue::Features(queue) => {
                let batch = self.config.train_structure.training.batch as f64;
                let age: Vec<f64> = queue.age().into_iter().map(|studies| studies / batch).collect();
                let mut measures = by_structure("queue_similarity", &self.structures, &queue.similarity());
                measures.extend(by_structure("queue_age", &self.structures, &age));
                measures
            }
            Queue::Reference(queue) => by_structure("queue_similarity", &self.structures, &queue.similarity()),
        }
    }

    /// The loss of validation studies among themselves, without the queue; the entropy of their soft targets with it, as training has it.
    /// observations: (n, S, h), features: (n, S, C_text). Nothing enters the queue.
    fn contrast_measures(&self, observations: &Tensor, features: &Tensor, present: &[Vec<bool>]) -> Result<Map<String, Value>> {
        let head = self.observer.head();
        let (loss, entropy) = match (&self.config.structure.loss, &self.queue) {
            (LossConfig::Ours(loss), Queue::Features(queue)) => {
                let among = |queue: &[Option<Tensor>]| contrast(head, &Contrast { observations, features, present, queue }, loss)?.read();
                let entropy = among(&queue.tensors(self.observer.device())?)?.target_entropy.into_iter().map(f64::from).collect();
                (among(&[])?.loss, entropy)
            }
            (LossConfig::Reference(loss), Queue::Reference(queue)) => {
                let visual = head.visual_raw(&observations.flatten_to(1)?)?.detach();
                let text = head.text(&features.flatten_to(1)?)?.detach();
                let among = |queue: &Tensor| reference_contrast(&visual, &text, queue, self.structures.len(), loss);
                let queue = transfers::to_device(&queue.tensor()?, self.observer.device())?;
                let entropy = row_entropies(&among(&queue)?.soft, self.structures.len())?;
                (transfers::read_number(&among(&queue.narrow(1, 0, 0)?)?.loss)?, entropy)
            }
            // refused by the first step
            _ => return Ok(Map::new()),
        };
        let mut measures = by_structure("target_entropy", &self.structures, &entropy);
        measures.insert("validation_loss".into(), json!(loss));
        Ok(measures)
    }
}

/// Mean entropy a structure of soft targets (n S, N), rows study-major.
fn row_entropies(soft: &Tensor, structures: usize) -> Result<Vec<f64>> {
    let rows: Vec<Vec<f32>> = transfers::read_rows(soft)?;
    let entropy = |row: &Vec<f32>| -row.iter().map(|p| f64::from(*p)).map(|p| if p > 0.0 { p * p.ln() } else { 0.0 }).sum::<f64>();
    let mean = |s: usize| {
        let own: Vec<f64> = rows.iter().skip(s).step_by(structures).map(entropy).collect();
        own.iter().sum::<f64>() / own.len() as f64
    };
    Ok((0..structures).map(mean).collect())
}
