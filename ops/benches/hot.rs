//! The kernels that training and generation spend their time in, at sizes that take milliseconds. Shared by `cargo bench` (times) and the example
//! `instructions` (counts).

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Attention, ConvPadding, Format, Matrix};

/// A kernel's work, inputs made.
pub type Work = Box<dyn Fn() -> Result<()>>;

/// A kernel and what makes its work.
pub type Kernel = (&'static str, fn() -> Result<Work>);

/// Numbers between -1 and 1 without a pattern that a kernel could profit from.
fn noise(shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product::<usize>() as u64;
    let value = |at: u64| (at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &Device::Cpu)
}

fn quantised(weight: &Tensor, kind: GgmlDType, format: Format) -> Result<Matrix> {
    let bytes = QTensor::quantize(weight, kind)?.data()?.to_vec();
    Matrix::new(Arc::new(bytes.clone()), 0..bytes.len(), format, weight.dims2()?)
}

/// Rows and the weight (1024, 512) that multiplies them.
fn factors() -> Result<(Tensor, Tensor)> {
    Ok((noise(&[96, 512])?, noise(&[1024, 512])?))
}

fn product(weight: Matrix, rows: Tensor) -> Result<Work> {
    Ok(Box::new(move || weight.forward(&rows).map(drop)))
}

fn reading(kind: GgmlDType, format: Format) -> Result<Work> {
    let (rows, weight) = factors()?;
    product(quantised(&weight, kind, format)?.for_reading(), rows)
}

fn heads() -> Result<Tensor> {
    noise(&[1, 4, 160, 64])
}

fn causal(heads: &Tensor) -> Result<Tensor> {
    ops::attention(heads, heads, heads, &Attention { causal: true, ..Attention::full(0.125) })
}

/// What a norm takes: rows and their scale.
fn normed() -> Result<(Tensor, Tensor)> {
    Ok((noise(&[256, 512])?, noise(&[512])?))
}

/// All of them.
pub const KERNELS: [Kernel; 13] = [
    ("product f32, 96 rows", || {
        let (rows, weight) = factors()?;
        product(Matrix::from_tensor(&weight)?, rows)
    }),
    ("product bf16, 96 rows", || {
        let (rows, weight) = factors()?;
        product(Matrix::from_tensor(&weight.to_dtype(DType::BF16)?)?, rows)
    }),
    ("product bf16 turned, 96 rows", || {
        let weight = Matrix::from_tensor(&factors()?.1.to_dtype(DType::BF16)?)?;
        let gradient = noise(&[96, 1024])?;
        Ok(Box::new(move || weight.backward(&gradient).map(drop)))
    }),
    ("product Q4_K, one row", || product(quantised(&factors()?.1, GgmlDType::Q4K, Format::Q4K)?, noise(&[1, 512])?)),
    ("product Q8_0 for reading, 96 rows", || reading(GgmlDType::Q8_0, Format::Q8_0)),
    ("product Q4_K for reading, 96 rows", || reading(GgmlDType::Q4K, Format::Q4K)),
    ("product Q6_K for reading, 96 rows", || reading(GgmlDType::Q6K, Format::Q6K)),
    ("attention forward", || {
        let heads = heads()?;
        Ok(Box::new(move || causal(&heads).map(drop)))
    }),
    ("attention with gradients", || {
        let heads = Var::from_tensor(&heads()?)?;
        Ok(Box::new(move || causal(&heads)?.sum_all()?.backward().map(drop)))
    }),
    ("layer norm", || {
        let (x, gain) = normed()?;
        Ok(Box::new(move || ops::layer_norm(&x, &gain, None, 1e-5).map(drop)))
    }),
    ("root-mean-square norm", || {
        let (x, gain) = normed()?;
        Ok(Box::new(move || ops::rms_norm(&x, &gain, 1e-5).map(drop)))
    }),
    ("cross-entropy with gradient", || {
        let (rows, weight) = factors()?;
        let (hidden, head) = (Var::from_tensor(&rows)?, Matrix::from_tensor(&weight)?);
        let (labels, weights) = (Tensor::arange(0u32, 96, &Device::Cpu)?, Tensor::ones(96, DType::F32, &Device::Cpu)?);
        Ok(Box::new(move || ops::linear_cross_entropy(&hidden, &head, &labels, &weights)?.backward().map(drop)))
    }),
    ("depthwise convolution", || {
        let (grid, taps, bias) = (noise(&[1, 8, 8, 8, 64])?, noise(&[64, 1, 3, 3, 3])?, noise(&[64])?);
        Ok(Box::new(move || ops::depthwise_conv3d(&grid, &taps, &bias, ConvPadding::Same).map(drop)))
    }),
];
