use candle_core::Tensor;
use ctscribe_ops::{self as ops, composed};

use crate::check::{check, flat, noise};

const SHAPES: [&[usize]; 5] = [&[1, 3], &[4, 17], &[2, 3, 64], &[1, 200], &[300, 130]];

#[test]
fn softmax_equals_its_composed_form() {
    for shape in SHAPES {
        check("softmax", &[noise(shape, 1)], &|x| ops::softmax(&x[0]), &|x| composed::softmax(&x[0]));
    }
    let columns = |x: &Tensor| x.t();
    check("softmax of a view", &[noise(&[9, 5], 1)], &|x| ops::softmax(&columns(&x[0])?), &|x| composed::softmax(&columns(&x[0])?));
}

#[test]
fn softmax_of_hidden_places_is_zero_and_of_nothing_nan() {
    let hidden = f32::NEG_INFINITY;
    let x = Tensor::new(&[[1.0, hidden, 1.0], [hidden; 3], [500.0, -500.0, 500.0]], &candle_core::Device::Cpu).unwrap();
    let y = flat(&ops::softmax(&x).unwrap());
    assert_eq!((&y[..3], &y[6..]), (&[0.5, 0.0, 0.5][..], &[0.5, 0.0, 0.5][..]));
    assert!(y[3..6].iter().all(|y| y.is_nan()));
}

#[test]
fn layer_norm_equals_its_composed_form() {
    for shape in SHAPES {
        let c = shape[shape.len() - 1];
        let inputs = [noise(shape, 1), noise(&[c], 2), noise(&[c], 3)];
        let fused = |x: &[Tensor]| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5);
        check("layer norm", &inputs, &fused, &|x| composed::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5));
        let fused = |x: &[Tensor]| ops::layer_norm(&x[0], &x[1], None, 1e-5);
        check("layer norm without bias", &inputs[..2], &fused, &|x| composed::layer_norm(&x[0], &x[1], None, 1e-5));
    }
}

#[test]
fn rms_norm_equals_its_composed_form() {
    for shape in SHAPES {
        let inputs = [noise(shape, 1), noise(&[shape[shape.len() - 1]], 2)];
        check("rms norm", &inputs, &|x| ops::rms_norm(&x[0], &x[1], 1e-6), &|x| composed::rms_norm(&x[0], &x[1], 1e-6));
    }
    let (view, w) = (|x: &Tensor| x.transpose(0, 1), noise(&[6], 2));
    let inputs = [noise(&[5, 3, 6], 1), w];
    check("rms norm of a view", &inputs, &|x| ops::rms_norm(&view(&x[0])?, &x[1], 1e-6), &|x| {
        composed::rms_norm(&view(&x[0])?, &x[1], 1e-6)
    });
}

#[test]
fn l2_normalize_equals_its_composed_form() {
    for shape in SHAPES {
        check("l2", &[noise(shape, 1)], &|x| ops::l2_normalize(&x[0], 1e-12), &|x| composed::l2_normalize(&x[0], 1e-12));
    }
    for shape in SHAPES {
        let inputs = [noise(shape, 1), noise(&[shape[shape.len() - 1]], 2)];
        let composed = |x: &[Tensor]| composed::l2_normalize(&x[0], 1e-12)?.broadcast_mul(&x[1]);
        check("l2, scaled", &inputs, &|x| ops::l2_normalize_scaled(&x[0], &x[1], 1e-12), &composed);
    }
    // one of them has no length at all: a text feature that is the mean of all
    let short = (noise(&[3, 8], 1) * 0.01).unwrap();
    let short = Tensor::cat(&[&short, &short.narrow(0, 0, 1).unwrap().zeros_like().unwrap()], 0).unwrap();
    check("l2, short rows", &[short], &|x| ops::l2_normalize(&x[0], 1.0), &|x| composed::l2_normalize(&x[0], 1.0));
}

#[test]
fn frozen_weights_of_norms_get_no_gradient() {
    let x = candle_core::Var::from_tensor(&noise(&[3, 8], 1)).unwrap();
    let w = noise(&[8], 2);
    let grads = ops::rms_norm(&x, &w, 1e-6).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
}
