use candle_core::Tensor;
use ctscribe_ops::{self as ops, ConvPadding, composed};

use crate::check::{check, flat, noise};

#[test]
fn depthwise_conv_equals_its_composed_form() {
    let sizes = [[1, 1, 1, 1, 1], [2, 3, 4, 5, 7], [1, 5, 1, 3, 16], [1, 2, 6, 2, 33], [2, 4, 9, 9, 64]];
    for size in sizes {
        for padding in [ConvPadding::Causal, ConvPadding::Same] {
            let inputs = [noise(&size, 1), noise(&[size[4], 1, 3, 3, 3], 2), noise(&[size[4]], 3)];
            let fused = |x: &[Tensor]| ops::depthwise_conv3d(&x[0], &x[1], &x[2], padding);
            let what = format!("{size:?} {padding:?}");
            check(&what, &inputs, &fused, &|x| composed::depthwise_conv3d(&x[0], &x[1], &x[2], padding));
        }
    }
}

#[test]
fn causal_conv_does_not_look_ahead() {
    let (x, w, b) = (noise(&[1, 4, 3, 3, 2], 1), noise(&[2, 1, 3, 3, 3], 2), noise(&[2], 3));
    let other = Tensor::cat(&[x.narrow(1, 0, 2).unwrap(), noise(&[1, 2, 3, 3, 2], 9)], 1).unwrap();
    let first_two = |x: &Tensor| flat(&ops::depthwise_conv3d(x, &w, &b, ConvPadding::Causal).unwrap().narrow(1, 0, 2).unwrap());
    assert_eq!(first_two(&x), first_two(&other));
}
