use candle_core::{Tensor, Var};
use ctscribe_ops::{self as ops, Precision, composed};

use crate::check::{check, noise};

const SIZES: [(&[usize], usize); 4] = [(&[1, 3], 2), (&[7, 16], 5), (&[2, 9, 33], 17), (&[4, 130, 64], 70)];

#[test]
fn linear_equals_its_composed_form() {
    for (shape, outputs) in SIZES {
        let inputs = [noise(shape, 1), noise(&[outputs, shape[shape.len() - 1]], 2), noise(&[outputs], 3)];
        let fused = |x: &[Tensor]| ops::linear(&x[0], &x[1], Some(&x[2]));
        check("linear", &inputs, &fused, &|x| composed::linear(&x[0], &x[1], Some(&x[2])));
        let fused = |x: &[Tensor]| ops::linear(&x[0], &x[1], None);
        check("linear without bias", &inputs[..2], &fused, &|x| composed::linear(&x[0], &x[1], None));
    }
}

#[test]
fn linear_takes_views_of_input_and_weight() {
    let inputs = [noise(&[4, 6, 3], 1), noise(&[4, 5], 2)];
    let turned = |x: &[Tensor]| Ok::<_, candle_core::Error>((x[0].transpose(0, 2)?, x[1].t()?));
    let fused = |x: &[Tensor]| turned(x).and_then(|(x, w)| ops::linear(&x, &w, None));
    check("linear of views", &inputs, &fused, &|x| turned(x).and_then(|(x, w)| composed::linear(&x, &w, None)));
}

#[test]
fn frozen_linear_has_the_input_gradient_of_linear() {
    for (shape, outputs) in SIZES {
        let (w, b) = (noise(&[outputs, shape[shape.len() - 1]], 2), noise(&[outputs], 3));
        let x = [noise(shape, 1)];
        check("frozen", &x, &|x| ops::frozen_linear(&x[0], &w, Some(&b)), &|x| composed::linear(&x[0], &w, Some(&b)));
        check("frozen without bias", &x, &|x| ops::frozen_linear(&x[0], &w, None), &|x| composed::linear(&x[0], &w, None));
    }
}

#[test]
fn frozen_linear_gives_its_weight_no_gradient_even_if_it_is_a_variable() {
    let (x, w) = (Var::from_tensor(&noise(&[3, 4], 1)).unwrap(), Var::from_tensor(&noise(&[2, 4], 2)).unwrap());
    let grads = ops::frozen_linear(&x, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
}

#[test]
fn linear_names_shapes_that_do_not_fit() {
    let error = ops::linear(&noise(&[3, 4], 1), &noise(&[2, 5], 2), None).unwrap_err().to_string();
    assert!(error.contains("[3, 4]") && error.contains("(2, 5)"), "{error}");
}

#[test]
fn a_product_added_to_a_residual_equals_its_composed_form() {
    for (rows, inputs, outputs) in [(1, 3, 2), (8, 70, 33), (300, 130, 65)] {
        let x = [noise(&[rows, inputs], 1), noise(&[outputs, inputs], 2), noise(&[rows, outputs], 3)];
        let fused = |x: &[Tensor]| ops::linear_residual(Precision::F32, &x[0], &x[1], &x[2]);
        check("linear residual", &x, &fused, &|x| composed::linear_residual(&x[0], &x[1], &x[2]));
    }
    let wrong = ops::linear_residual(Precision::F32, &noise(&[2, 3], 1), &noise(&[4, 3], 2), &noise(&[2, 3], 3));
    assert!(wrong.unwrap_err().to_string().contains("residual"));
}
