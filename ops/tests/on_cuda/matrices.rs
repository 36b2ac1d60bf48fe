//! Frozen matrices as they lie on a device: plain and quantised rows, with and without a low-rank part.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use ctscribe_ops::cuda::QuantisedWeight;
use ctscribe_ops::{Bytes, Format, Matrix, Precision, linear_cross_entropy};

use super::check::{agrees, device, random};

const QUANTISED: [(Format, GgmlDType); 3] = [(Format::Q8_0, GgmlDType::Q8_0), (Format::Q4K, GgmlDType::Q4K), (Format::Q6K, GgmlDType::Q6K)];

/// A matrix (out, in) in each format, in the host's memory, multiplied there as its format has it.
fn matrices(outputs: usize, inputs: usize) -> Vec<Matrix> {
    let values = random(&[outputs, inputs], 7);
    let plain = [DType::F32, DType::F16, DType::BF16].map(|dtype| Matrix::from_tensor(&values.to_dtype(dtype).unwrap()).unwrap());
    let quantised = QUANTISED.map(|(format, kind)| {
        let bytes: Bytes = Arc::new(QTensor::quantize(&values, kind).unwrap().data().unwrap().into_owned());
        let length = (*bytes).as_ref().len();
        Matrix::new(bytes, 0..length, format, (outputs, inputs)).unwrap()
    });
    plain.into_iter().chain(quantised).collect()
}

fn exact(matrix: &Matrix) -> Matrix {
    matrix.clone().with_precision(Precision::F32)
}

/// The matrix that is where x lies.
fn beside<'a>(x: &Tensor, [host, there]: [&'a Matrix; 2]) -> &'a Matrix {
    if x.device().is_cpu() { host } else { there }
}

#[test]
fn matrices_multiply_and_give_their_rows_alike() {
    let Some(device) = device() else { return };
    let order: Vec<u32> = (0..64).map(|row| (row * 5 + 3) % 64).collect();
    for host in matrices(64, 512) {
        let host = host.reordered(order.clone()).unwrap();
        let (host, there) = (exact(&host), host.on(&device).unwrap());
        let dtype = there.activation_dtype();
        assert_eq!(there.format().is_quantised(), host.format().is_quantised());
        let both = [&host, &there];
        // a token, few rows, many
        for rows in [1, 4, 37] {
            let x = [random(&[2, rows, 512], 1)];
            agrees(&format!("{host:?}"), &device, dtype, &x, &|x| beside(&x[0], both).forward(&x[0]));
            let adapted = [random(&[rows, 512], 1), random(&[16, 512], 2), random(&[64, 16], 3)];
            agrees(&format!("{host:?} with a low-rank part"), &device, dtype, &adapted, &|x| {
                let matrix = beside(&x[0], both);
                let parts =
                    || -> candle_core::Result<Tensor> { matrix.forward(&x[0])? + (x[0].matmul(&x[1].t()?)?.matmul(&x[2].t()?)? * 0.5)? };
                matrix.forward_low_rank(&x[0], &x[1], &x[2], 0.5)?.map_or_else(parts, Ok)
            });
        }
        let (found, expected) = (there.rows(&[63, 0, 63]).unwrap().to_device(&Device::Cpu).unwrap(), host.rows(&[63, 0, 63]).unwrap());
        let largest = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest <= if dtype == DType::F32 { 0.0 } else { 1.0 / 256.0 }, "{host:?}: {largest}");
    }
}

#[test]
fn matrices_that_multiply_exactly_lie_there_in_f32() {
    let Some(device) = device() else { return };
    for host in matrices(64, 512) {
        let host = exact(&host);
        let there = host.on(&device).unwrap();
        assert_eq!(there.format(), Format::F32);
        let values = |matrix: &Matrix| matrix.to_tensor().unwrap().to_device(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert!(values(&there) == values(&host), "{host:?}");
        agrees(&format!("{host:?}, exact"), &device, DType::F32, &[random(&[37, 512], 1)], &|x| {
            beside(&x[0], [&host, &there]).forward(&x[0])
        });
    }
}

/// A model passes bf16 on; the kernels take f16 as well.
#[test]
fn quantised_weights_multiply_f16() {
    let Some(device) = device() else { return };
    let values = random(&[64, 512], 7);
    for (format, kind) in QUANTISED {
        let quantised = QTensor::quantize(&values, kind).unwrap();
        let (blocks, exact) = (quantised.data().unwrap(), quantised.dequantize(&Device::Cpu).unwrap());
        let there = QuantisedWeight::new(&Tensor::new(&*blocks, &device).unwrap(), format, (64, 512)).unwrap();
        for rows in [1, 37] {
            agrees(&format!("{format}"), &device, DType::F16, &[random(&[rows, 512], 1)], &|x| {
                if x[0].device().is_cpu() { x[0].matmul(&exact.t()?) } else { there.linear(&x[0], None) }
            });
        }
    }
}

#[test]
fn a_quantised_heads_loss_and_gradient_agree() {
    let Some(device) = device() else { return };
    for host in matrices(256, 512) {
        let (host, there) = (exact(&host), host.on(&device).unwrap());
        let hidden = [random(&[9, 512], 4)];
        let (targets, weights) = ([0u32, 255, 7, 9, 100, 3, 2, 1, 254], [1.0f32, 0.0, 2.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
        agrees(&format!("cross-entropy over {host:?}"), &device, there.activation_dtype(), &hidden, &|x| {
            let to = x[0].device();
            let labels = (Tensor::new(&targets, to)?, Tensor::new(&weights, to)?);
            linear_cross_entropy(&x[0], beside(&x[0], [&host, &there]), &labels.0, &labels.1)
        });
    }
}
