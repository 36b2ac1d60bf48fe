use candle_core::Tensor;
use ctscribe_ops::{self as ops, composed};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::check::{check, flat, noise};

const SHAPES: [&[usize]; 4] = [&[1], &[3, 7], &[2, 5, 33], &[5, 70, 101]];

#[test]
fn gelu_equals_its_composed_form() {
    for shape in SHAPES {
        check("gelu", &[noise(shape, 1)], &|x| ops::gelu(&x[0]), &|x| composed::gelu(&x[0]));
        let wide = (noise(shape, 1) * 5.0).unwrap();
        check("gelu, wide", &[wide], &|x| ops::gelu(&x[0]), &|x| composed::gelu(&x[0]));
    }
}

#[test]
fn gates_equal_their_composed_forms() {
    for shape in SHAPES {
        let inputs = [noise(shape, 1), noise(shape, 2)];
        check("geglu", &inputs, &|x| ops::geglu(&x[0], &x[1]), &|x| composed::geglu(&x[0], &x[1]));
        check("swiglu", &inputs, &|x| ops::swiglu(&x[0], &x[1]), &|x| composed::swiglu(&x[0], &x[1]));
    }
}

#[test]
fn gates_take_the_halves_of_one_tensor() {
    let halves = |x: &Tensor| (x.narrow(1, 0, 9).unwrap(), x.narrow(1, 9, 9).unwrap());
    let fused = |x: &[Tensor]| ops::geglu(&halves(&x[0]).0, &halves(&x[0]).1);
    check("geglu of halves", &[noise(&[5, 18], 1)], &fused, &|x| composed::geglu(&halves(&x[0]).0, &halves(&x[0]).1));
}

#[test]
fn geglu_of_halves_equals_its_composed_form() {
    for shape in [&[1usize, 2] as &[usize], &[5, 18], &[2, 3, 66], &[300, 202]] {
        check("geglu halves", &[noise(shape, 1)], &|x| ops::geglu_halves(&x[0]), &|x| composed::geglu_halves(&x[0]));
    }
    assert!(ops::geglu_halves(&noise(&[2, 7], 1)).unwrap_err().to_string().contains("two halves"));
}

#[test]
fn rope_turns_forward_and_its_gradient_back() {
    for shape in [[1, 1, 1, 2], [2, 3, 7, 10], [2, 4, 65, 64]] {
        let (cos, sin) = ops::rope_tables(3, shape[2], shape[3], 1e4, &candle_core::Device::Cpu).unwrap();
        check("rope", &[noise(&shape, 1)], &|x| ops::rope(&x[0], &cos, &sin), &|x| composed::rope(&x[0], &cos, &sin));
    }
    let (cos, sin) = ops::rope_tables(0, 7, 6, 1e4, &candle_core::Device::Cpu).unwrap();
    let turned = |x: &Tensor| x.transpose(1, 2);
    let x = [noise(&[2, 7, 3, 6], 1)];
    check("rope of a view", &x, &|x| ops::rope(&turned(&x[0])?, &cos, &sin), &|x| composed::rope(&turned(&x[0])?, &cos, &sin));
}

#[test]
fn dropout_repeats_with_its_seed_and_passes_the_gradient_of_what_it_keeps() {
    let x = noise(&[40, 1000], 1);
    let dropped = |x: &Tensor| ops::dropout(x, 0.25, &mut ChaCha8Rng::seed_from_u64(3));
    let mask = dropped(&x.ones_like().unwrap()).unwrap();
    check("dropout", &[x], &|x| dropped(&x[0]), &|x| &x[0] * &mask);
    let kept = flat(&mask).iter().filter(|&&m| m > 0.0).count() as f64 / 40_000.0;
    assert!((kept - 0.75).abs() < 0.01, "kept {kept}");
    assert!(flat(&mask).iter().all(|&m| m == 0.0 || m == 4.0 / 3.0));
}
