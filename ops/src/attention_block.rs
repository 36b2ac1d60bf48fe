//! LLaMA's attention block with its norm, adapters and residual, as one operation: of its inside the graph holds nothing but queries, keys, values
//! and what attention gives, and heads are read and written where the projections have them.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::attention::batch::{Batch, Heads, Order, Sizes, visible};
use crate::cpu::{Values, fused, values};
use crate::kept::{self, rounded};
use crate::low_rank::{AdaptedMatrix, Group, Thin};
use crate::residual::Residual;
use crate::rope::rotate_rows;

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
    let fixed = |tensor: &Tensor| tensor.detach().contiguous();
    let (residual, string) = Residual::new(x, block.norm, block.eps, &block.projections)?;
    let op = Block {
        sizes: Sizes { batch, heads: q.0 / width, kv_heads: k.0 / width, queries: length, keys: length, width },
        residual,
        projections: block.projections.clone(),
        rotation: [fixed(block.cos)?, fixed(block.sin)?],
        visible: visible(block.key_mask, (batch, length))?,
        kept: Mutex::new(None),
    };
    x.contiguous()?.apply_op2(&string, op)
}

struct Block {
    sizes: Sizes,
    residual: Residual,
    projections: [AdaptedMatrix; 4],
    rotation: [Tensor; 2],
    visible: Option<Vec<bool>>,
    /// Until the backward pass takes it.
    kept: Mutex<Option<Kept>>,
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

    /// Turns rows of whole heads by their positions, or back (`direction` -1).
    fn rotate(&self, rows: &mut [f32], direction: f32) -> Result<()> {
        let [cos, sin] = &self.rotation;
        let Sizes { batch, queries: length, .. } = self.sizes;
        rotate_rows(rows, rows.len() / (batch * length), [&Values::of(cos)?, &Values::of(sin)?], length, direction);
        Ok(())
    }

    fn attention(&self) -> Batch<'_> {
        let scale = 1.0 / (self.sizes.width as f64).sqrt();
        let precision = self.projections[3].matrix.precision();
        Batch { sizes: self.sizes, scale: scale as f32, causal: true, visible: self.visible.as_deref(), bias: None, precision }
    }

    fn heads<'a>(&self, [q, k, v]: [&'a [f32]; 3]) -> [Heads<'a>; 3] {
        let Sizes { queries, heads, kv_heads, width, .. } = self.sizes;
        [(q, heads), (k, kv_heads), (v, kv_heads)].map(|(values, heads)| Heads::of(values, Order::Beside, (heads, queries, width)))
    }

    /// What the block computes before its last product, rounded as it is kept, and the kept of it where it is wanted.
    fn inside(&self, x: &[f32]) -> Result<(Inside, [Option<kept::Values>; 4])> {
        let ([mut q, mut k, mut v], thin) = self.inputs()?.forward(&self.residual.normed(x)?)?;
        self.rotate(&mut q, 1.0)?;
        self.rotate(&mut k, 1.0)?;
        let precision = self.projections.each_ref().map(|own| own.matrix.precision());
        let keep = |place: usize, values: &mut [f32]| rounded(precision[place], values, self.residual.keep);
        let kept = [keep(0, &mut q), keep(1, &mut k), keep(2, &mut v)];
        let mut mixed = self.attention().forward(self.heads([&q, &k, &v]), Order::Beside);
        let [of_q, of_k, of_v] = kept;
        let kept = [of_q, of_k, of_v, keep(3, &mut mixed)];
        Ok((Inside { qkv: [q, k, v], mixed, thin: [thin, Thin::new()] }, kept))
    }

    /// The inside as the forward pass had it.
    fn kept(&self, x: &[f32]) -> Result<Inside> {
        let taken = self.kept.lock().expect("no holder of the lock panics").take();
        if let Some(Kept { values, thin }) = taken {
            let [q, k, v, mixed] = values.map(kept::Values::widened);
            return Ok(Inside { qkv: [q, k, v], mixed, thin });
        }
        let (mut inside, _) = self.inside(x)?;
        inside.thin[1] = self.output()?.thin(&inside.mixed)?;
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
        let of_output = self.output()?.add_forward(&mixed, [&mut y])?;
        if let [Some(q), Some(k), Some(v), Some(mixed)] = kept {
            let kept = Kept { values: [q, k, v, mixed], thin: [thin, of_output] };
            *self.kept.lock().expect("no holder of the lock panics") = Some(kept);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, string: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad = Values::of(&grad)?;
        let Inside { qkv: [q, k, v], mixed, thin } = self.kept(&Values::of(x)?)?;
        let (d_mixed, of_output) = self.output()?.backward(&mixed, &thin[1], [&grad])?;
        drop(mixed);
        let [of_q, of_k, of_v] = self.heads([&q, &k, &v]);
        let of_grad = Heads::of(&d_mixed, Order::Beside, (self.sizes.heads, self.sizes.queries, self.sizes.width));
        let [mut dq, mut dk, dv, _] = self.attention().backward([of_q, of_k, of_v, of_grad], Order::Beside, false);
        drop((q, k, v, d_mixed));
        self.rotate(&mut dq, -1.0)?;
        self.rotate(&mut dk, -1.0)?;
        self.residual.backward((x, string, &grad), (&self.inputs()?, &thin[0]), [&dq, &dk, &dv], of_output)
    }
}
