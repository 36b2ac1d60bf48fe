use candle_core::{Device, Tensor, Var};
use ctscribe_ops::{self as ops, Attention, composed};

use crate::check::{check, flat, noise};

/// (B, H, H', L, M, D)
type Sizes = (usize, usize, usize, usize, usize, usize);

const SIZES: [Sizes; 6] =
    [(1, 1, 1, 1, 1, 1), (2, 3, 3, 5, 5, 7), (3, 4, 2, 36, 36, 16), (2, 6, 2, 70, 70, 32), (2, 2, 1, 10, 45, 18), (1, 2, 2, 1, 33, 64)];

fn inputs((b, h, kv, l, m, d): Sizes) -> Vec<Tensor> {
    vec![noise(&[b, h, l, d], 1), noise(&[b, kv, m, d], 2), noise(&[b, kv, m, d], 3), noise(&[h, l, m], 4)]
}

/// Checks q, k, v and, if asked, the bias.
fn check_attention(what: &str, sizes: Sizes, causal: bool, key_mask: Option<&Tensor>, biased: bool) {
    let scale = 1.0 / (sizes.5 as f64).sqrt();
    let inputs = inputs(sizes);
    let inputs = if biased { &inputs[..] } else { &inputs[..3] };
    if sizes.4 == 1 {
        return; // a single key has no gradient to q, k and bias: next test
    }
    let options = |x: &[Tensor]| x.get(3).cloned();
    let with = |x: &[Tensor], f: &dyn Fn(&Attention) -> candle_core::Result<Tensor>| {
        f(&Attention { scale, causal, key_mask, bias: options(x).as_ref() })
    };
    check(what, inputs, &|x| with(x, &|options| ops::attention(&x[0], &x[1], &x[2], options)), &|x| {
        with(x, &|options| Ok(composed::attention_with_weights(&x[0], &x[1], &x[2], options)?.0))
    });
}

#[test]
fn attention_equals_its_composed_form() {
    for sizes in SIZES {
        for causal in [false, true] {
            for biased in [false, true] {
                check_attention(&format!("{sizes:?}, causal {causal}, bias {biased}"), sizes, causal, None, biased);
            }
        }
    }
}

#[test]
fn attention_to_a_single_key_is_its_value() {
    let x = inputs((1, 1, 1, 1, 1, 1));
    assert_eq!(flat(&ops::attention(&x[0], &x[1], &x[2], &Attention::full(1.0)).unwrap()), flat(&x[2]));
}

#[test]
fn masked_keys_are_not_seen() {
    let lengths = [20u32, 45];
    let mask: Vec<u32> = lengths.iter().flat_map(|&n| (0..45).map(move |j| u32::from(j < n))).collect();
    let mask = Tensor::from_vec(mask, (2, 45), &Device::Cpu).unwrap();
    check_attention("padded behind", (2, 4, 2, 10, 45, 8), false, Some(&mask), true);
    check_attention("one query, causal", (2, 4, 2, 1, 45, 8), true, Some(&mask), true);
    check_attention("two queries, causal", (2, 2, 2, 2, 45, 8), true, Some(&mask), true);
    check_attention("padded behind, causal", (2, 4, 2, 45, 45, 8), true, Some(&mask), false);
}

#[test]
fn queries_that_see_nothing_average_all_values() {
    // Padding in front under a causal mask: the first 33 queries of the first row see no key.
    let mask: Vec<f32> = [33usize, 0].iter().flat_map(|&n| (0..40).map(move |j| f32::from(u8::from(j >= n)))).collect();
    let mask = Tensor::from_vec(mask, (2, 40), &Device::Cpu).unwrap();
    let x = inputs((2, 2, 1, 40, 40, 6));
    let options = Attention { scale: 0.4, causal: true, key_mask: Some(&mask), bias: None };
    let fused = flat(&ops::attention(&x[0], &x[1], &x[2], &options).unwrap());
    let composed = flat(&composed::attention_with_weights(&x[0], &x[1], &x[2], &options).unwrap().0);
    assert!(fused.iter().zip(&composed).all(|(a, b)| (a - b).abs() < 1e-5));
    let q = Var::from_tensor(&x[0]).unwrap();
    let grads = ops::attention(&q, &x[1], &x[2], &options).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let dq = flat(grads.get(&q).unwrap());
    assert!(dq[..33 * 6].iter().all(|&g| g == 0.0) && dq[34 * 6..40 * 6].iter().any(|&g| g != 0.0));
}

#[test]
fn attention_takes_heads_as_views_of_tokens() {
    let inputs = [noise(&[2, 9, 3 * 4 * 8], 1)];
    let part = |x: &Tensor, i: usize| x.reshape((2, 9, 3, 4, 8))?.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2);
    let options = Attention { scale: 0.3, causal: true, key_mask: None, bias: None };
    check("attention of views", &inputs, &|x| ops::attention(&part(&x[0], 0)?, &part(&x[0], 1)?, &part(&x[0], 2)?, &options), &|x| {
        Ok(composed::attention_with_weights(&part(&x[0], 0)?, &part(&x[0], 1)?, &part(&x[0], 2)?, &options)?.0)
    });
}

#[test]
fn attention_with_weights_has_gradients_through_both() {
    let x = inputs((2, 4, 2, 5, 9, 8));
    let options = Attention::full(0.35);
    let both = |(y, p): (Tensor, Tensor)| y.broadcast_add(&p.sqr()?.sum_all()?);
    check("weights", &x[..3], &|x| both(ops::attention_with_weights(&x[0], &x[1], &x[2], &options)?), &|x| {
        both(composed::attention_with_weights(&x[0], &x[1], &x[2], &options)?)
    });
}

#[test]
fn a_bias_alone_gets_its_gradient_and_a_constant_bias_none() {
    let x = inputs((2, 2, 1, 5, 9, 8));
    let loss = |q: &Tensor, bias: &Tensor| {
        let options = Attention { scale: 0.3, causal: false, key_mask: None, bias: Some(bias) };
        ops::attention(q, &x[1], &x[2], &options).unwrap().sqr().unwrap().sum_all().unwrap()
    };
    let (q, bias) = (Var::from_tensor(&x[0]).unwrap(), Var::from_tensor(&x[3]).unwrap());
    let both = loss(&q, &bias).backward().unwrap();
    let only_bias = loss(&x[0], &bias).backward().unwrap();
    let only_q = loss(&q, &x[3]).backward().unwrap();
    assert_eq!(flat(only_bias.get(&bias).unwrap()), flat(both.get(&bias).unwrap()));
    assert_eq!(flat(only_q.get(&q).unwrap()), flat(both.get(&q).unwrap()));
    assert!(only_q.get(&x[3]).is_none());
}
