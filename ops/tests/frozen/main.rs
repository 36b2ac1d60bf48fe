//! A frozen weight costs no gradient: no memory is taken for one, so none is computed.

mod allocations;

use candle_core::{DType, Device, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Attention, ConvPadding};

use allocations::tensors_allocated;

fn values(shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|i: usize| (i % 13) as f32 * 0.1 - 0.6).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Fails unless `f`, forward and backward, takes memory of each weight's size for trained weights, none for frozen ones, and leaves no
/// gradient of a frozen weight's shape. x: any shape.
fn check(what: &str, x: &[usize], weights: &[&[usize]], f: fn(&Tensor, &[Tensor], bool) -> Result<Tensor>) {
    let counts: Vec<usize> = weights.iter().map(|shape| shape.iter().product()).collect();
    for frozen in [true, false] {
        let x = Var::from_tensor(&values(x)).unwrap();
        let vars: Vec<Var> = weights.iter().map(|shape| Var::from_tensor(&values(shape)).unwrap()).collect();
        let weights: Vec<Tensor> = vars.iter().map(|var| if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() }).collect();
        let seen = tensors_allocated(&counts, || {
            let store = f(&x, &weights, frozen).unwrap().sum_all().unwrap().backward().unwrap();
            assert!(store.get(&x).is_some(), "{what}: no gradient of the input");
            let gradients: Vec<&Tensor> = store.get_ids().map(|id| store.get_id(*id).unwrap()).collect();
            let shaped = |weight: &Tensor| gradients.iter().any(|gradient| gradient.shape() == weight.shape());
            assert!(weights.iter().all(|weight| shaped(weight) != frozen), "{what}, frozen {frozen}: shapes in the store");
        });
        assert!(seen.iter().all(|&seen| (seen == 0) == frozen), "{what}, frozen {frozen}: tensors of the weights' sizes {seen:?}");
    }
}

fn linear(x: &Tensor, w: &[Tensor], frozen: bool) -> Result<Tensor> {
    if frozen { ops::frozen_linear(x, &w[0], w.get(1)) } else { ops::linear(x, &w[0], w.get(1)) }
}

fn head_loss(x: &Tensor, w: &[Tensor], frozen: bool) -> Result<Tensor> {
    let (targets, weights) = (Tensor::new(&[5u32, 0, 7], &Device::Cpu)?, Tensor::ones(3, DType::F32, &Device::Cpu)?);
    match frozen {
        true => ops::linear_cross_entropy(x, &ops::Matrix::from_tensor(&w[0])?, &targets, &weights),
        false => ops::cross_entropy(&ops::linear(x, &w[0], None)?, &targets, &weights),
    }
}

#[test]
fn no_memory_is_taken_for_the_gradient_of_a_frozen_weight() {
    check("linear", &[3, 23], &[&[29, 23], &[29]], linear);
    check("linear without bias", &[2, 3, 23], &[&[29, 23]], linear);
    check("linear cross-entropy", &[3, 31], &[&[41, 31]], head_loss);
    check("rms norm", &[3, 997], &[&[997]], |x, w, _| ops::rms_norm(x, &w[0], 1e-6));
    check("layer norm", &[3, 997], &[&[997], &[997]], |x, w, _| ops::layer_norm(x, &w[0], Some(&w[1]), 1e-6));
    check("attention's bias", &[1, 2, 3, 5], &[&[2, 3, 3]], |x, w, _| {
        ops::attention(x, x, x, &Attention { bias: Some(&w[0]), ..Attention::full(1.0) })
    });
}

#[test]
fn a_frozen_convolution_gives_its_taps_and_bias_no_gradient() {
    // its taps are turned in the forward pass already: their size says nothing, the store does
    let x = Var::from_tensor(&values(&[1, 2, 3, 3, 19])).unwrap();
    let (weight, bias) = (values(&[19, 1, 3, 3, 3]), values(&[19]));
    let y = ops::depthwise_conv3d(&x, &weight, &bias, ConvPadding::Causal).unwrap();
    let store = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(store.get_ids().count(), 1);
    assert!(store.get(&x).is_some());
}
