//! Operations that are for reading alone, against the same in operations one by one.

use candle_core::Tensor;
use ctscribe_ops::{self as ops, Attention, EncoderBlock, EncoderWeights, Precision};

use crate::check::{flat, noise};

/// Queries' norm, query, key and value, output, the two scales, feed-forward's norm, in and out: for `channels`, heads of `width`.
fn weights(channels: usize, (heads, width): (usize, usize), hidden: usize) -> Vec<Tensor> {
    let inner = heads * width;
    let shapes = [
        vec![channels],
        vec![channels],
        vec![inner, channels],
        vec![2 * inner, channels],
        vec![channels, inner],
        vec![width],
        vec![width],
        vec![channels],
        vec![channels],
        vec![2 * hidden, channels],
        vec![channels, hidden],
    ];
    let scaled = |(seed, shape): (usize, &Vec<usize>)| (noise(shape, seed as u64) / (shape[shape.len() - 1] as f64).sqrt()).unwrap();
    shapes.iter().enumerate().map(scaled).collect()
}

fn block(w: &[Tensor], precision: Precision) -> EncoderBlock {
    let weights = EncoderWeights {
        norm: [&w[0], &w[1]],
        to_q: &w[2],
        to_kv: &w[3],
        to_out: &w[4],
        unit_scales: [&w[5], &w[6]],
        scale: 8.0,
        feed_norm: [&w[7], &w[8]],
        feed_in: &w[9],
        feed_out: &w[10],
        eps: 1e-5,
        precision,
    };
    EncoderBlock::new(&weights).unwrap()
}

/// The block in operations one by one.
fn one_by_one(x: &Tensor, w: &[Tensor], heads: usize, bias: Option<&Tensor>) -> Tensor {
    let (n, m, _) = x.dims3().unwrap();
    let inner = w[2].dims()[0];
    let norm = |x: &Tensor, at: usize| ops::layer_norm(x, &w[at], Some(&w[at + 1]), 1e-5).unwrap();
    let split = |x: &Tensor, weight: &Tensor| ops::linear(x, weight, None).unwrap().reshape((n, m, heads, inner / heads)).unwrap();
    let unit = |x: &Tensor, scale: &Tensor| ops::l2_normalize_scaled(x, scale, 1e-12).unwrap().transpose(1, 2).unwrap();
    let q = unit(&split(&norm(x, 0), &w[2]), &w[5]);
    let k = unit(&split(x, &w[3].narrow(0, 0, inner).unwrap()), &w[6]);
    let v = split(x, &w[3].narrow(0, inner, inner).unwrap()).transpose(1, 2).unwrap();
    let mixed = ops::attention(&q, &k, &v, &Attention { bias, ..Attention::full(8.0) }).unwrap().transpose(1, 2).unwrap();
    let mixed = mixed.contiguous().unwrap().reshape((n, m, inner)).unwrap();
    let y = ops::linear_residual(Precision::F32, &mixed, &w[4], x).unwrap();
    let both = ops::linear(&norm(&y, 7), &w[9], None).unwrap();
    ops::linear_residual(Precision::F32, &ops::geglu_halves(&both).unwrap(), &w[10], &y).unwrap()
}

/// Length of the difference as a share of the expected values' own.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    (square(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn an_encoder_block_gives_the_bits_of_its_operations_and_in_integers_nearly_its_values() {
    // sequences shorter and longer than what goes through the products together, widths beyond one block of the inner axis
    for (sequences, length, channels, heads, hidden, biased) in
        [(30, 9, 48, (3, 16), 70, false), (3, 170, 40, (2, 24), 530, true), (5, 24, 544, (4, 32), 1365, true)]
    {
        let (w, x) = (weights(channels, heads, hidden), noise(&[sequences, length, channels], 77));
        let bias = biased.then(|| noise(&[heads.0, length, length], 78));
        let expected = flat(&one_by_one(&x, &w, heads.0, bias.as_ref()));
        let found = block(&w, Precision::F32).forward(&x, bias.as_ref()).unwrap();
        assert_eq!(found.dims(), x.dims());
        assert!(flat(&found) == expected, "{sequences} sequences of {length}");
        let near = flat(&block(&w, Precision::Int16).forward(&x, bias.as_ref()).unwrap());
        let off = distance(&near, &expected);
        assert!(off < 5e-4, "{sequences} sequences of {length}: {off}");
    }
}

#[test]
fn an_encoder_block_refuses_what_does_not_fit() {
    let (w, x) = (weights(16, (2, 8), 12), noise(&[2, 5, 16], 1));
    let error = |x: &Tensor, bias: Option<&Tensor>| block(&w, Precision::F32).forward(x, bias).unwrap_err().to_string();
    assert!(error(&noise(&[2, 5, 17], 1), None).contains("[2, 5, 17]"));
    assert!(error(&x, Some(&noise(&[2, 5, 6], 1))).contains("[2, 5, 6]"));
}

#[test]
fn patches_become_tokens_with_the_bits_of_the_operations() {
    let (volumes, size) = (noise(&[2, 6, 40, 30], 1), [3, 5, 6]);
    let ([gamma, beta], [weight, bias]) = ([noise(&[90], 2), noise(&[90], 3)], [noise(&[33, 90], 4), noise(&[33], 5)]);
    let [out_gamma, out_beta] = [noise(&[33], 6), noise(&[33], 7)];
    let patches = ops::patches(&volumes, size).unwrap();
    let tokens = ops::linear(&ops::layer_norm(&patches, &gamma, Some(&beta), 1e-5).unwrap(), &weight, Some(&bias)).unwrap();
    let expected = ops::layer_norm(&tokens, &out_gamma, Some(&out_beta), 1e-5).unwrap();
    let norms = [[&gamma, &beta], [&out_gamma, &out_beta]];
    let found = ops::patch_tokens(&volumes, size, norms, [&weight, &bias], 1e-5).unwrap();
    assert_eq!(found.dims(), [2 * 2 * 8 * 5, 33]);
    assert!(flat(&found) == flat(&expected));
    let wrong = ops::patch_tokens(&volumes, [3, 5, 5], norms, [&weight, &bias], 1e-5).unwrap_err().to_string();
    assert!(wrong.contains("75 voxels"), "{wrong}");
}

#[test]
fn a_linear_layer_in_integers_gives_nearly_the_same_values_and_gradients() {
    let inputs = [noise(&[60, 300], 1), noise(&[70, 300], 2), noise(&[70], 3)];
    let of = |precision| crate::check::run(&inputs, &move |x| ops::linear_in(precision, &x[0], &x[1], Some(&x[2])));
    let ((y, grads), (near_y, near_grads)) = (of(Precision::F32), of(Precision::Int16));
    for (exact, near) in [(&y, &near_y)].into_iter().chain(grads.iter().zip(&near_grads)) {
        let largest = exact.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
        let off = exact.iter().zip(near).fold(0.0, |a: f32, (b, c)| a.max((b - c).abs()));
        assert!(off <= 5e-4 * largest, "{off} of {largest}");
    }
}
