use candle_core::{Device, Tensor, Var};
use ctscribe_ops::{self as ops, Matrix, composed};

use crate::check::{check, flat, noise};

fn labels(n: usize, vocabulary: usize) -> (Tensor, Tensor) {
    let targets: Vec<u32> = (0..n).map(|i| (i * 7 % vocabulary) as u32).collect();
    let weights: Vec<f32> = (0..n).map(|i| [1.0, 0.0, 0.25][i % 3]).collect();
    (Tensor::new(targets, &Device::Cpu).unwrap(), Tensor::new(weights, &Device::Cpu).unwrap())
}

#[test]
fn cross_entropy_equals_its_composed_form() {
    for (n, v) in [(1, 2), (5, 3), (17, 101), (40, 1000)] {
        let (targets, weights) = labels(n, v);
        check("cross-entropy", &[noise(&[n, v], 1)], &|x| ops::cross_entropy(&x[0], &targets, &weights), &|x| {
            composed::cross_entropy(&x[0], &targets, &weights)
        });
    }
}

#[test]
fn linear_cross_entropy_equals_the_loss_of_whole_logits() {
    // 120,000 words: at most 61 rows a chunk, so that 100 counted rows take two of 50
    for (n, d, v) in [(1, 3, 4), (20, 16, 50), (150, 4, 120_000)] {
        let (targets, weights) = labels(n, v);
        let head = noise(&[v, d], 2);
        let whole = |x: &Tensor| composed::cross_entropy(&composed::linear(x, &head, None)?, &targets, &weights);
        let x = [noise(&[n, d], 1)];
        check("linear cross-entropy", &x, &|x| ops::linear_cross_entropy(&x[0], &Matrix::from_tensor(&head)?, &targets, &weights), &|x| {
            whole(&x[0])
        });
    }
}

#[test]
fn normed_cross_entropy_equals_norm_and_loss_and_leaves_a_norm_that_learns_to_them() {
    for (n, d, v) in [(1, 3, 4), (20, 16, 50), (33, 48, 300)] {
        let ((targets, weights), head) = (labels(n, v), noise(&[v, d], 2));
        let (frozen, matrix) = (noise(&[d], 3), Matrix::from_tensor(&head).unwrap());
        let composed = |x: &Tensor, norm: &Tensor| {
            composed::cross_entropy(&composed::linear(&composed::rms_norm(x, norm, 1e-5)?, &head, None)?, &targets, &weights)
        };
        let loss = |x: &Tensor, norm: &Tensor| ops::normed_cross_entropy(x, (norm, 1e-5), &matrix, [&targets, &weights]);
        check("normed cross-entropy", &[noise(&[n, d], 1)], &|x| loss(&x[0], &frozen), &|x| composed(&x[0], &frozen));
        check("with a norm that learns", &[noise(&[n, d], 1), frozen.clone()], &|x| loss(&x[0], &x[1]), &|x| composed(&x[0], &x[1]));
    }
}

#[test]
fn ignored_rows_and_the_frozen_head_get_no_gradient() {
    let (targets, weights) = labels(6, 5);
    let (x, head) = (Var::from_tensor(&noise(&[6, 3], 1)).unwrap(), Var::from_tensor(&noise(&[5, 3], 2)).unwrap());
    let grads = ops::linear_cross_entropy(&x, &Matrix::from_tensor(&head).unwrap(), &targets, &weights).unwrap().backward().unwrap();
    let dx = flat(grads.get(&x).unwrap());
    assert!(grads.get(&head).is_none());
    assert!(dx.chunks(3).enumerate().all(|(i, row)| row.iter().all(|&g| (g == 0.0) == (i % 3 == 1))));
}

#[test]
fn a_target_outside_the_vocabulary_is_named() {
    let (_, weights) = labels(3, 5);
    let targets = Tensor::new(&[0u32, 9, 5], &Device::Cpu).unwrap();
    let error = ops::cross_entropy(&noise(&[3, 5], 1), &targets, &weights).unwrap_err().to_string();
    assert!(error.contains("target 5 is outside the vocabulary of 5"), "{error}");
}
