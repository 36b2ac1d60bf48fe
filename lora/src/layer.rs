//! The adapter itself, and a frozen module that carries one.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use ctscribe_ops as ops;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::LoraConfig;

/// A and B of one module.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// (r, in).
    pub a: Var,
    /// (out, r).
    pub b: Var,
    /// What B A x is multiplied by.
    pub scale: f64,
    /// Dropout on x in training.
    pub dropout: f64,
}

impl Adapter {
    /// A fresh adapter: A uniform within 1 / sqrt(in) (PEFT's Kaiming-uniform with a = sqrt 5), B zero, so that nothing changes at first.
    pub fn fresh(inputs: usize, outputs: usize, config: &LoraConfig, seed: u64, device: &Device) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bound = 1.0 / (inputs as f32).sqrt();
        let values: Vec<f32> = (0..config.r * inputs).map(|_| rng.random_range(-bound..=bound)).collect();
        let a = Tensor::from_vec(values, (config.r, inputs), device)?;
        Adapter::new(a, Tensor::zeros((outputs, config.r), DType::F32, device)?, config)
    }

    /// An adapter of given A (r, in) and B (out, r).
    pub fn new(a: Tensor, b: Tensor, config: &LoraConfig) -> Result<Self> {
        Ok(Adapter { a: Var::from_tensor(&a)?, b: Var::from_tensor(&b)?, scale: config.scale(), dropout: config.dropout })
    }

    /// scale B A x with gradients. x: (..., in) -> (..., out). `dropout`: the generator of a training step.
    pub fn delta(&self, x: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let dropped = match dropout {
            Some(rng) => ops::dropout(x, self.dropout, rng)?,
            None => x.clone(),
        };
        self.product(&dropped, self.a.as_tensor(), self.b.as_tensor())
    }

    /// scale B A x without gradients. x: (..., in) -> (..., out).
    pub fn delta_detached(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, &self.a.as_detached_tensor(), &self.b.as_detached_tensor())
    }

    /// scale B A: what merging adds to the base's weight (out, in).
    pub fn weight_delta(&self) -> Result<Tensor> {
        self.b.as_detached_tensor().matmul(&self.a.as_detached_tensor())? * self.scale
    }

    // the scale goes to the thin product: r columns, not `out`
    fn product(&self, x: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        ops::linear(&(ops::linear(x, a, None)? * self.scale)?, b, None)
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

impl<M: Module> Adapted<M> {
    /// A module without an adapter.
    pub fn plain(base: M) -> Self {
        Adapted { base, adapter: None }
    }

    /// base(x) + the adapter's delta, with gradients.
    pub fn forward(&self, x: &Tensor, dropout: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let y = self.base.forward(x)?;
        match &self.adapter {
            Some(adapter) => y + adapter.delta(x, dropout)?,
            None => Ok(y),
        }
    }

    /// The same without gradients to the adapter.
    pub fn forward_detached(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.base.forward(x)?;
        match &self.adapter {
            Some(adapter) => y + adapter.delta_detached(x)?,
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Double;
    impl Module for Double {
        fn forward(&self, x: &Tensor) -> Result<Tensor> {
            x * 2.0
        }
    }

    fn config() -> LoraConfig {
        LoraConfig { r: 1, alpha: 2.0, dropout: 0.0, target_modules: vec!["q_proj".into()], rslora: false }
    }

    #[test]
    fn a_new_adapter_equals_its_base_when_the_scale_is_two() {
        let x = Tensor::new(&[[1.0f32, -3.0]], &Device::Cpu).unwrap();
        let adapted = Adapted { base: Double, adapter: Some(Adapter::fresh(2, 2, &config(), 1, &Device::Cpu).unwrap()) };
        assert_eq!(adapted.forward(&x, None).unwrap().to_vec2::<f32>().unwrap(), [[2.0, -6.0]]);
    }

    #[test]
    fn a_trained_adapter_adds_scale_b_a_x_and_merging_adds_the_same() {
        let a = Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[3.0f32], [4.0]], &Device::Cpu).unwrap();
        let adapter = Adapter::new(a, b, &config()).unwrap();
        let x = Tensor::new(&[[1.0f32, -3.0]], &Device::Cpu).unwrap();
        // A x = -5; B A x = (-15, -20); scale 2
        assert_eq!(adapter.delta(&x, None).unwrap().to_vec2::<f32>().unwrap(), [[-30.0, -40.0]]);
        let merged = x.matmul(&adapter.weight_delta().unwrap().t().unwrap()).unwrap();
        assert_eq!(merged.to_vec2::<f32>().unwrap(), [[-30.0, -40.0]]);
    }

    #[test]
    fn targets_are_the_last_part_of_a_path() {
        assert!(config().targets("model.layers.0.self_attn.q_proj"));
        assert!(!config().targets("model.layers.0.self_attn.xq_proj") && !config().targets("model.q_proj.layers"));
    }

    #[test]
    fn rank_stabilised_scale_divides_by_the_root_of_the_rank() {
        let config = LoraConfig { r: 16, alpha: 32.0, rslora: true, ..config() };
        assert_eq!(config.scale(), 8.0);
    }
}
