//! LLaMA's attention block with its norm, adapters and residual, as one operation: of its inside the graph holds nothing but queries, keys, values
//! and what attention gives, and heads are read and written where the projections have them.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use crate::attention::batch::{Batch, Heads, Sizes};
use crate::bands::Band;
use crate::cpu::{Values, fused, values, written};
use crate::kept::{self, rounded};
use crate::knots::{Gradients, tie};
use crate::low_rank::{AdaptedMatrix, Group, Thin, add_all, trained};
use crate::norm::{rms_gradient, rms_rows};
use crate::rope::rotate_rows;
use crate::transfers::host_values;

/// A frozen attention block: norm, projections with their adapters, rotation.
#[derive(Debug, Clone)]
pub struct AttentionBlock<'a> {
    /// Of the root-mean-square norm (C).
    pub norm: &'a Tensor,
    /// Of the norm.
    pub eps: f64,
    /// Query (H D, C), key and value (H' D, C), output (C, H D); in the host's memory.
    pub projections: [AdaptedMatrix; 4],
    /// Of the rotation (L, D/2).
    pub cos: &'a Tensor,
    /// Of the rotation (L, D/2).
    pub sin: &'a Tensor,
    /// (B, L), 1 where a position may be attended to. Any numeric type.
    pub key_mask: Option<&'a Tensor>,
}

/// x + o(attend(rope(q(n)), rope(k(n)), v(n))) with n = rms_norm(x, norm) and causal attention (H. Touvron et al., "LLaMA", 2023).
/// x: (B, L, C), f32 on the CPU -> (B, L, C).
///
/// Gradients go to x and to the adapters: norm and matrices are frozen. Where query and output multiply in bf16, queries, keys, values and what
/// attention gives are rounded to it and kept so.
pub fn attention_block(x: &Tensor, block: &AttentionBlock) -> Result<Tensor> {
    let (batch, length, channels) = x.dims3()?;
    let (positions, half) = block.cos.dims2()?;
    let [q, k, v, o] = block.projections.each_ref().map(|own| own.matrix.size());
    let width = 2 * half;
    let fits = q.1 == channels && k == v && k.1 == channels && o == (channels, q.0) && block.norm.elem_count() == channels;
    let heads = width > 0 && q.0 % width == 0 && k.0 % width == 0 && k.0 > 0 && q.0 % k.0 == 0;
    if !fits || !heads || positions != length || block.sin.dims() != block.cos.dims() {
        bail!(
            "attention block: x is {:?}, norm {:?}, projections {:?}, rotation {:?}",
            x.shape(),
            block.norm.shape(),
            [q, k, v, o],
            block.cos.shape()
        );
    }
    if !fused(&[x, block.norm, block.cos, block.sin]) {
        bail!("attention block: expected f32 in the host's memory");
    }
    for own in &block.projections {
        own.check("attention block")?;
    }
    let mask = |mask: &Tensor| host_values::<f32>(&mask.to_dtype(DType::F32)?);
    let visible = block.key_mask.map(mask).transpose()?.map(|mask| mask.iter().map(|&m| m != 0.0).collect::<Vec<_>>());
    if visible.as_ref().is_some_and(|visible| visible.len() != batch * length) {
        bail!("attention block: the key mask has not (B, L) values for x of {:?}", x.shape());
    }
    let tied: Vec<Tensor> = trained(&block.projections);
    let (gradients, fixed) = (Gradients::default(), |tensor: &Tensor| tensor.detach().contiguous());
    let string = tie(&tied, &gradients)?;
    let op = Block {
        sizes: Sizes { batch, heads: q.0 / width, kv_heads: k.0 / width, queries: length, keys: length, width },
        norm: fixed(block.norm)?,
        eps: block.eps as f32,
        projections: block.projections.clone(),
        rotation: [fixed(block.cos)?, fixed(block.sin)?],
        visible,
        keep: x.track_op() || !tied.is_empty(),
        kept: Mutex::new(None),
        gradients,
    };
    x.contiguous()?.apply_op2(&string, op)
}

struct Block {
    sizes: Sizes,
    norm: Tensor,
    eps: f32,
    projections: [AdaptedMatrix; 4],
    rotation: [Tensor; 2],
    visible: Option<Vec<bool>>,
    keep: bool,
    /// Until the backward pass takes it.
    kept: Mutex<Option<Kept>>,
    gradients: Gradients,
}

/// What a forward pass leaves.
struct Kept {
    /// Rotated queries and keys, values, what attention gave.
    values: [kept::Values; 4],
    thin: [Thin; 2],
}

/// The same as the backward pass reads it.
struct Inside {
    /// Rotated queries and keys, values: (B L, H D) and (B L, H' D).
    qkv: [Vec<f32>; 3],
    /// What attention gave (B L, H D).
    mixed: Vec<f32>,
    thin: [Thin; 2],
}

impl Block {
    fn inputs(&self) -> Result<Group<'_, 3>> {
        let [q, k, v, _] = &self.projections;
        Group::of([q, k, v])
    }

    fn output(&self) -> Result<Group<'_, 1>> {
        Group::of([&self.projections[3]])
    }

    fn normed(&self, x: &[f32]) -> Result<Vec<f32>> {
        Ok(rms_rows(x, &Values::of(&self.norm)?, self.eps))
    }

    /// Turns rows of whole heads by their positions, or back (`direction` -1).
    fn rotate(&self, rows: &mut [f32], direction: f32) -> Result<()> {
        let [cos, sin] = &self.rotation;
        let Sizes { batch, queries: length, .. } = self.sizes;
        rotate_rows(rows, rows.len() / (batch * length), [&Values::of(cos)?, &Values::of(sin)?], length, direction);
        Ok(())
    }

    fn attention(&self) -> Batch<'_> {
        let scale = 1.0 / (self.sizes.width as f64).sqrt();
        Batch { sizes: self.sizes, scale: scale as f32, causal: true, visible: self.visible.as_deref(), bias: None }
    }

    fn heads<'a>(&self, [q, k, v]: [&'a [f32]; 3]) -> [Heads<'a>; 3] {
        let Sizes { queries, heads, kv_heads, width, .. } = self.sizes;
        [(q, heads), (k, kv_heads), (v, kv_heads)].map(|(values, heads)| Heads::of_rows(values, (queries, heads, width)))
    }

    /// What the block computes before its last product, rounded as it is kept, and the kept of it where it is wanted.
    fn inside(&self, x: &[f32]) -> Result<(Inside, [Option<kept::Values>; 4])> {
        let ([mut q, mut k, mut v], thin) = self.inputs()?.forward(&self.normed(x)?)?;
        self.rotate(&mut q, 1.0)?;
        self.rotate(&mut k, 1.0)?;
        let precision = self.projections.each_ref().map(|own| own.matrix.precision());
        let keep = |place: usize, values: &mut [f32]| rounded(precision[place], values, self.keep);
        let kept = [keep(0, &mut q), keep(1, &mut k), keep(2, &mut v)];
        let [of_queries, of_keys, of_values] = self.heads([&q, &k, &v]);
        // SAFETY: every row of every head is written.
        let mut mixed = unsafe {
            written(q.len(), |out| {
                let outs = self.bands(out, self.sizes.heads);
                self.attention().forward(of_queries, of_keys, of_values, outs);
            })
        };
        let [of_q, of_k, of_v] = kept;
        let kept = [of_q, of_k, of_v, keep(3, &mut mixed)];
        Ok((Inside { qkv: [q, k, v], mixed, thin: [thin, Thin::new()] }, kept))
    }

    /// (L, D) of each head of each element of the batch, of rows of whole heads.
    fn bands<'a>(&self, rows: &'a mut [std::mem::MaybeUninit<f32>], heads: usize) -> Vec<Band<'a>> {
        let Sizes { queries, width, .. } = self.sizes;
        rows.chunks_mut(queries * heads * width).flat_map(|rows| Band::split(rows, heads * width, width)).collect()
    }

    /// Gradients of rotated queries and keys and of values, in rows.
    fn attention_gradients(&self, qkv: [&[f32]; 3], grad: &[f32]) -> [Vec<f32>; 3] {
        let Sizes { queries, heads, kv_heads, width, .. } = self.sizes;
        let [q, k, v] = self.heads(qkv);
        let grad = Heads::of_rows(grad, (queries, heads, width));
        let (mut dk, mut dv) = (Vec::new(), Vec::new());
        // SAFETY: every row of every head is written.
        let dq = unsafe {
            written(qkv[0].len(), |dq| {
                dk = written(qkv[1].len(), |dk| {
                    dv = written(qkv[2].len(), |dv| {
                        let outs = [self.bands(dq, heads), self.bands(dk, kv_heads), self.bands(dv, kv_heads)];
                        self.attention().backward([q, k, v, grad], outs, false);
                    });
                });
            })
        };
        [dq, dk, dv]
    }

    /// The inside as the forward pass had it.
    fn kept(&self, x: &[f32]) -> Result<Inside> {
        let taken = self.kept.lock().expect("no holder of the lock panics").take();
        if let Some(Kept { values, thin }) = taken {
            let [q, k, v, mixed] = values.map(kept::Values::widened);
            return Ok(Inside { qkv: [q, k, v], mixed, thin });
        }
        let (mut inside, _) = self.inside(x)?;
        inside.thin[1] = self.output()?.thin(&inside.mixed);
        Ok(inside)
    }
}

impl CustomOp2 for Block {
    fn name(&self) -> &'static str {
        "attention-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (Inside { mixed, thin: [thin, _], .. }, kept) = self.inside(x)?;
        let mut y = x.to_vec();
        self.projections[3].matrix.add_multiply(&mixed, true, &mut y);
        let of_output = self.output()?.add_adapters(&mixed, [&mut y])?;
        if let [Some(q), Some(k), Some(v), Some(mixed)] = kept {
            let kept = Kept { values: [q, k, v, mixed], thin: [thin, of_output] };
            *self.kept.lock().expect("no holder of the lock panics") = Some(kept);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, string: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x_values, grad) = (Values::of(x)?, Values::of(&grad)?);
        let Inside { qkv: [q, k, v], mixed, thin } = self.kept(&x_values)?;
        let (d_mixed, of_output) = self.output()?.backward(&mixed, &thin[1], [&grad])?;
        drop(mixed);
        let [mut dq, mut dk, dv] = self.attention_gradients([&q, &k, &v], &d_mixed);
        drop((q, k, v, d_mixed));
        self.rotate(&mut dq, -1.0)?;
        self.rotate(&mut dk, -1.0)?;
        let inputs = self.inputs()?;
        let normed = if inputs.is_adapted() { self.normed(&x_values)? } else { Vec::new() };
        let (d_normed, of_inputs) = inputs.backward(&normed, &thin[0], [&dq, &dk, &dv])?;
        let mut dx = rms_gradient(&x_values, &Values::of(&self.norm)?, &d_normed, self.eps);
        add_all(&mut dx, &grad);
        self.gradients.set(of_inputs.into_iter().chain(of_output).map(Some).collect());
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(string.zeros_like()?)))
    }
}
