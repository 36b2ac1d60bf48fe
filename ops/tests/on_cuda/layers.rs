use candle_core::{DType, Device, Result, Tensor, Var};
use ctscribe_ops::cuda::{AdamW, LowRank, lora_linear};
use ctscribe_ops::frozen_linear;

use super::check::{agrees, device, random};

/// x W^T + scale (x A^T) B^T from products of candle's own.
fn plain(x: &Tensor, weight: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)? + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * 2.0)?
}

#[test]
fn low_rank_layers_agree_for_few_and_many_rows() {
    let Some(device) = device() else { return };
    let weight = random(&[264, 520], 9);
    for dtype in [DType::BF16, DType::F16] {
        for rows in [1, 3, 130] {
            let inputs = [random(&[rows, 520], 1), random(&[16, 520], 2), random(&[264, 16], 3)];
            agrees("lora linear", &device, dtype, &inputs, &|x| {
                let weight = weight.to_dtype(dtype)?.to_dtype(x[0].dtype())?.to_device(x[0].device())?;
                match lora_linear(&x[0], &weight, &LowRank { a: &x[1], b: &x[2], scale: 2.0 })? {
                    Some(y) => Ok(y),
                    None => plain(&x[0], &weight, &x[1], &x[2]),
                }
            });
        }
    }
}

#[test]
fn frozen_layers_agree() {
    let Some(device) = device() else { return };
    let (weight, bias) = (random(&[33, 65], 9), random(&[33], 8));
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        agrees("frozen linear", &device, dtype, &[random(&[2, 7, 65], 1)], &|x| {
            let own = |y: &Tensor| y.to_dtype(dtype)?.to_dtype(x[0].dtype())?.to_device(x[0].device());
            frozen_linear(&x[0], &own(&weight)?, Some(&own(&bias)?))
        });
    }
}

#[test]
fn adamw_takes_the_steps_of_its_formula() {
    let Some(device) = device() else { return };
    let start = random(&[3000], 1);
    let var = Var::from_tensor(&start.to_device(&device).unwrap()).unwrap();
    let mut optimiser = AdamW::new((0.9, 0.999), 1e-8);
    optimiser.add(&var, 1.0, 0.1).unwrap();
    let (mut p, mut m, mut v) = (start.to_vec1::<f32>().unwrap(), vec![0.0f64; 3000], vec![0.0f64; 3000]);
    for step in 1..=5 {
        let gradient = random(&[3000], 10 + step as u64);
        optimiser.step(&[Some(gradient.to_device(&device).unwrap())], 1e-2, None).unwrap();
        for (i, g) in gradient.to_vec1::<f32>().unwrap().into_iter().map(f64::from).enumerate() {
            (m[i], v[i]) = (0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g);
            let change = m[i] / (1.0 - 0.9f64.powi(step)) / ((v[i] / (1.0 - 0.999f64.powi(step))).sqrt() + 1e-8);
            p[i] = (f64::from(p[i]) * (1.0 - 1e-3) - 1e-2 * change) as f32;
        }
    }
    let found: Vec<f32> = var.to_device(&Device::Cpu).unwrap().to_vec1().unwrap();
    assert!(found.iter().zip(&p).all(|(a, b)| (a - b).abs() < 1e-5));
}
