//! Products with a frozen matrix, wherever its rows lie.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::{Matrix, Rows};
use crate::cpu::{Values, values};
#[cfg(feature = "cuda")]
use crate::cuda::LowRank;
use crate::few::{FEW_ROWS, add_rows_times, rows_times_each};
use crate::frozen_linear;
use crate::gemm::{Out, PackedRight, Precision, Right, packed_products};
use crate::kept;
use crate::linear::output_shape;

/// Rows up to which they are multiplied by a small matrix's packed copy; they are packed by one core.
const PACKED_ROWS: usize = 256;

impl Matrix {
    /// x W^T, with the gradient to x only. x: (..., in) -> (..., out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.rows {
            Rows::Host { .. } => x.contiguous()?.apply_op1(MatrixLinear(self.clone())),
            Rows::Device(tensor) => frozen_linear(&x.to_dtype(tensor.dtype())?, tensor, None)?.to_dtype(x.dtype()),
            #[cfg(feature = "cuda")]
            Rows::Blocks(blocks) => blocks.weight.linear(&x.to_dtype(self.activation_dtype())?, None)?.to_dtype(x.dtype()),
        }
    }

    /// As [`Matrix::forward`], plus a frozen bias (out) on the matrix's device.
    pub(crate) fn forward_biased(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        match &self.rows {
            // on a device the bias goes with the product
            Rows::Device(tensor) => {
                let bias = bias.to_dtype(tensor.dtype())?;
                frozen_linear(&x.to_dtype(tensor.dtype())?, tensor, Some(&bias))?.to_dtype(x.dtype())
            }
            _ => self.forward(x)?.broadcast_add(&bias.to_dtype(x.dtype())?),
        }
    }

    /// g W without a gradient: the gradient of the forward product's input. g: (..., out) -> (..., in).
    pub fn backward(&self, grad: &Tensor) -> Result<Tensor> {
        let grad = grad.detach().contiguous()?;
        let shape = output_shape(grad.shape(), (self.size.1, self.size.0))?;
        match &self.rows {
            Rows::Host { .. } => Tensor::from_vec(self.multiply(&Values::of(&grad)?, false), shape, &Device::Cpu),
            Rows::Device(tensor) => {
                let rows = grad.reshape(((), self.size.0))?.to_dtype(tensor.dtype())?;
                rows.matmul(tensor)?.reshape(shape)?.to_dtype(grad.dtype())
            }
            #[cfg(feature = "cuda")]
            Rows::Blocks(blocks) => blocks.weight.input_gradient(&grad.to_dtype(self.activation_dtype())?, &shape)?.to_dtype(grad.dtype()),
        }
    }

    /// [`Matrix::forward`] of several matrices with the same inputs, all [`Matrix::in_place`], without a gradient and in one round of work.
    /// x: (..., in) -> (..., out) each.
    pub fn forward_each<const N: usize>(matrices: [&Matrix; N], x: &Tensor) -> Result<[Tensor; N]> {
        if let Some(away) = matrices.iter().find(|matrix| !matrix.in_place()) {
            bail!("{away:?} is not in the host's memory");
        }
        let x = x.detach().contiguous()?;
        let shapes = matrices.iter().map(|matrix| output_shape(x.shape(), matrix.size)).collect::<Result<Vec<_>>>()?;
        let tensor = |(values, shape)| Tensor::from_vec(values, shape, &Device::Cpu);
        let outputs = Matrix::multiply_each(matrices, &Values::of(&x)?, true).into_iter().zip(shapes).map(tensor);
        Ok(outputs.collect::<Result<Vec<_>>>()?.try_into().expect("as many outputs as matrices"))
    }

    /// The factor of a product of `rows` rows with a matrix on the CPU, and its columns.
    fn factor(&self, rows: usize, turned: bool) -> (Right<'_>, usize) {
        let held = self.held(rows, turned);
        let Rows::Host { bytes, range, order } = &held.rows else { unreachable!("the callers have looked") };
        (held.right(bytes, range, order, turned), if turned { self.size.0 } else { self.size.1 })
    }

    /// The factor of x W^T, packed whole, of a matrix on the CPU.
    pub(crate) fn packed(&self) -> PackedRight {
        let (right, n) = self.factor(usize::MAX, true);
        PackedRight::of(right, n, self.precision)
    }

    /// x W^T (turned), or x W, of a matrix on the CPU.
    pub(crate) fn multiply(&self, x: &[f32], turned: bool) -> Vec<f32> {
        let [y] = Matrix::multiply_each([self], x, turned);
        y
    }

    /// As [`Self::multiply`], added to `out`.
    pub(crate) fn add_multiply(&self, x: &[f32], turned: bool, out: &mut [f32]) {
        let k = if turned { self.size.1 } else { self.size.0 };
        let rows = x.len() / k.max(1);
        let (right, n) = self.factor(rows, turned);
        match self.packed_for(rows, turned) {
            Some(packed) => {
                assert!(out.len() == rows * n, "{self:?}: {} values are added to {}", rows * n, out.len());
                // SAFETY: the output has the product's size.
                unsafe { packed_products(x, &[(packed, Out(out.as_mut_ptr()))], true) };
            }
            None => add_rows_times(x, right, (k, n), self.precision, out),
        }
    }

    /// As [`Self::multiply`], of several matrices that take the same x: in one round of work where they multiply with one precision.
    pub(crate) fn multiply_each<const N: usize>(matrices: [&Matrix; N], x: &[f32], turned: bool) -> [Vec<f32>; N] {
        let k = matrices.first().map_or(0, |first| if turned { first.size.1 } else { first.size.0 });
        let rows = x.len() / k.max(1);
        let factors = matrices.map(|matrix| matrix.factor(rows, turned));
        let packed: Vec<_> = matrices.iter().filter_map(|matrix| matrix.packed_for(rows, turned)).collect();
        if packed.len() == N {
            let mut outs = factors.map(|(_, n)| Vec::with_capacity(rows * n));
            let places: Vec<_> = packed.into_iter().zip(&mut outs).map(|(packed, out)| (packed, Out(out.as_mut_ptr()))).collect();
            // SAFETY: the outputs have room for the products, all of which are written.
            unsafe {
                packed_products(x, &places, false);
                outs.iter_mut().zip(&factors).for_each(|(out, (_, n))| out.set_len(rows * n));
            }
            return outs;
        }
        if matrices.iter().any(|matrix| matrix.precision != matrices[0].precision) {
            return matrices.map(|matrix| matrix.multiply(x, turned));
        }
        let products = matrices.first().map(|first| rows_times_each(x, &factors, k, first.precision)).unwrap_or_default();
        products.try_into().expect("as many products as matrices")
    }

    /// x W^T + scale (x A^T) B^T with gradients to x, A and B, in one product. x: (..., in), a: (r, in), b: (out, r) -> (..., out).
    /// `None` where no kernel does so: on the processor, in f32, or for sizes that are no multiples of 8.
    pub fn forward_low_rank(&self, _x: &Tensor, _a: &Tensor, _b: &Tensor, _scale: f64) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        {
            let low = LowRank { a: _a, b: _b, scale: _scale };
            match &self.rows {
                Rows::Device(weight) => return crate::cuda::lora_linear(_x, weight, &low),
                Rows::Blocks(blocks) if blocks.weight.fits(_x, &low)? => return blocks.weight.linear(_x, Some(&low)).map(Some),
                _ => {}
            }
        }
        Ok(None)
    }

    /// The matrix whose rows are multiplied where there are `rows` rows of x.
    pub(super) fn held(&self, rows: usize, turned: bool) -> &Matrix {
        if !self.writing {
            return self;
        }
        let made = &self.made.in_12_bits;
        let packed = if turned && rows <= FEW_ROWS { Some(made.get_or_init(|| self.in_12_bits())) } else { made.get() };
        packed.and_then(Option::as_ref).unwrap_or(self)
    }

    /// The packed copy where `rows` rows are multiplied by it.
    pub(super) fn packed_for(&self, rows: usize, turned: bool) -> Option<&PackedRight> {
        let takes = self.reading && turned && rows > 0 && rows <= PACKED_ROWS && self.is_copied_for_reading();
        let pack = || self.clone().with_precision(Precision::F32).packed();
        takes.then(|| self.made.packed.get_or_init(pack))
    }
}

struct MatrixLinear(Matrix);

impl CustomOp1 for MatrixLinear {
    fn name(&self) -> &'static str {
        "frozen-matrix"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = output_shape(layout.shape(), self.0.size)?;
        let y = kept::product(self.0.precision, || Ok(self.0.multiply(values(x, layout)?, true)))?;
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.backward(grad)?))
    }
}
