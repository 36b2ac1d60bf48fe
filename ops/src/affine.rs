//! Frozen affine layers and what stands behind them in an encoder that has no gradients, in the memory that the product was written to.

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::Matrix;
use crate::activation::{gelu, gelu_of_sum};
use crate::cpu::{Values, fused, written};
use crate::linear::{add_bias, output_shape};
use crate::norm::{layer_norm, layer_norm_of_sum};

/// x W^T + b with W (out, in) and b (out) frozen. Nothing that it computes has a gradient.
///
/// A weight in f32 multiplies in f32, one in bf16 as [`Matrix`] says; bias, activation and norm are in f32 on the processor either way.
#[derive(Debug, Clone)]
pub struct Affine {
    weight: Matrix,
    bias: Tensor,
}

impl Affine {
    /// weight: (out, in), bias: (out) of f32 on the same device.
    pub fn new(weight: Matrix, bias: &Tensor) -> Result<Self> {
        if bias.dims() != [weight.size().0] || !bias.device().same_device(weight.device()) {
            bail!("an affine layer of {weight:?} has a bias of {:?} on {:?}", bias.shape(), bias.device());
        }
        let bias = if bias.is_variable() { bias.detach().copy()? } else { bias.detach().contiguous()? };
        Ok(Affine { weight, bias })
    }

    /// x: (..., in) -> (..., out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = Affine::forward_each([self], x)?;
        Ok(y)
    }

    /// Of several layers with the same inputs, on the processor in one round of work. x: (..., in) -> (..., out) each.
    pub fn forward_each<const N: usize>(layers: [&Affine; N], x: &Tensor) -> Result<[Tensor; N]> {
        let x = x.detach();
        if !layers.iter().all(|layer| layer.fused(&[&x])) {
            return every(layers, |layer| layer.weight.forward_biased(&x, &layer.bias));
        }
        let x = x.contiguous()?;
        let shapes = every(layers, |layer| output_shape(x.shape(), layer.weight.size()))?;
        let mut products = Matrix::multiply_each(layers.map(|layer| &layer.weight), &Values::of(&x)?, true).into_iter().zip(shapes);
        every(layers, |layer| {
            let (mut y, shape) = products.next().expect("as many products as layers");
            add_bias(&mut y, &Values::of(&layer.bias)?);
            Tensor::from_vec(y, shape, &Device::Cpu)
        })
    }

    /// GELU (exact) of x W^T + b. x: (..., in) -> (..., out).
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.detach();
        if !self.fused(&[&x]) {
            return gelu(&self.forward(&x)?);
        }
        let (x, shape) = (x.contiguous()?, output_shape(x.shape(), self.weight.size())?);
        let mut y = self.weight.multiply(&Values::of(&x)?, true);
        gelu_of_sum(&mut y, &Values::of(&self.bias)?);
        Tensor::from_vec(y, shape, &Device::Cpu)
    }

    /// Layer norm of residual + (x W^T + b), with the norm's weight and bias (out). x: (..., in), residual: (..., out) -> (..., out).
    pub fn forward_norm(&self, x: &Tensor, residual: &Tensor, [weight, bias]: [&Tensor; 2], eps: f64) -> Result<Tensor> {
        let (x, residual) = (x.detach(), residual.detach());
        if !self.fused(&[&x, &residual, weight, bias]) {
            return layer_norm(&(residual + self.forward(&x)?)?, weight, Some(bias), eps);
        }
        let (x, residual, shape) = (x.contiguous()?, residual.contiguous()?, output_shape(x.shape(), self.weight.size())?);
        let (weight, bias) = (Values::of(weight)?, Values::of(bias)?);
        if *residual.shape() != shape || [weight.len(), bias.len()] != [self.weight.size().0; 2] {
            bail!(
                "norm of a sum: the product is {shape:?}, the residual {:?}, norm ({}) and ({})",
                residual.shape(),
                weight.len(),
                bias.len()
            );
        }
        let mut y = self.weight.multiply(&Values::of(&x)?, true);
        layer_norm_of_sum(&mut y, &Values::of(&self.bias)?, &Values::of(&residual)?, [&weight, &bias], eps as f32);
        Tensor::from_vec(y, shape, &Device::Cpu)
    }

    /// Whether the processor's own kernels take the layer and these tensors.
    fn fused(&self, tensors: &[&Tensor]) -> bool {
        self.weight.in_place() && fused(&[&self.bias]) && fused(tensors)
    }
}

/// `work` of each layer, in order.
fn every<T, const N: usize>(layers: [&Affine; N], work: impl FnMut(&Affine) -> Result<T>) -> Result<[T; N]> {
    let results = layers.into_iter().map(work).collect::<Result<Vec<T>>>()?;
    Ok(results.try_into().unwrap_or_else(|_| unreachable!("as many results as layers")))
}

/// Heads side by side, without a gradient. x: (B, H, L, D) -> (B, L, H D).
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (x, (b, h, l, d)) = (x.detach(), x.dims4()?);
    if !fused(&[&x]) || x.elem_count() == 0 {
        return x.transpose(1, 2)?.contiguous()?.reshape((b, l, h * d));
    }
    let x = x.contiguous()?;
    let values = Values::of(&x)?;
    let values: &[f32] = &values;
    let rows = |(b, out): (usize, &mut [MaybeUninit<f32>])| {
        for (at, out) in out.chunks_exact_mut(d).enumerate() {
            out.write_copy_of_slice(&values[((b * h + at % h) * l + at / h) * d..][..d]);
        }
    };
    // SAFETY: the batch's elements are all there is, and each has a slice of D values for each of its L queries and H heads.
    let merged = unsafe { written(b * l * h * d, |out| out.par_chunks_exact_mut(l * h * d).enumerate().for_each(rows)) };
    Tensor::from_vec(merged, (b, l, h * d), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn noise(shape: &[usize], seed: usize) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Values in f64.
    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// x W^T + b in f64, with W as `weight` holds it.
    fn expected(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.to_dtype(DType::F64).unwrap());
        x.broadcast_matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap()
    }

    /// Fails unless every value is within `tolerance` of f64's.
    #[track_caller]
    fn check(found: &Tensor, expected: &Tensor, tolerance: f64) {
        assert_eq!(found.dims(), expected.dims());
        for (found, expected) in values(found).iter().zip(values(expected)) {
            assert!((found - expected).abs() <= tolerance, "{found} for {expected}");
        }
    }

    /// Layers (50, 64) of f32 and bf16, in the processor's own kernels and in the form that they have on a device, each with its products' tolerance.
    /// 64 products of 1/4 in the mean: n u of their sum in f32 (u is 2^-24); in bf16 2^-9 of it for either factor and, on a device, for the result
    /// and the bias, and as much again.
    fn layers() -> Vec<(Affine, Tensor, f64)> {
        let (weight, bias) = (noise(&[50, 64], 1), noise(&[50], 2));
        let narrow = weight.to_dtype(DType::BF16).unwrap();
        let mut layers = Vec::new();
        for (weight, tolerance) in [(weight, 64.0 * 16.0 / f64::from(1 << 24)), (narrow, 2.0 * 4.0 * 16.0 / 512.0)] {
            let matrix = Matrix::from_tensor(&weight).unwrap();
            for matrix in [matrix.copy_on(&Device::Cpu).unwrap(), matrix] {
                layers.push((Affine::new(matrix, &bias).unwrap(), weight.clone(), tolerance));
            }
        }
        layers
    }

    #[test]
    fn layers_equal_those_in_f64_alone_and_together_in_f32_and_bf16() {
        let bias = noise(&[50], 2);
        for rows in [3, 700] {
            let x = noise(&[2, rows, 64], 3);
            for (layer, weight, tolerance) in layers() {
                let expected = expected(&x, &weight, &bias);
                check(&layer.forward(&x).unwrap(), &expected, tolerance);
                for together in Affine::forward_each([&layer, &layer, &layer], &x).unwrap() {
                    assert_eq!(values(&together), values(&layer.forward(&x).unwrap()));
                }
                // GELU is nowhere steeper than 1.13
                check(&layer.forward_gelu(&x).unwrap(), &expected.gelu_erf().unwrap(), 1.2 * tolerance);
            }
        }
    }

    #[test]
    fn the_norm_of_a_sum_equals_that_in_f64() {
        let (bias, norm) = (noise(&[50], 2), [noise(&[50], 5), noise(&[50], 6)]);
        let wide = norm.each_ref().map(|tensor| tensor.to_dtype(DType::F64).unwrap());
        for rows in [3, 700] {
            let (x, residual) = (noise(&[2, rows, 64], 3), noise(&[2, rows, 50], 4));
            for (layer, weight, tolerance) in layers() {
                let sum = (residual.to_dtype(DType::F64).unwrap() + expected(&x, &weight, &bias)).unwrap();
                let expected = crate::composed::layer_norm(&sum, &wide[0], Some(&wide[1]), 1e-12).unwrap();
                let found = layer.forward_norm(&x, &residual, [&norm[0], &norm[1]], 1e-12).unwrap();
                // the sums' deviation is above 1
                check(&found, &expected, 2.0 * tolerance);
            }
        }
    }

    #[test]
    fn f32_layers_give_the_bits_of_their_parts() {
        let (x, residual, bias) = (noise(&[2, 700, 64], 3), noise(&[2, 700, 50], 4), noise(&[50], 2));
        let norm = [noise(&[50], 5), noise(&[50], 6)];
        let (layer, weight, _) = layers().swap_remove(1);
        let linear = crate::frozen_linear(&x, &weight, Some(&bias)).unwrap();
        assert_eq!(values(&layer.forward(&x).unwrap()), values(&linear));
        assert_eq!(values(&layer.forward_gelu(&x).unwrap()), values(&gelu(&linear).unwrap()));
        let sum = layer_norm(&(&residual + &linear).unwrap(), &norm[0], Some(&norm[1]), 1e-12).unwrap();
        assert_eq!(values(&layer.forward_norm(&x, &residual, [&norm[0], &norm[1]], 1e-12).unwrap()), values(&sum));
    }

    #[test]
    fn heads_lie_side_by_side() {
        let x = noise(&[3, 4, 5, 6], 1);
        let expected = x.transpose(1, 2).unwrap().contiguous().unwrap().reshape((3, 5, 24)).unwrap();
        assert_eq!(values(&merge_heads(&x).unwrap()), values(&expected));
        assert_eq!(merge_heads(&noise(&[0, 4, 5, 6], 1)).unwrap().dims(), [0, 5, 24]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_sizes() {
        let matrix = Matrix::from_tensor(&noise(&[50, 64], 1)).unwrap();
        let message = Affine::new(matrix.clone(), &noise(&[49], 2)).unwrap_err().to_string();
        assert!(message.contains("50 x 64") && message.contains("49"), "{message}");
        let layer = Affine::new(matrix, &noise(&[50], 2)).unwrap();
        assert!(layer.forward(&noise(&[3, 63], 3)).is_err());
        let norm = [noise(&[50], 5), noise(&[50], 6)];
        let message = layer.forward_norm(&noise(&[3, 64], 3), &noise(&[2, 50], 3), [&norm[0], &norm[1]], 1e-5).unwrap_err().to_string();
        assert!(message.contains("[3, 50]") && message.contains("[2, 50]"), "{message}");
    }
}
