//! The named tensors of one model: loaded from a checkpoint, or drawn from a seeded generator.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use ctscribe_ops::{Matrix, transfers};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Uniform};
use sha2::{Digest, Sha256};

use super::{BasePrecision, Mapped};
use crate::{Error, Result};

/// How a tensor starts when no checkpoint gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All of one value.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in `[-bound, bound]`.
    Uniform(f64),
}

impl Init {
    /// PyTorch's default for a linear layer's weight and bias: uniform within 1 / sqrt(inputs).
    pub fn linear(inputs: usize) -> Self {
        Init::Uniform(1.0 / (inputs as f64).sqrt())
    }
}

/// What a checkpoint gave, and what it did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Tensors that the model took, with their shapes.
    pub loaded: Vec<(String, Vec<usize>)>,
    /// Tensors that the model wants and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Tensors that the checkpoint has and the model does not want.
    pub unexpected: Vec<String>,
    /// Tensors of another shape: name, expected, found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

/// Where the tensors come from.
#[derive(Debug, Clone)]
enum Checkpoint {
    Read(Arc<HashMap<String, Tensor>>),
    Mapped(Arc<Mapped>),
}

impl Checkpoint {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Checkpoint::Read(tensors) => tensors.get(name).map(Tensor::dims),
            Checkpoint::Mapped(mapped) => mapped.shape(name),
        }
    }

    fn names(&self) -> Vec<&String> {
        match self {
            Checkpoint::Read(tensors) => tensors.keys().collect(),
            Checkpoint::Mapped(mapped) => mapped.names().collect(),
        }
    }

    /// A copy, so that a trained tensor never writes into the checkpoint.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Checkpoint::Read(tensors) => Ok(tensors[name].copy()?),
            Checkpoint::Mapped(mapped) => mapped.tensor(name),
        }
    }

    fn matrix(&self, name: &str) -> Result<Matrix> {
        match self {
            Checkpoint::Read(tensors) => Ok(Matrix::from_tensor(&tensors[name])?),
            Checkpoint::Mapped(mapped) => mapped.matrix(name),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    trainable: Vec<(String, Var)>,
    frozen: Vec<(String, Tensor)>,
    asked: BTreeSet<String>,
    report: LoadReport,
}

/// The tensors of one model by name. Cheap to clone; `at` descends into a part of the model.
///
/// The same model code serves a fresh model (`Params::fresh`) and a loaded one (`Params::loaded`). A fresh tensor depends
/// on the seed and its own full name only, so that adding a layer moves no other.
#[derive(Debug, Clone)]
pub struct Params {
    source: Arc<str>,
    checkpoint: Option<Checkpoint>,
    state: Arc<Mutex<State>>,
    prefix: String,
    seed: u64,
    frozen: bool,
    device: Device,
    dtype: DType,
    precision: BasePrecision,
}

impl Params {
    /// A fresh, trainable model in f32, drawn from `seed`.
    pub fn fresh(seed: u64, device: &Device) -> Self {
        Params {
            source: "fresh model".into(),
            checkpoint: None,
            state: Arc::default(),
            prefix: String::new(),
            seed,
            frozen: false,
            device: device.clone(),
            dtype: DType::F32,
            precision: BasePrecision::Auto,
        }
    }

    /// A trainable model whose tensors are `tensors` (f32); `source` names them in errors.
    pub fn loaded(source: impl Into<String>, tensors: HashMap<String, Tensor>, device: &Device) -> Self {
        let checkpoint = Some(Checkpoint::Read(Arc::new(tensors)));
        Params { source: source.into().into(), checkpoint, ..Params::fresh(0, device) }
    }

    /// A frozen model whose tensors stay in their files; matrices are multiplied as they lie there.
    pub fn mapped(mapped: Mapped, device: &Device) -> Self {
        let (source, checkpoint) = (mapped.source().into(), Some(Checkpoint::Mapped(Arc::new(mapped))));
        Params { source, checkpoint, ..Params::fresh(0, device) }.frozen()
    }

    /// The same, but nothing is trainable: no gradient is kept for these tensors.
    pub fn frozen(mut self) -> Self {
        self.frozen = true;
        self
    }

    /// The same, with tensors of another type (frozen bases in bf16, say).
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The same, with matrices that are multiplied so.
    pub fn with_precision(mut self, precision: BasePrecision) -> Self {
        self.precision = precision;
        self
    }

    /// The part of the model called `name`.
    pub fn at(&self, name: impl Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Params { prefix, ..self.clone() }
    }

    /// Whether these tensors are frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The full name of tensor `name` of this part.
    pub fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether the checkpoint has tensor `name` (false for a fresh model).
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.shape(&self.full_name(name)).is_some())
    }

    /// Tensor `name` of shape `shape`. A missing or misshapen tensor is noted (see [`Params::finish`]) and drawn from `init`.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let full = self.full_name(name);
        let value = match self.take(&full, shape)? {
            Some(tensor) => tensor,
            None => self.placed(&draw(init, shape, self.seed, &full)?)?,
        };
        let mut state = self.lock();
        if self.frozen {
            state.frozen.push((full, value.clone()));
            return Ok(value);
        }
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        state.trainable.push((full, var));
        Ok(tensor)
    }

    /// Tensor `name`, never trainable whatever the rest is (a buffer).
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.clone().frozen().get(name, shape, init)
    }

    /// Tolerates tensor `name` in the checkpoint though the model has no use for it.
    pub fn unused(&self, name: &str) {
        self.lock().asked.insert(self.full_name(name));
    }

    /// Matrix `name` of size (out, in), frozen whatever the rest is: where the checkpoint has it, as it lies there ([`Matrix::on`]
    /// a device other than the processor). `init` as for [`Params::get`].
    pub fn matrix(&self, name: &str, (outputs, inputs): (usize, usize), init: Init) -> Result<Matrix> {
        let (full, shape) = (self.full_name(name), [outputs, inputs]);
        let matrix = match self.find(&full, &shape) {
            Some(checkpoint) => checkpoint.matrix(&full)?,
            None => Matrix::from_tensor(&draw(init, &shape, self.seed, &full)?.to_dtype(self.dtype)?)?,
        };
        Ok(self.precision.of(matrix).on(&self.device)?)
    }

    fn take(&self, full: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let tensor = self.find(full, shape).map(|checkpoint| checkpoint.tensor(full)).transpose()?;
        tensor.map(|tensor| self.placed(&tensor)).transpose()
    }

    /// A tensor of the host's where this model's lie, in their type.
    fn placed(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(transfers::to_device(tensor, &self.device)?.to_dtype(self.dtype)?)
    }

    /// The checkpoint, if it has a tensor of this name and shape; what it has is noted.
    fn find(&self, full: &str, shape: &[usize]) -> Option<&Checkpoint> {
        let mut state = self.lock();
        state.asked.insert(full.to_string());
        let checkpoint = self.checkpoint.as_ref()?;
        match checkpoint.shape(full) {
            Some(found) if found == shape => {
                state.report.loaded.push((full.to_string(), shape.to_vec()));
                return Some(checkpoint);
            }
            Some(found) => state.report.misshapen.push((full.to_string(), shape.to_vec(), found.to_vec())),
            None => state.report.missing.push(full.to_string()),
        }
        None
    }

    /// The trainable tensors, in the order in which the model asked for them.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.lock().trainable.clone()
    }

    /// All tensors of the model by name: what a checkpoint of it holds.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let state = self.lock();
        let trained = state.trainable.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        trained.chain(state.frozen.iter().cloned()).collect()
    }

    /// What was loaded, missing, unexpected and misshapen so far.
    pub fn report(&self) -> LoadReport {
        let state = self.lock();
        let mut report = state.report.clone();
        if let Some(checkpoint) = &self.checkpoint {
            report.unexpected = checkpoint.names().into_iter().filter(|name| !state.asked.contains(*name)).cloned().collect();
            report.unexpected.sort();
        }
        report
    }

    /// Ends loading: an error that lists every missing, unexpected and misshapen tensor, or the report.
    pub fn finish(&self) -> Result<LoadReport> {
        let report = self.report();
        if report.is_exact() { Ok(report) } else { Err(Error::Weights { source_name: self.source.to_string(), what: report.faults() }) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl LoadReport {
    /// Whether the checkpoint and the model hold the same tensors of the same shapes.
    pub fn is_exact(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }

    /// The faults, one a line.
    pub fn faults(&self) -> String {
        let missing = self.missing.iter().map(|name| format!("missing {name}"));
        let unexpected = self.unexpected.iter().map(|name| format!("unexpected {name}"));
        let misshapen = self.misshapen.iter().map(|(name, want, have)| format!("{name}: expected {want:?}, found {have:?}"));
        missing.chain(unexpected).chain(misshapen).collect::<Vec<_>>().join("; ")
    }
}

/// A generator of its own for what `parts` name in the model of `seed`: a tensor, a piece of one.
pub(super) fn generator(seed: u64, parts: &[&[u8]]) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    parts.iter().for_each(|part| hasher.update(part));
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

fn draw(init: Init, shape: &[usize], seed: u64, name: &str) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let mut rng = generator(seed, &[name.as_bytes()]);
    let values: Vec<f32> = match init {
        Init::Zeros => vec![0.0; count],
        Init::Ones => vec![1.0; count],
        Init::Constant(value) => vec![value as f32; count],
        Init::Normal(std) => {
            let normal = Normal::new(0.0, std).map_err(|e| Error::Invalid(format!("{name}: standard deviation {std}: {e}")))?;
            (0..count).map(|_| normal.sample(&mut rng) as f32).collect()
        }
        Init::Uniform(bound) => {
            let uniform = Uniform::new_inclusive(-bound, bound).map_err(|e| Error::Invalid(format!("{name}: bound {bound}: {e}")))?;
            (0..count).map(|_| uniform.sample(&mut rng) as f32).collect()
        }
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_tensor_depends_on_its_seed_and_name_only() {
        let (one, two) = (Params::fresh(7, &Device::Cpu), Params::fresh(7, &Device::Cpu));
        two.get("other", &[5], Init::Normal(1.0)).unwrap();
        let a = one.at("layer").get("weight", &[3, 2], Init::Normal(1.0)).unwrap();
        let b = two.at("layer").get("weight", &[3, 2], Init::Normal(1.0)).unwrap();
        assert_eq!(a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
        let c = two.at("layer").get("bias", &[3, 2], Init::Normal(1.0)).unwrap();
        assert_ne!(a.to_vec2::<f32>().unwrap(), c.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn finish_lists_missing_unexpected_and_misshapen_tensors_at_once() {
        let tensor = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        let tensors = HashMap::from([("a".to_string(), tensor.clone()), ("x".to_string(), tensor)]);
        let params = Params::loaded("clip.pt", tensors, &Device::Cpu);
        params.get("a", &[3], Init::Zeros).unwrap();
        params.get("b", &[3], Init::Zeros).unwrap();
        let message = params.finish().unwrap_err().to_string();
        assert_eq!(message, "clip.pt: missing b; unexpected x; a: expected [3], found [2, 2]");
    }
}
