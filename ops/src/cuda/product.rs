//! Linear layers whose low-rank part is added within the product, over dense or GGUF weights.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::launch::{PRODUCT, grid, launch};
use super::place::{Place, contiguous, device, result, suffix};
use super::{not_on_cpu, on_device, unwritten};
use crate::Format;
use crate::linear::output_shape;

const THREADS: u32 = 256;

/// Rows and columns of a block's tile.
const TILE: usize = 128;

/// Up to this many rows the weight's read is all that counts.
const FEW: usize = 4;

/// The name of the kernels that read a format; `None` for one that they do not.
fn kernel(format: Format) -> Option<&'static str> {
    match format {
        Format::Q8_0 => Some("q8_0"),
        Format::Q4K => Some("q4_k"),
        Format::Q6K => Some("q6_k"),
        Format::F32 | Format::F16 | Format::Bf16 | Format::Bf12 => None,
    }
}

/// A frozen weight (out, in) on a CUDA device.
#[derive(Debug, Clone)]
struct Weight {
    /// (out, in), or the blocks' bytes.
    values: Tensor,
    format: &'static str,
    outputs: usize,
    inputs: usize,
}

/// A frozen weight (out, in) in a GGUF format on a CUDA device; its values never exist in another.
#[derive(Debug, Clone)]
pub struct QuantisedWeight(Weight);

/// LoRA's part of a layer: scale B A.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// (r, in).
    pub a: &'a Tensor,
    /// (out, r).
    pub b: &'a Tensor,
    /// What B A is multiplied by.
    pub scale: f64,
}

impl QuantisedWeight {
    /// Whether there are kernels for a weight of this format and size (outputs, inputs).
    pub fn takes(format: Format, (outputs, inputs): (usize, usize)) -> bool {
        kernel(format).is_some() && inputs.is_multiple_of(format.block()) && outputs.is_multiple_of(8)
    }

    /// A weight (outputs, inputs) from its blocks, u8, row after row as in the file. Errors if their number is another.
    pub fn new(blocks: &Tensor, format: Format, (outputs, inputs): (usize, usize)) -> Result<Self> {
        let bytes = outputs * format.row_bytes(inputs)?;
        match kernel(format) {
            Some(kernel) if outputs.is_multiple_of(8) && blocks.dtype() == DType::U8 && blocks.elem_count() == bytes => {
                Ok(QuantisedWeight(Weight { values: contiguous(&blocks.detach())?, format: kernel, outputs, inputs }))
            }
            _ => bail!(
                "a {format} weight ({outputs}, {inputs}) on a CUDA device: expected quantised blocks, outputs in eights and {bytes} bytes, found {} values of {:?}",
                blocks.elem_count(),
                blocks.dtype()
            ),
        }
    }

    /// Whether x and a low-rank part are what the kernels take: one 16-bit type, a rank in eights.
    pub fn fits(&self, x: &Tensor, low: &LowRank) -> Result<bool> {
        Ok(on_device(&[x, low.a, low.b]) && x.dtype() != DType::F32 && low.a.dim(0)?.is_multiple_of(8))
    }

    /// g W without a gradient, of shape (..., in). grad: (..., out), bf16 or f16.
    pub fn input_gradient(&self, grad: &Tensor, shape: &Shape) -> Result<Tensor> {
        self.0.input_gradient(shape, &contiguous(grad)?, None)
    }

    /// x W^T + scale (x A^T) B^T with gradients to x, A and B. x: (..., in), bf16 or f16 -> (..., out).
    pub fn linear(&self, x: &Tensor, low: Option<&LowRank>) -> Result<Tensor> {
        match low {
            None => contiguous(x)?.apply_op1(Frozen { weight: self.0.clone() }),
            Some(low) => adapted(x, &self.0, low),
        }
    }
}

/// x W^T + scale (x A^T) B^T with W (out, in) frozen and gradients to x, A and B. x: (..., in) -> (..., out). None unless all are of one
/// 16-bit type on a CUDA device and the sizes are multiples of 8.
pub fn lora_linear(x: &Tensor, weight: &Tensor, low: &LowRank) -> Result<Option<Tensor>> {
    let ((outputs, inputs), rank) = (weight.dims2()?, low.a.dim(0)?);
    if !on_device(&[x, weight, low.a, low.b]) || x.dtype() == DType::F32 || [outputs, inputs, rank].iter().any(|n| !n.is_multiple_of(8)) {
        return Ok(None);
    }
    let weight = Weight { values: contiguous(&weight.detach())?, format: "dense", outputs, inputs };
    adapted(x, &weight, low).map(Some)
}

fn adapted(x: &Tensor, weight: &Weight, low: &LowRank) -> Result<Tensor> {
    let (a, b) = (contiguous(low.a)?, contiguous(low.b)?);
    if a.dims() != [a.dim(0)?, weight.inputs] || b.dims() != [weight.outputs, a.dim(0)?] {
        bail!("low rank: the weight is ({}, {}), A {:?}, B {:?}", weight.outputs, weight.inputs, a.shape(), b.shape());
    }
    contiguous(x)?.apply_op3(&a, &b, Adapted { weight: weight.clone(), scale: low.scale as f32 })
}

/// `product::Sizes` of product.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: i32,
    outputs: i32,
    inputs: i32,
    rank: i32,
    alpha: f32,
}

// SAFETY: plain values in C's layout
unsafe impl DeviceRepr for Sizes {}

/// alpha x W^T + t B^T, or with the weight `turned` alpha x W + t B: places of W, and of t and B where there is a low-rank part.
struct Product<'a> {
    format: &'a str,
    turned: bool,
    weight: u64,
    low: Option<(u64, u64, usize)>,
    alpha: f32,
}

impl Product<'_> {
    /// x: (rows, inputs) -> y (rows, outputs).
    fn run(&self, device: &CudaDevice, x: &Place, y: &Place, (rows, outputs, inputs): (usize, usize, usize)) -> Result<()> {
        let (low_x, low_weight, rank) = self.low.unwrap_or((0, 0, 0));
        let sizes = Sizes { rows: rows as i32, outputs: outputs as i32, inputs: inputs as i32, rank: rank as i32, alpha: self.alpha };
        let few = rows <= FEW && !self.turned;
        let kind = if few {
            "vector_"
        } else if self.turned {
            "turned_"
        } else {
            ""
        };
        let name = format!("product_{kind}{}_{}", self.format, suffix(x.dtype)?);
        let blocks = match few {
            true => grid((outputs.div_ceil(8), rows, 1), THREADS, inputs.div_ceil(32) as u32 * 33 * 4),
            false => grid((outputs.div_ceil(TILE), rows.div_ceil(TILE), 1), THREADS, 0),
        };
        launch!(device, PRODUCT, &name, blocks, x.address, self.weight, low_x, low_weight, 0u64, y.address, sizes);
        Ok(())
    }
}

impl Weight {
    /// Rows of x and the shape of y.
    fn shapes(&self, x: &Shape) -> Result<(usize, Shape)> {
        Ok((x.elem_count() / self.inputs, output_shape(x, (self.outputs, self.inputs))?))
    }

    fn forward(&self, x: (&CudaStorage, &Layout), low: Option<(u64, u64, usize)>) -> Result<(CudaStorage, Shape)> {
        let (rows, shape) = self.shapes(x.1.shape())?;
        let (y, place) = result(x.0.device(), &shape, x.0.dtype())?;
        let product = Product { format: self.format, turned: false, weight: Place::of(&self.values)?.address, low, alpha: 1.0 };
        product.run(x.0.device(), &Place::new(x.0, x.1)?, &place, (rows, self.outputs, self.inputs))?;
        Ok((y, shape))
    }

    /// dy W + u A, in x's shape.
    fn input_gradient(&self, x: &Shape, grad: &Tensor, low: Option<(u64, u64, usize)>) -> Result<Tensor> {
        let dx = unwritten(x, grad, grad.dtype())?;
        let product = Product { format: self.format, turned: true, weight: Place::of(&self.values)?.address, low, alpha: 1.0 };
        let sizes = (grad.elem_count() / self.outputs, self.inputs, self.outputs);
        product.run(&device(grad)?, &Place::of(grad)?, &Place::of(&dx)?, sizes)?;
        Ok(dx)
    }
}

struct Frozen {
    weight: Weight,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "quantised-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("quantised-linear")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.weight.forward((x, layout), None)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.weight.input_gradient(x.shape(), &contiguous(grad)?, None)?))
    }
}

/// Of x, A and B.
struct Adapted {
    weight: Weight,
    scale: f32,
}

impl Adapted {
    /// scale x A^T, (rows, r), into `t`.
    fn narrow(&self, device: &CudaDevice, x: &Place, a: &Place, t: &Place) -> Result<()> {
        let (rows, rank) = t.layout.shape().dims2()?;
        let product = Product { format: "dense", turned: false, weight: a.address, low: None, alpha: self.scale };
        product.run(device, x, t, (rows, rank, self.weight.inputs))
    }
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_cpu("lora-linear")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        a: &CudaStorage,
        al: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, _) = self.weight.shapes(xl.shape())?;
        let rank = al.shape().dims2()?.0;
        let (_held, t) = result(x.device(), &Shape::from((rows, rank)), x.dtype())?;
        self.narrow(x.device(), &Place::new(x, xl)?, &Place::new(a, al)?, &t)?;
        self.weight.forward((x, xl), Some((t.address, Place::new(b, bl)?.address, rank)))
    }

    /// With u = scale dy B: dx = dy W + u A, dA = u^T x, dB = dy^T t.
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (device, rank, grad) = (device(x)?, a.dim(0)?, contiguous(grad)?);
        let rows = x.elem_count() / self.weight.inputs;
        let (t, u) = (unwritten((rows, rank), x, x.dtype())?, unwritten((rows, rank), x, x.dtype())?);
        let product = Product { format: "dense", turned: true, weight: Place::of(b)?.address, low: None, alpha: self.scale };
        product.run(&device, &Place::of(&grad)?, &Place::of(&u)?, (rows, rank, self.weight.outputs))?;
        self.narrow(&device, &Place::of(x)?, &Place::of(a)?, &Place::of(&t)?)?;
        let dx = self.weight.input_gradient(x.shape(), &grad, Some((Place::of(&u)?.address, Place::of(a)?.address, rank)))?;
        let da = u.t()?.matmul(&x.detach().reshape((rows, self.weight.inputs))?)?;
        let db = grad.reshape((rows, self.weight.outputs))?.t()?.matmul(&t)?;
        Ok((Some(dx), Some(da), Some(db)))
    }
}
