//! How an operation is checked: values and gradients against the composed form, gradients against finite differences, twice the same bits.

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform in [-2, 2), from the seed.
pub fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-2.0..2.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

pub type Inputs<'a> = &'a [Tensor];

/// The output and the gradient of each input of `sum(output * upstream)`.
pub fn run(inputs: Inputs, f: &dyn Fn(Inputs) -> Result<Tensor>) -> (Vec<f32>, Vec<Vec<f32>>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let grads = (&y * upstream(&y)).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = |v: &Var| flat(grads.get(v).expect("every input has a gradient"));
    (flat(&y), vars.iter().map(gradient).collect())
}

fn upstream(y: &Tensor) -> Tensor {
    noise(y.dims(), 99)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * scale, "{what}: value {i} is {a}, the composed form has {b}");
    }
}

/// Fails unless `fused` equals `composed` in values and gradients, agrees with finite differences, and repeats its bits.
pub fn check(what: &str, inputs: Inputs, fused: &dyn Fn(Inputs) -> Result<Tensor>, composed: &dyn Fn(Inputs) -> Result<Tensor>) {
    let (y, grads) = run(inputs, fused);
    let (expected_y, expected_grads) = run(inputs, composed);
    assert_close(&format!("{what}: output"), &y, &expected_y);
    for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        assert_close(&format!("{what}: gradient of input {i}"), grad, expected);
        assert!(grad.iter().any(|&g| g != 0.0), "{what}: gradient of input {i} is zero");
        finite_difference(&format!("{what}: input {i}"), inputs, i, grad, fused);
    }
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (again, grads_again) = run(inputs, fused);
    assert_eq!(bits(&y), bits(&again), "{what}: a second run has the same bits");
    for (a, b) in grads.iter().zip(&grads_again) {
        assert_eq!(bits(a), bits(b), "{what}: a second run has the same gradient bits");
    }
}

/// Slope of the loss, summed in f64, along a random direction of one input.
fn finite_difference(what: &str, inputs: Inputs, which: usize, grad: &[f32], f: &dyn Fn(Inputs) -> Result<Tensor>) {
    const STEP: f64 = 4e-3;
    let direction = noise(inputs[which].dims(), 7);
    let loss = |step: f64| -> f64 {
        let mut moved = inputs.to_vec();
        moved[which] = (&inputs[which] + (&direction * step).unwrap()).unwrap();
        let y = f(&moved).unwrap();
        flat(&y).iter().zip(flat(&upstream(&y))).map(|(y, w)| f64::from(*y) * f64::from(w)).sum()
    };
    let slope = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
    let products: Vec<f64> = flat(&direction).iter().zip(grad).map(|(d, g)| f64::from(*d) * f64::from(*g)).collect();
    let expected: f64 = products.iter().sum();
    let scale = products.iter().map(|p| p * p).sum::<f64>().sqrt().max(1.0);
    // f32 outputs over a step of 4e-3: rounding and the third derivative each stay below a hundredth of the gradient's length.
    assert!((slope - expected).abs() < 2e-2 * scale, "{what}: slope {slope}, gradient says {expected}");
}
