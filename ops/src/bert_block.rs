//! A layer of a frozen BERT. On the processor it is one operation: its weights are packed once, and a core takes some texts through all of it, so
//! that what is computed inside stays in its cache and never becomes a tensor.

use std::fmt;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::{gelu, gelu_sums};
use crate::attention::batch::{Batch, Heads, Order, Sizes, visible};
use crate::attention::{Attention, attention};
use crate::cpu::{Values, cleared, held, rewritten, room, written};
use crate::gemm::{Added, PackedRight, PackedRows, Precision};
use crate::matrix::Matrix;
use crate::norm::{layer_norm, layer_rows_of_sum};
use crate::transfers::host_values;

/// Rows that go through a layer together: fewer would read the weights more often, more would not fit a core's second-level cache.
const ROWS: usize = 280;

/// Self-attention and a GELU feed-forward of frozen weights, each with a bias in every product and a layer norm behind its residual sum
/// (Devlin et al., "BERT"). Nothing that it computes has a gradient.
pub struct BertBlock {
    layers: Layers,
    /// Weight and bias (C) of the norm behind attention and of that behind the feed-forward.
    norms: [[Tensor; 2]; 2],
    /// (width, inner width)
    size: (usize, usize),
    heads: usize,
    eps: f64,
}

/// Queries, keys, values, output, feed-forward up and down.
enum Layers {
    Here([Packed; 6]),
    Away([(Matrix, Tensor); 6]),
}

/// Weight and bias of a product on the processor.
struct Packed {
    right: PackedRight,
    bias: Vec<f32>,
}

/// Room that a core keeps from piece to piece.
#[derive(Default)]
struct Scratch {
    qkv: [Vec<f32>; 3],
    mixed: Vec<f32>,
    normed: Vec<f32>,
    inner: Vec<f32>,
    rows: [PackedRows; 2],
}

impl fmt::Debug for BertBlock {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "BertBlock({} and {} wide, {} heads)", self.size.0, self.size.1, self.heads)
    }
}

impl Packed {
    fn new((weight, bias): &(Matrix, Tensor)) -> Result<Self> {
        Ok(Packed { right: weight.packed(), bias: host_values::<f32>(bias)?.to_vec() })
    }

    /// Writes x W^T + b.
    fn write(&self, rows: &PackedRows, out: &mut [f32]) {
        let width = self.bias.len();
        rows.multiply(&self.right, 0, (0, width), (out, width), Added::To(&self.bias, 0));
    }
}

impl BertBlock {
    /// Queries, keys, values, output, feed-forward up and down: each a weight (out, in), whose products keep its precision, and a bias (out).
    /// norms: weight and bias (C) behind attention and behind the feed-forward. All on one device, norms and biases in f32 on the processor.
    pub fn new(layers: [(Matrix, Tensor); 6], norms: [[&Tensor; 2]; 2], heads: usize, eps: f64) -> Result<Self> {
        let size @ (width, inner) = (layers[0].0.size().0, layers[4].0.size().0);
        let sizes = [[width; 2], [width; 2], [width; 2], [width; 2], [inner, width], [width, inner]];
        for ((weight, bias), [outputs, inputs]) in layers.iter().zip(sizes) {
            if weight.size() != (outputs, inputs) || bias.dims() != [outputs] || !bias.device().same_device(weight.device()) {
                let found = format!("{weight:?} with a bias of {:?} on {:?}", bias.shape(), bias.device());
                bail!("BERT block: expected a weight ({outputs}, {inputs}) and a bias ({outputs}), found {found}");
            }
        }
        if heads == 0 || !width.is_multiple_of(heads) || width * inner == 0 || norms.iter().flatten().any(|row| row.dims() != [width]) {
            bail!("BERT block: {heads} heads of {width} values, norms {norms:?}");
        }
        let layers = match layers.iter().all(|(weight, _)| weight.in_place()) {
            true => {
                let packed = layers.iter().map(Packed::new).collect::<Result<Vec<_>>>()?;
                Layers::Here(packed.try_into().unwrap_or_else(|_| unreachable!("as many as there were")))
            }
            false => Layers::Away(layers.map(|(weight, bias)| (weight, bias.detach()))),
        };
        let norms = norms.map(|norm| norm.map(Tensor::detach));
        Ok(BertBlock { layers, norms, size, heads, eps })
    }

    /// x: (B, L, C), mask: (B, L) of any numeric type, not 0 where a token is -> (B, L, C), on the layer's device.
    pub fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        if x.dims3()?.2 != self.size.0 {
            bail!("{self:?}: x is {:?}", x.shape());
        }
        match &self.layers {
            Layers::Here(layers) => self.forward_here(layers, x, mask),
            Layers::Away(layers) => self.forward_away(layers, &x.detach(), mask),
        }
    }

    /// Operation by operation.
    fn forward_away(&self, [query, key, value, out, up, down]: &[(Matrix, Tensor); 6], x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let ((b, l, width), head) = (x.dims3()?, self.size.0 / self.heads);
        let affine = |(weight, bias): &(Matrix, Tensor), x: &Tensor| weight.forward_biased(x, bias);
        let heads = |layer| affine(layer, x)?.reshape((b, l, self.heads, head))?.transpose(1, 2);
        let norm_of_sum = |y: Tensor, x: &Tensor, [weight, bias]: &[Tensor; 2]| layer_norm(&(x + y)?, weight, Some(bias), self.eps);
        let options = Attention { key_mask: Some(mask), ..Attention::full(1.0 / (head as f64).sqrt()) };
        let mixed = attention(&heads(query)?, &heads(key)?, &heads(value)?, &options)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, l, width))?;
        let x = norm_of_sum(affine(out, &mixed)?, x, &self.norms[0])?;
        norm_of_sum(affine(down, &gelu(&affine(up, &x)?)?)?, &x, &self.norms[1])
    }

    fn forward_here(&self, layers: &[Packed; 6], x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (texts, length, width) = x.dims3()?;
        let visible = visible(Some(mask), (texts, length))?.unwrap_or_default();
        let held = held("BERT block", self.norms.iter().flatten().chain([x]))?;
        let values: Vec<Values> = held.iter().map(Values::of).collect::<Result<_>>()?;
        let [norm, shift, feed_norm, feed_shift, x_values] = &values[..] else { unreachable!("there are as many tensors") };
        let run = Run { layers, norms: [[norm, shift], [feed_norm, feed_shift]], heads: self.heads, length, eps: self.eps as f32 };
        // whole texts, and as many pieces as cores or more
        let of_piece = (ROWS / length.max(1)).min(texts / rayon::current_num_threads()).max(1) * length.max(1);
        // SAFETY: the pieces are all there is.
        let y = unsafe {
            written(texts * length * width, |y| {
                let pieces =
                    y.par_chunks_mut(of_piece * width).zip(x_values.par_chunks(of_piece * width)).zip(visible.par_chunks(of_piece));
                pieces.for_each_init(Scratch::default, |scratch, ((y, x), visible)| run.texts(x, visible, cleared(y), scratch));
            })
        };
        Tensor::from_vec(y, x.shape(), x.device())
    }
}

/// The layer as pieces of work read it.
struct Run<'a> {
    layers: &'a [Packed; 6],
    norms: [[&'a [f32]; 2]; 2],
    heads: usize,
    /// Of a text, in tokens.
    length: usize,
    eps: f32,
}

impl Run<'_> {
    /// Some texts, and which of their tokens are seen.
    fn texts(&self, x: &[f32], visible: &[bool], y: &mut [f32], scratch: &mut Scratch) {
        let ([projections @ .., out, up, down], length) = (self.layers, self.length);
        let (heads, width) = (self.heads, out.bias.len());
        let Scratch { qkv, mixed, normed, inner, rows } = scratch;
        rows[0].pack(x, &projections[0].right);
        for (out, layer) in qkv.iter_mut().zip(projections) {
            layer.write(&rows[0], room(out, x.len()));
        }
        let (texts, head) = (visible.len() / length, width / heads);
        let sizes = Sizes { batch: texts, heads, kv_heads: heads, queries: length, keys: length, width: head };
        let batch = Batch {
            sizes,
            scale: 1.0 / (head as f32).sqrt(),
            causal: false,
            visible: Some(visible),
            bias: None,
            precision: Precision::F32,
        };
        let mixed = room(mixed, x.len());
        // SAFETY: attention writes values.
        batch.forward_here(qkv.each_ref().map(|x| Heads::of(x, Order::Beside, (heads, length, head))), unsafe { rewritten(mixed) });
        rows[0].pack(mixed, &out.right);
        let normed = room(normed, x.len());
        out.write(&rows[0], normed);
        layer_rows_of_sum(normed, x, self.norms[0], self.eps);
        feed(normed, (up, down), (inner, rows), y);
        layer_rows_of_sum(y, normed, self.norms[1], self.eps);
    }
}

/// Writes the feed-forward of some rows, a block of its inner axis at a time.
fn feed(x: &[f32], (up, down): (&Packed, &Packed), (inner, [rows, of_inner]): (&mut Vec<f32>, &mut [PackedRows; 2]), y: &mut [f32]) {
    let width = down.bias.len();
    let count = x.len() / width;
    rows.pack(x, &up.right);
    for (block, (first, wide)) in down.right.spans().enumerate() {
        let inner = room(inner, count * wide);
        rows.multiply(&up.right, 0, (first, wide), (inner, wide), Added::Nothing);
        gelu_sums(inner, &up.bias[first..][..wide]);
        of_inner.clear(count);
        of_inner.push(inner, wide, wide, &down.right);
        let added = if block == 0 { Added::To(&down.bias, 0) } else { Added::Own };
        of_inner.multiply(&down.right, block, (0, width), (y, width), added);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::gemm::Precision;

    const WIDTH: usize = 48;
    const INNER: usize = 600;

    fn noise(shape: &[usize], seed: usize, size: f32) -> Tensor {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        Tensor::from_vec((0..shape.iter().product()).map(|i| size * value(i)).collect(), shape, &Device::Cpu).unwrap()
    }

    /// A layer of weights of one type; `away`: in the form that it has on a device.
    fn block(dtype: DType, precision: Option<Precision>, away: bool) -> BertBlock {
        let sizes = [[WIDTH; 2], [WIDTH; 2], [WIDTH; 2], [WIDTH; 2], [INNER, WIDTH], [WIDTH, INNER]];
        let layers = std::array::from_fn(|layer| {
            let [outputs, inputs] = sizes[layer];
            let weight = noise(&[outputs, inputs], layer, (inputs as f32).powf(-0.5)).to_dtype(dtype).unwrap();
            let matrix = Matrix::from_tensor(&weight).unwrap();
            let matrix = precision.map_or(matrix.clone(), |precision| matrix.with_precision(precision));
            (if away { matrix.copy_on(&Device::Cpu).unwrap() } else { matrix }, noise(&[outputs], 10 + layer, 0.5))
        });
        let rows: Vec<Tensor> = (20..24).map(|seed| (noise(&[WIDTH], seed, 0.5) + 1.0).unwrap()).collect();
        BertBlock::new(layers, [[&rows[0], &rows[1]], [&rows[2], &rows[3]]], 3, 1e-5).unwrap()
    }

    fn length(x: &Tensor) -> f32 {
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    }

    #[test]
    fn a_layer_in_one_operation_equals_its_operations_one_by_one() {
        // one text, and more than a piece holds
        for (texts, tokens) in [(1, 1), (1, 37), (31, 40), (3, 300)] {
            let x = noise(&[texts, tokens, WIDTH], 30, 1.0);
            let shown = (0..texts * tokens).map(|at| u32::from(at % tokens <= tokens - at / tokens % tokens)).collect();
            let mask = Tensor::from_vec(shown, (texts, tokens), &Device::Cpu).unwrap();
            let expected = block(DType::F32, None, true).forward(&x, &mask).unwrap();
            // the last two: weights and rows rounded to 2^-9, or 2^-12 where halves are multiplied
            let (f32, bf16, int16) = (DType::F32, DType::BF16, Some(Precision::Int16));
            let kinds = [(f32, None, false, 1e-6), (f32, int16, false, 5e-4), (bf16, None, false, 8e-3), (bf16, None, true, 8e-3)];
            for (dtype, precision, away, tolerance) in kinds {
                let found = block(dtype, precision, away).forward(&x, &mask).unwrap();
                let apart = length(&(found - &expected).unwrap()) / length(&expected);
                assert!(apart < tolerance, "{texts} texts of {tokens} tokens, {dtype:?} {precision:?}: {apart}");
            }
        }
    }

    #[test]
    fn a_texts_states_do_not_depend_on_those_beside_it() {
        let (x, block) = (noise(&[20, 30, WIDTH], 31, 1.0), block(DType::F32, None, false));
        let mask = Tensor::ones((20, 30), DType::U32, &Device::Cpu).unwrap();
        let together = block.forward(&x, &mask).unwrap().narrow(0, 17, 1).unwrap();
        let alone = block.forward(&x.narrow(0, 17, 1).unwrap(), &mask.narrow(0, 17, 1).unwrap()).unwrap();
        assert_eq!(length(&(together - alone).unwrap()), 0.0);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let layers = || std::array::from_fn(|_| (Matrix::from_tensor(&noise(&[6, 6], 1, 1.0)).unwrap(), noise(&[6], 2, 1.0)));
        let row = noise(&[6], 3, 1.0);
        assert!(BertBlock::new(layers(), [[&row; 2]; 2], 2, 1e-5).is_ok());
        assert!(BertBlock::new(layers(), [[&row; 2]; 2], 4, 1e-5).is_err());
        let mut wrong = layers();
        wrong[4].1 = noise(&[5], 4, 1.0);
        assert!(BertBlock::new(wrong, [[&row; 2]; 2], 2, 1e-5).is_err());
    }
}
