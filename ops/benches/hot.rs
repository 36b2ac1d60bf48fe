//! The kernels that training and generation spend their time in, at sizes that take milliseconds. Shared by `cargo bench` (times) and the example
//! `instructions` (counts).

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Attention, ConvPadding, Format, Matrix};

/// A kernel and its work.
pub type Kernel = (&'static str, Box<dyn Fn() -> Result<()>>);

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

/// All of them, inputs made.
pub fn kernels() -> Result<Vec<Kernel>> {
    let (rows, wide) = (noise(&[96, 512])?, noise(&[1024, 512])?);
    let [f32_weight, bf16_weight] = [Matrix::from_tensor(&wide)?, Matrix::from_tensor(&wide.to_dtype(DType::BF16)?)?];
    let (q4_weight, gradient, row) = (quantised(&wide, GgmlDType::Q4K, Format::Q4K)?, noise(&[96, 1024])?, noise(&[1, 512])?);
    let prompt_weights = [(GgmlDType::Q8_0, Format::Q8_0), (GgmlDType::Q4K, Format::Q4K), (GgmlDType::Q6K, Format::Q6K)]
        .map(|(kind, format)| quantised(&wide, kind, format).map(|matrix| matrix.for_reading()));
    let [q8_prompt, q4_prompt, q6_prompt] = prompt_weights;
    let (q8_prompt, q4_prompt, q6_prompt) = (q8_prompt?, q4_prompt?, q6_prompt?);
    let [rows_q8, rows_q4, rows_q6] = [(); 3].map(|()| rows.clone());
    let heads = Var::from_tensor(&noise(&[1, 4, 160, 64])?)?;
    let causal = |heads: &Tensor| ops::attention(heads, heads, heads, &Attention { causal: true, ..Attention::full(0.125) });
    let (x, gain) = (noise(&[256, 512])?, noise(&[512])?);
    let (grid, taps, bias) = (noise(&[1, 8, 8, 8, 64])?, noise(&[64, 1, 3, 3, 3])?, noise(&[64])?);
    let (hidden, labels, weights) =
        (Var::from_tensor(&rows)?, Tensor::arange(0u32, 96, &Device::Cpu)?, Tensor::ones(96, DType::F32, &Device::Cpu)?);
    let (head, forward_heads, backward_heads) = (f32_weight.clone(), heads.as_tensor().detach(), heads);
    let (down, rows_bf16, rows_f32) = (bf16_weight.clone(), rows.clone(), rows);
    Ok(vec![
        ("product f32, 96 rows", Box::new(move || f32_weight.forward(&rows_f32).map(drop))),
        ("product bf16, 96 rows", Box::new(move || bf16_weight.forward(&rows_bf16).map(drop))),
        ("product bf16 turned, 96 rows", Box::new(move || down.backward(&gradient).map(drop))),
        ("product Q4_K, one row", Box::new(move || q4_weight.forward(&row).map(drop))),
        ("product Q8_0 for reading, 96 rows", Box::new(move || q8_prompt.forward(&rows_q8).map(drop))),
        ("product Q4_K for reading, 96 rows", Box::new(move || q4_prompt.forward(&rows_q4).map(drop))),
        ("product Q6_K for reading, 96 rows", Box::new(move || q6_prompt.forward(&rows_q6).map(drop))),
        ("attention forward", Box::new(move || causal(&forward_heads).map(drop))),
        ("attention with gradients", Box::new(move || causal(&backward_heads)?.sum_all()?.backward().map(drop))),
        (
            "layer norm",
            Box::new({
                let (x, gain) = (x.clone(), gain.clone());
                move || ops::layer_norm(&x, &gain, None, 1e-5).map(drop)
            }),
        ),
        ("root-mean-square norm", Box::new(move || ops::rms_norm(&x, &gain, 1e-5).map(drop))),
        (
            "cross-entropy with gradient",
            Box::new(move || ops::linear_cross_entropy(&hidden, &head, &labels, &weights)?.backward().map(drop)),
        ),
        ("depthwise convolution", Box::new(move || ops::depthwise_conv3d(&grid, &taps, &bias, ConvPadding::Same).map(drop))),
    ])
}
