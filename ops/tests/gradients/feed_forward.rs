use candle_core::{DType, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Matrix, composed};

use crate::check::{check, flat, noise};

fn weight(rows: usize, columns: usize, seed: u64) -> Tensor {
    (noise(&[rows, columns], seed) * (0.5 / (columns as f64).sqrt())).unwrap()
}

fn composed_form(x: &Tensor, norm: &Tensor, [gate, up, down]: [&Tensor; 3]) -> Result<Tensor> {
    let normed = composed::rms_norm(x, norm, 1e-5)?;
    let hidden = composed::swiglu(&composed::linear(&normed, gate, None)?, &composed::linear(&normed, up, None)?)?;
    x + composed::linear(&hidden, down, None)?
}

#[test]
fn a_frozen_feed_forward_equals_its_composed_form() {
    for (shape, inner) in [(vec![1, 6], 9), (vec![2, 5, 16], 40), (vec![70, 24], 33)] {
        let width = shape[shape.len() - 1];
        let (norm, gate, up, down) = (noise(&[width], 2), weight(inner, width, 3), weight(inner, width, 4), weight(width, inner, 5));
        let matrices = [&gate, &up, &down].map(|weight| Matrix::from_tensor(weight).unwrap());
        check("feed-forward", &[noise(&shape, 1)], &|x| ops::gated_feed_forward(&x[0], &norm, 1e-5, matrices.each_ref()), &|x| {
            composed_form(&x[0], &norm, [&gate, &up, &down])
        });
    }
}

#[test]
fn a_second_backward_pass_gives_the_same_bits_in_bf16_too() {
    let bf16 = |rows, columns, seed| Matrix::from_tensor(&weight(rows, columns, seed).to_dtype(DType::BF16).unwrap()).unwrap();
    let (gate, up, down) = (bf16(48, 32, 3), bf16(48, 32, 4), bf16(32, 48, 5));
    let (x, norm) = (Var::from_tensor(&noise(&[20, 32], 1)).unwrap(), Var::from_tensor(&noise(&[32], 2)).unwrap());
    let loss = ops::gated_feed_forward(&x, &norm, 1e-5, [&gate, &up, &down]).unwrap().sqr().unwrap().sum_all().unwrap();
    let [first, second] = [loss.backward().unwrap(), loss.backward().unwrap()];
    assert_eq!(flat(first.get(&x).unwrap()), flat(second.get(&x).unwrap()));
    assert!(first.get(&norm).is_none(), "the norm is frozen");
}

#[test]
fn a_feed_forward_that_does_not_fit_is_refused_with_all_sizes() {
    let matrix = |rows, columns| Matrix::from_tensor(&weight(rows, columns, 3)).unwrap();
    let (gate, up, down) = (matrix(5, 4), matrix(6, 4), matrix(4, 5));
    let message = ops::gated_feed_forward(&noise(&[2, 4], 1), &noise(&[4], 2), 1e-5, [&gate, &up, &down]).unwrap_err().to_string();
    assert!(message.contains("(5, 4), (6, 4), (4, 5)"), "{message}");
}
