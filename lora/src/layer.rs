//! The adapter itself, and a frozen module that carries one.

use std::sync::OnceLock;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use ctscribe_ops::{self as ops, AdaptedMatrix, DropoutMask, LowRank, Matrix, transfers};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::LoraConfig;
use crate::dora::row_norms;

/// The tensors of one module's adapter.
#[derive(Debug, Clone)]
pub struct AdapterTensors {
    /// A (r, in).
    pub a: Tensor,
    /// B (out, r).
    pub b: Tensor,
    /// DoRA's magnitude (out).
    pub magnitude: Option<Tensor>,
}

impl AdapterTensors {
    /// The same on `device`, without a graph.
    pub fn on(&self, device: &Device) -> Result<Self> {
        let on = |tensor: &Tensor| match device.is_cpu() {
            true => transfers::to_host(tensor),
            false => transfers::to_device(&tensor.detach(), device),
        };
        Ok(AdapterTensors { a: on(&self.a)?, b: on(&self.b)?, magnitude: self.magnitude.as_ref().map(on).transpose()? })
    }
}

/// The adapter of one module.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// (r, in).
    pub a: Var,
    /// (out, r).
    pub b: Var,
    /// DoRA: the learned length of each row of the adapted weight (out).
    pub magnitude: Option<Var>,
    /// What B A x is multiplied by.
    pub scale: f64,
    /// Dropout on x in training.
    pub dropout: f64,
}

impl Adapter {
    /// A fresh adapter of the module `base` at `path`: A uniform within 1 / sqrt(in) (PEFT's Kaiming-uniform with a = sqrt 5),
    /// B zero, the magnitude the lengths of the weight's rows, so that nothing changes at first.
    pub fn fresh(base: &impl BaseLinear, path: &str, config: &LoraConfig, seed: u64) -> Result<Self> {
        let ((outputs, inputs), device) = (base.size(), base.device());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (rank, bound) = (config.rank(path), 1.0 / (inputs as f32).sqrt());
        let values: Vec<f32> = (0..rank * inputs).map(|_| rng.random_range(-bound..=bound)).collect();
        let a = transfers::upload(values, (rank, inputs), device)?;
        let b = Tensor::zeros((outputs, rank), DType::F32, device)?;
        let magnitude = if config.dora { Some(row_norms(&base.weight()?, &b.matmul(&a)?)?) } else { None };
        Adapter::new(&AdapterTensors { a, b, magnitude }, path, config)
    }

    /// An adapter of given tensors for the module at `path`.
    pub fn new(tensors: &AdapterTensors, path: &str, config: &LoraConfig) -> Result<Self> {
        let magnitude = tensors.magnitude.as_ref().map(Var::from_tensor).transpose()?;
        let (a, b) = (Var::from_tensor(&tensors.a)?, Var::from_tensor(&tensors.b)?);
        Ok(Adapter { a, b, magnitude, scale: config.scale(path), dropout: config.dropout })
    }

    /// The tensors as they stand.
    pub fn tensors(&self) -> AdapterTensors {
        let magnitude = self.magnitude.as_ref().map(|magnitude| magnitude.as_detached_tensor());
        AdapterTensors { a: self.a.as_detached_tensor(), b: self.b.as_detached_tensor(), magnitude }
    }

    /// The trained tensors, by the names that PEFT's parameters have within the module.
    pub fn vars(&self) -> Vec<(&'static str, Var)> {
        let mut vars = vec![("lora_A.weight", self.a.clone()), ("lora_B.weight", self.b.clone())];
        vars.extend(self.magnitude.iter().map(|magnitude| ("lora_magnitude_vector.weight", magnitude.clone())));
        vars
    }

    /// scale B A x with gradients. x: (..., in) -> (..., out).
    pub fn delta(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, self.a.as_tensor(), self.b.as_tensor())
    }

    /// scale B A x without gradients. x: (..., in) -> (..., out).
    pub fn delta_detached(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, &self.a.as_detached_tensor(), &self.b.as_detached_tensor())
    }

    /// scale B A (out, in).
    pub fn weight_delta(&self) -> Result<Tensor> {
        self.b.as_detached_tensor().matmul(&self.a.as_detached_tensor())? * self.scale
    }

    /// The weight (out, in) that does alone what `base` and the adapter do together.
    pub fn merged(&self, base: &impl BaseLinear) -> Result<Tensor> {
        let (weight, delta) = (base.weight()?.detach(), self.weight_delta()?);
        let adapted = (&weight + &delta)?;
        match &self.magnitude {
            Some(magnitude) => {
                let factor = (magnitude.as_detached_tensor() / row_norms(&weight, &delta)?)?;
                adapted.broadcast_mul(&factor.unsqueeze(1)?)
            }
            None => Ok(adapted),
        }
    }

    /// DoRA's magnitude over the lengths of the adapted weight's rows (out); the gradient goes to the magnitude alone.
    fn factor(&self, magnitude: &Tensor, weight: &Tensor) -> Result<Tensor> {
        magnitude / row_norms(weight, &self.weight_delta()?)?
    }

    /// Whether base and adapter may multiply x together.
    fn multiplies_with(&self, x: &Tensor) -> bool {
        self.magnitude.is_none() && !x.device().is_cpu()
    }

    /// base(x) + scale B A x in one product where the base's device has it (A and B, f32, in the type of x there); DoRA's magnitude wants
    /// the parts. x: (..., in) -> (..., out).
    fn together(&self, base: &impl BaseLinear, x: &Tensor, [a, b]: [&Tensor; 2]) -> Result<Option<Tensor>> {
        match base.matrix() {
            Some(matrix) if self.multiplies_with(x) => {
                matrix.forward_low_rank(x, &a.to_dtype(x.dtype())?, &b.to_dtype(x.dtype())?, self.scale)
            }
            _ => Ok(None),
        }
    }

    // the scale goes to the thin product: r columns, not `out`
    fn product(&self, x: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
        ops::linear(&(ops::linear(x, &a, None)? * self.scale)?, &b, None)
    }
}

/// A frozen linear module without a bias: x -> W x.
pub trait BaseLinear: Module {
    /// (out, in).
    fn size(&self) -> (usize, usize);
    /// The device that multiplies.
    fn device(&self) -> &Device;
    /// W (out, in), f32.
    fn weight(&self) -> Result<Tensor>;
    /// W where it is a frozen matrix that may multiply together with an adapter.
    fn matrix(&self) -> Option<&Matrix> {
        None
    }
}

/// What is needed of an adapter again and again while it does not change: filled at the first use.
#[derive(Debug, Clone, Default)]
pub struct FixedFactor {
    /// DoRA's factor of each row (out).
    rows: OnceLock<Tensor>,
    /// A and B in the type that a device multiplies.
    narrow: OnceLock<[Tensor; 2]>,
    /// A small matrix with the adapter merged into it, for reading.
    merged: OnceLock<Matrix>,
}

impl FixedFactor {
    /// Nothing yet.
    pub fn new() -> Self {
        FixedFactor::default()
    }

    /// What `make` gives the first time, in its place.
    fn filled<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        if let Some(value) = place.get() {
            return Ok(value);
        }
        let value = make()?;
        Ok(place.get_or_init(|| value))
    }
}

/// A frozen module that may carry an adapter.
#[derive(Debug, Clone)]
pub struct Adapted<M> {
    /// The module underneath.
    pub base: M,
    /// Its adapter.
    pub adapter: Option<Adapter>,
}

impl<M: BaseLinear> Adapted<M> {
    /// A module without an adapter.
    pub fn plain(base: M) -> Self {
        Adapted { base, adapter: None }
    }

    /// x: (..., in) -> (..., out), with gradients. `dropout`: the generator of a training step.
    pub fn forward(&self, x: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let Some(adapter) = &self.adapter else { return self.base.forward(x) };
        let dropped = match dropout {
            Some(rng) if adapter.dropout > 0.0 => Some(ops::dropout(x, adapter.dropout, rng)?),
            _ => None,
        };
        if dropped.is_none()
            && let Some(y) = adapter.together(&self.base, x, [adapter.a.as_tensor(), adapter.b.as_tensor()])?
        {
            return Ok(y);
        }
        let y = self.base.forward(x)?;
        let delta = adapter.delta(dropped.as_ref().unwrap_or(x))?;
        let Some(magnitude) = &adapter.magnitude else { return y + delta };
        let factor = adapter.factor(magnitude.as_tensor(), &self.base.weight()?)?.to_dtype(x.dtype())?;
        match dropped {
            // as PEFT: the dropout is on all that the adapter adds, the base's share of it included
            Some(dropped) => {
                let own = self.base.forward(&dropped)?.broadcast_mul(&(&factor - 1.0)?)?;
                (y + own)? + delta.broadcast_mul(&factor)?
            }
            None => (y + delta)?.broadcast_mul(&factor),
        }
    }

    /// What the fused blocks multiply: the frozen matrix in the host's memory with its adapter beside it. `rows`: of its inputs; `dropout`: the
    /// generator of a training step. `None` where the module is none such: see [`Self::is_in_place`].
    pub fn in_place(&self, rows: usize, dropout: Option<&mut ChaCha8Rng>) -> Option<AdaptedMatrix> {
        let matrix = self.base.matrix().filter(|_| self.is_in_place())?.clone();
        let low_rank = self.adapter.as_ref().map(|Adapter { a, b, scale, dropout: p, .. }| LowRank {
            a: a.as_tensor().clone(),
            b: b.as_tensor().clone(),
            scale: *scale,
            dropout: dropout.filter(|_| *p > 0.0).map(|rng| DropoutMask::draw(rows * self.base.size().1, *p, rng)),
        });
        Some(AdaptedMatrix { matrix, low_rank })
    }

    /// As [`Self::in_place`], for reading while the adapter does not change: a matrix that is [copied](Matrix::is_copied_for_reading) for it
    /// has the adapter merged into the copy, any other beside it.
    pub fn for_reading(&self, fixed: &FixedFactor) -> Result<Option<AdaptedMatrix>> {
        let copied = self.base.matrix().filter(|matrix| matrix.is_copied_for_reading());
        let (Some(adapter), Some(matrix)) = (&self.adapter, copied) else {
            return Ok(self.in_place(0, None).map(AdaptedMatrix::for_reading));
        };
        let merge = || Ok(matrix.with_weight(&adapter.merged(&self.base)?)?.for_reading());
        Ok(Some(FixedFactor::filled(&fixed.merged, merge)?.into()))
    }

    /// Whether it is a frozen matrix in the host's memory that carries LoRA or nothing; DoRA needs the whole weight.
    pub fn is_in_place(&self) -> bool {
        let plain = self.adapter.as_ref().is_none_or(|adapter| adapter.magnitude.is_none());
        plain && self.base.matrix().is_some_and(Matrix::in_place)
    }

    /// The same without gradients to the adapter, which does not change while `fixed` is in use.
    pub fn forward_detached(&self, x: &Tensor, fixed: &FixedFactor) -> Result<Tensor> {
        if let Some(adapter) = self.adapter.as_ref().filter(|adapter| adapter.multiplies_with(x)) {
            let narrow = || Ok([adapter.a.as_detached_tensor().to_dtype(x.dtype())?, adapter.b.as_detached_tensor().to_dtype(x.dtype())?]);
            let [a, b] = FixedFactor::filled(&fixed.narrow, narrow)?;
            if let Some(y) = adapter.together(&self.base, x, [a, b])? {
                return Ok(y);
            }
        }
        self.adapt_detached(self.base.forward(x)?, x, fixed)
    }

    /// As [`Self::forward_detached`], `y` being what the base makes of x.
    pub fn adapt_detached(&self, y: Tensor, x: &Tensor, fixed: &FixedFactor) -> Result<Tensor> {
        let Some(adapter) = &self.adapter else { return Ok(y) };
        let sum = (y + adapter.delta_detached(x)?)?;
        let Some(magnitude) = &adapter.magnitude else { return Ok(sum) };
        // the lengths cost r times a token's own product
        let factor = || adapter.factor(&magnitude.as_detached_tensor(), &self.base.weight()?)?.to_dtype(x.dtype());
        sum.broadcast_mul(FixedFactor::filled(&fixed.rows, factor)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Targets;

    const PATH: &str = "layers.0.q_proj";

    struct Base(Tensor);
    impl Module for Base {
        fn forward(&self, x: &Tensor) -> Result<Tensor> {
            ops::frozen_linear(x, &self.0, None)
        }
    }
    impl BaseLinear for Base {
        fn size(&self) -> (usize, usize) {
            self.0.dims2().unwrap()
        }
        fn device(&self) -> &Device {
            self.0.device()
        }
        fn weight(&self) -> Result<Tensor> {
            Ok(self.0.clone())
        }
    }

    fn config(dora: bool) -> LoraConfig {
        LoraConfig { dora, ..LoraConfig::plain(1, 2.0, Targets::Names(vec!["q_proj".into()])) }
    }

    /// (2, 2), rows of lengths 5 and 13.
    fn weight() -> Tensor {
        Tensor::new(&[[3.0f32, 4.0], [5.0, 12.0]], &Device::Cpu).unwrap()
    }

    fn x() -> Tensor {
        Tensor::new(&[[1.0f32, -3.0]], &Device::Cpu).unwrap()
    }

    fn trained(dora: bool) -> Adapter {
        let a = Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[3.0f32], [4.0]], &Device::Cpu).unwrap();
        let magnitude = dora.then(|| Tensor::new(&[2.0f32, 3.0], &Device::Cpu).unwrap());
        Adapter::new(&AdapterTensors { a, b, magnitude }, PATH, &config(dora)).unwrap()
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.to_vec2().unwrap()
    }

    #[test]
    fn a_new_adapter_equals_its_base_when_the_scale_is_two() {
        for dora in [false, true] {
            let adapter = Adapter::fresh(&Base(weight()), PATH, &config(dora), 1).unwrap();
            let adapted = Adapted { base: Base(weight()), adapter: Some(adapter) };
            assert_eq!(rows(&adapted.forward(&x(), None).unwrap()), [[-9.0, -31.0]]);
            assert_eq!(rows(&adapted.forward_detached(&x(), &FixedFactor::new()).unwrap()), [[-9.0, -31.0]]);
        }
    }

    #[test]
    fn a_trained_adapter_adds_scale_b_a_x_and_merging_adds_the_same() {
        let adapter = trained(false);
        // A x = -5; B A x = (-15, -20); scale 2
        assert_eq!(rows(&adapter.delta(&x()).unwrap()), [[-30.0, -40.0]]);
        assert_eq!(rows(&x().matmul(&adapter.merged(&Base(weight())).unwrap().t().unwrap()).unwrap()), [[-39.0, -71.0]]);
    }

    struct Small(Matrix);
    impl Module for Small {
        fn forward(&self, x: &Tensor) -> Result<Tensor> {
            self.0.forward(x)
        }
    }
    impl BaseLinear for Small {
        fn size(&self) -> (usize, usize) {
            self.0.size()
        }
        fn device(&self) -> &Device {
            self.0.device()
        }
        fn weight(&self) -> Result<Tensor> {
            self.0.to_tensor()
        }
        fn matrix(&self) -> Option<&Matrix> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_small_matrix_is_read_with_its_adapter_merged() {
        for dora in [false, true] {
            let base = Small(Matrix::from_tensor(&weight()).unwrap());
            let mut adapted = Adapted { base, adapter: Some(trained(dora)) };
            let expected = adapted.forward(&x(), None).unwrap().to_vec2::<f32>().unwrap();
            let fixed = FixedFactor::new();
            // the adapter is fixed at the first use
            for _ in 0..2 {
                let reading = adapted.for_reading(&fixed).unwrap().unwrap();
                assert!(reading.low_rank.is_none());
                let [y] = ops::adapted_products(&x(), [reading]).unwrap();
                let found = y.to_vec2::<f32>().unwrap();
                assert!(found[0].iter().zip(&expected[0]).all(|(a, b)| (a - b).abs() < 1e-4), "{dora}: {found:?} {expected:?}");
                adapted.adapter = Some(Adapter { scale: 0.0, ..trained(dora) });
            }
            // one of 16 bits keeps its adapter beside it, or, of DoRA, is no matrix to read by itself
            let narrow = Small(Matrix::from_tensor(&weight().to_dtype(DType::BF16).unwrap()).unwrap());
            let adapted = Adapted { base: narrow, adapter: Some(trained(dora)) };
            let reading = adapted.for_reading(&FixedFactor::new()).unwrap();
            assert_eq!(reading.map(|own| own.low_rank.is_some()), (!dora).then_some(true));
        }
    }

    #[test]
    fn dora_gives_every_row_of_the_adapted_weight_its_magnitude_and_merging_the_same() {
        let adapted = Adapted { base: Base(weight()), adapter: Some(trained(true)) };
        // W + 2 B A = ((9, 16), (13, 28)); times x: (-39, -71); rows scaled to lengths 2 and 3
        let expected = [-39.0 * 2.0 / (81.0f32 + 256.0).sqrt(), -71.0 * 3.0 / (169.0f32 + 784.0).sqrt()];
        let merged = x().matmul(&adapted.adapter.as_ref().unwrap().merged(&Base(weight())).unwrap().t().unwrap()).unwrap();
        let found = [adapted.forward(&x(), None).unwrap(), adapted.forward_detached(&x(), &FixedFactor::new()).unwrap(), merged];
        for found in found {
            let found = rows(&found);
            assert!((found[0][0] - expected[0]).abs() < 1e-5 && (found[0][1] - expected[1]).abs() < 1e-5, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn the_magnitude_learns_at_the_first_step_and_the_base_never() {
        let weight = Var::from_tensor(&weight()).unwrap();
        let adapter = Adapter::fresh(&Base(weight.as_tensor().clone()), PATH, &config(true), 1).unwrap();
        let adapted = Adapted { base: Base(weight.as_tensor().clone()), adapter: Some(adapter) };
        let store = adapted.forward(&x(), None).unwrap().sum_all().unwrap().backward().unwrap();
        let adapter = adapted.adapter.as_ref().unwrap();
        // d y_i / d m_i = (W x)_i / |W_i|
        let gradient: Vec<f32> = store.get(adapter.magnitude.as_ref().unwrap()).unwrap().to_vec1().unwrap();
        assert_eq!(gradient, [-9.0 / 5.0, -31.0 / 13.0]);
        assert!(store.get(&weight).is_none(), "the base is frozen");
    }

    #[test]
    fn doras_dropout_is_on_all_that_the_adapter_adds() {
        let config = LoraConfig { dropout: 0.5, ..config(true) };
        let adapter = Adapter { dropout: config.dropout, ..trained(true) };
        let norms: Vec<f32> = row_norms(&weight(), &adapter.weight_delta().unwrap()).unwrap().to_vec1().unwrap();
        let adapted = Adapted { base: Base(weight()), adapter: Some(adapter) };
        for seed in 0..8 {
            let dropped = rows(&ops::dropout(&x(), 0.5, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap())[0].clone();
            let found = rows(&adapted.forward(&x(), Some(&mut ChaCha8Rng::seed_from_u64(seed))).unwrap())[0].clone();
            for (row, (w, b)) in [([3.0, 4.0], 3.0), ([5.0, 12.0], 4.0)].into_iter().enumerate() {
                let (factor, own) = ([2.0, 3.0][row] / norms[row], w[0] * dropped[0] + w[1] * dropped[1]);
                let delta = 2.0 * b * (dropped[0] + 2.0 * dropped[1]);
                let expected = [-9.0, -31.0][row] + (factor - 1.0) * own + factor * delta;
                assert!((found[row] - expected).abs() < 1e-5, "{found:?} {expected}");
            }
        }
    }
}
