//! Times products with a frozen matrix: `cargo run --release -p ctscribe-ops --example products [out in]`.

use std::sync::Arc;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use ctscribe_ops::{Format, Matrix};

fn noise(rows: usize, columns: usize) -> Result<Tensor> {
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

/// Best of several runs, in seconds.
fn best(mut work: impl FnMut() -> Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..9 {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn quantised(weight: &Tensor, kind: GgmlDType, format: Format) -> Result<Matrix> {
    let bytes = QTensor::quantize(weight, kind)?.data()?.to_vec();
    Matrix::new(Arc::new(bytes.clone()), 0..bytes.len(), format, weight.dims2()?)
}

fn main() -> Result<()> {
    let size: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let (outputs, inputs) = if let [outputs, inputs] = size[..] { (outputs, inputs) } else { (5632, 2048) };
    ctscribe_ops::reuse_freed_memory();
    ctscribe_ops::keep_one_heap();
    let weight = noise(outputs, inputs)?;
    let matrices = [
        Matrix::from_tensor(&weight)?,
        Matrix::from_tensor(&weight.to_dtype(DType::F16)?)?,
        Matrix::from_tensor(&weight.to_dtype(DType::BF16)?)?,
        quantised(&weight, GgmlDType::Q8_0, Format::Q8_0)?,
        quantised(&weight, GgmlDType::Q4K, Format::Q4K)?,
        quantised(&weight, GgmlDType::Q6K, Format::Q6K)?,
    ];
    println!("{outputs} x {inputs}: GFLOP/s forward (GB/s of weights for few rows), then backward");
    for matrix in &matrices {
        print!("{:<6}", matrix.format());
        for m in [1, 2, 4, 8, 32, 126, 510] {
            let flops = 2.0 * (m * outputs * inputs) as f64;
            let x = noise(m, inputs)?;
            let seconds = best(|| matrix.forward(&x))?;
            print!("  {m}: {:.0}", flops / seconds / 1e9);
            if m <= 8 {
                print!(" ({:.0})", matrix.byte_count() as f64 / seconds / 1e9);
            }
        }
        let grad = noise(510, outputs)?;
        let seconds = best(|| matrix.backward(&grad))?;
        println!("  backward 510: {:.0}", 2.0 * (510 * outputs * inputs) as f64 / seconds / 1e9);
    }
    let candle = noise(510, inputs)?;
    let seconds = best(|| candle.matmul(&weight.t()?))?;
    println!("candle f32 510: {:.0}", 2.0 * (510 * outputs * inputs) as f64 / seconds / 1e9);
    Ok(())
}
