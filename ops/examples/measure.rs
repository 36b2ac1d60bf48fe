//! Times each operation, forward and backward, fused and composed: `cargo run --release -p ctscribe-ops --example measure [default-memory]`.

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Attention, ConvPadding, composed};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

fn noise(shape: &[usize]) -> Result<Var> {
    let mut rng = ChaCha8Rng::seed_from_u64(shape.len() as u64);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Best of several runs in milliseconds: forward, and forward with backward.
fn time(f: Operation, inputs: &[Tensor]) -> Result<(f64, f64)> {
    let (mut forward, mut both) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..7 {
        let start = Instant::now();
        let y = f(inputs)?;
        forward = forward.min(start.elapsed().as_secs_f64() * 1e3);
        y.backward()?;
        both = both.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok((forward, both))
}

fn compare(name: &str, shapes: &[&[usize]], fused: Operation, composed: Operation) -> Result<()> {
    let vars: Vec<Var> = shapes.iter().map(|shape| noise(shape)).collect::<Result<_>>()?;
    let inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let ((f, fb), (c, cb)) = (time(fused, &inputs)?, time(composed, &inputs)?);
    println!("{name:<40} fused {f:8.2} {fb:8.2} ms   composed {c:8.2} {cb:8.2} ms   x{:.1}", cb / fb);
    Ok(())
}

fn attention(sizes: [usize; 6], causal: bool, biased: bool) -> Result<()> {
    let [b, h, kv, l, m, d] = sizes;
    let shapes: [&[usize]; 4] = [&[b, h, l, d], &[b, kv, m, d], &[b, kv, m, d], &[h, l, m]];
    let options = |x: &[Tensor]| x.get(3).cloned();
    let scale = 1.0 / (d as f64).sqrt();
    compare(
        &format!("attention {sizes:?} {}", if causal { "causal" } else { "" }),
        if biased { &shapes } else { &shapes[..3] },
        &|x| ops::attention(&x[0], &x[1], &x[2], &Attention { scale, causal, key_mask: None, bias: options(x).as_ref() }),
        &|x| {
            let bias = options(x);
            let options = Attention { scale, causal, key_mask: None, bias: bias.as_ref() };
            Ok(composed::attention_with_weights(&x[0], &x[1], &x[2], &options)?.0)
        },
    )
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() != Some("default-memory") {
        ops::reuse_freed_memory();
        ops::keep_one_heap();
    }
    println!("{:<40} forward, forward and backward", "");
    for shape in [[1520, 512], [7000, 256]] {
        let (x, c): (&[usize], &[usize]) = (&shape, &shape[1..]);
        compare(&format!("gelu {x:?}"), &[x], &|x| ops::gelu(&x[0]), &|x| composed::gelu(&x[0]))?;
        compare(&format!("swiglu {x:?}"), &[x, x], &|x| ops::swiglu(&x[0], &x[1]), &|x| composed::swiglu(&x[0], &x[1]))?;
        compare(&format!("softmax {x:?}"), &[x], &|x| ops::softmax(&x[0]), &|x| composed::softmax(&x[0]))?;
        compare(&format!("rms norm {x:?}"), &[x, c], &|x| ops::rms_norm(&x[0], &x[1], 1e-5), &|x| composed::rms_norm(&x[0], &x[1], 1e-5))?;
        compare(&format!("layer norm {x:?}"), &[x, c, c], &|x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5), &|x| {
            composed::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5)
        })?;
        let w: &[usize] = &[512, shape[1]];
        compare(&format!("linear {x:?} to 512"), &[x, w, &[512]], &|x| ops::linear(&x[0], &x[1], Some(&x[2])), &|x| {
            composed::linear(&x[0], &x[1], Some(&x[2]))
        })?;
    }
    attention([8, 6, 6, 190, 190, 32], true, false)?;
    attention([192, 4, 4, 36, 36, 16], false, true)?;
    attention([32, 8, 8, 10, 288, 16], false, false)?;
    attention([2, 8, 8, 576, 576, 32], false, true)?;
    attention([1, 8, 8, 1, 600, 64], true, false)?;
    attention([1, 8, 8, 510, 510, 128], true, false)?;
    compare(
        "conv [2, 8, 12, 12, 128]",
        &[&[2, 8, 12, 12, 128], &[128, 1, 3, 3, 3], &[128]],
        &|x| ops::depthwise_conv3d(&x[0], &x[1], &x[2], ConvPadding::Causal),
        &|x| composed::depthwise_conv3d(&x[0], &x[1], &x[2], ConvPadding::Causal),
    )?;
    let (targets, weights) =
        (Tensor::zeros(1520, candle_core::DType::U32, &Device::Cpu)?, Tensor::ones(1520, candle_core::DType::F32, &Device::Cpu)?);
    let head = noise(&[2048, 192])?.as_tensor().detach();
    let matrix = ops::Matrix::from_tensor(&head)?;
    compare("cross-entropy [1520, 2048]", &[&[1520, 2048]], &|x| ops::cross_entropy(&x[0], &targets, &weights), &|x| {
        composed::cross_entropy(&x[0], &targets, &weights)
    })?;
    compare("linear cross-entropy [1520, 192]", &[&[1520, 192]], &|x| ops::linear_cross_entropy(&x[0], &matrix, &targets, &weights), &|x| {
        composed::cross_entropy(&composed::linear(&x[0], &head, None)?, &targets, &weights)
    })
}
