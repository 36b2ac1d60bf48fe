//! Attention of one head on one core: blocks of queries against all keys they see, probabilities made anew in the backward pass.

use super::few::weighted_sums;
use crate::bands::Band;
use crate::gemm::{Added, SmallRight};
use crate::product::{Left, add_product, padded, product};
use crate::simd::{dot, vectorised};
use crate::softmax::softmax_row;

/// Queries of a block: its logits stay in the second-level cache.
const BLOCK: usize = 32;

/// Up to this many queries to a key-value head are taken one by one.
const FEW: usize = 4;

/// Rows of one head: row i starts at `i * stride`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

/// Sizes and visibility for one batch element.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    pub l: usize,
    pub m: usize,
    pub d: usize,
    pub scale: f32,
    pub causal: bool,
    /// (M), false where no query may look.
    pub visible: Option<&'a [bool]>,
    /// Whether factors are rounded to bf16 and multiplied in pairs, with sums, softmax and all that is added in f32 (as T. Dao et al.,
    /// "FlashAttention", 2022, compute in 16 bits). Without a bias.
    pub pairs: bool,
}

impl Problem<'_> {
    /// Query i sees keys before this one.
    fn end(&self, i: usize) -> usize {
        if self.causal { (i + 1 + self.m).saturating_sub(self.l).min(self.m) } else { self.m }
    }

    fn first_visible(&self) -> usize {
        self.visible.map_or(0, |visible| visible.iter().position(|&v| v).unwrap_or(self.m))
    }

    fn sees_nothing(&self, i: usize) -> bool {
        self.first_visible() >= self.end(i)
    }

    /// Keys that a block must look at: those of its last query, or all if its first sees nothing and so averages all.
    fn keys_of_block(&self, first: usize, rows: usize) -> usize {
        if self.sees_nothing(first) { self.m } else { self.end(first + rows - 1) }
    }
}

/// Rows `first .. first + count` times `scale`, padded with zeros to whole tiles.
fn pack(x: Rows, first: usize, count: usize, d: usize, scale: f32) -> Vec<f32> {
    let width = padded(d);
    let mut packed = vec![0.0; count * width];
    for (i, row) in packed.chunks_exact_mut(width).enumerate() {
        row.iter_mut().zip(&x.values[(first + i) * x.stride..][..d]).for_each(|(p, x)| *p = x * scale);
    }
    packed
}

vectorised! {
    /// Softmax of `scale` times the logits of the keys that one query sees; 0 for the others; the mean of all `m` if it sees none, as a softmax of
    /// equal logits.
    fn normalise(row: &mut [f32], scale: f32, end: usize, m: usize, visible: &[bool], sees_nothing: bool) {
        if sees_nothing {
            row[..m].fill(1.0 / m as f32);
            row[m..].fill(0.0);
            return;
        }
        row[end..].fill(0.0);
        if scale != 1.0 {
            row[..end].iter_mut().for_each(|x| *x *= scale);
        }
        for (x, &visible) in row[..end].iter_mut().zip(visible) {
            *x = if visible { *x } else { f32::NEG_INFINITY };
        }
        softmax_row(&mut row[..end]);
    }

    /// Turns dL/dP into dL/dS = P (dP - <P, dP>).
    fn logit_gradient(p: &[f32], dp: &mut [f32]) {
        let mean = dot(p, dp);
        for (dp, &p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - mean);
        }
    }

    /// Writes the inner products of one query with the first rows of `keys`, one for each value of `logits`.
    fn inner_products(q: &[f32], keys: Rows, scale: f32, logits: &mut [f32]) {
        for (j, logit) in logits.iter_mut().enumerate() {
            *logit = scale * dot(q, &keys.values[j * keys.stride..][..q.len()]);
        }
    }

    fn add(sum: &mut [f32], x: &[f32]) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
}

/// A block of queries: its first row and number of rows, and the number of keys it looks at.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    rows: usize,
    keys: usize,
}

impl Problem<'_> {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        (0..self.l).step_by(BLOCK).map(|first| {
            let rows = BLOCK.min(self.l - first);
            Block { first, rows, keys: self.keys_of_block(first, rows) }
        })
    }

    /// What packed queries are multiplied by, and what their products with keys are: before queries are rounded they are not.
    fn scales(&self) -> [f32; 2] {
        if self.pairs { [1.0, self.scale] } else { [self.scale, 1.0] }
    }

    /// The rows (count, D) as a right factor of as many columns.
    fn turned(&self, x: Rows, count: usize) -> SmallRight<'static> {
        SmallRight::turned((x.values, x.stride), (count, self.d), padded(count), self.pairs)
    }

    /// The packed rows (count, D) as a right factor of as many rows.
    fn right<'a>(&self, packed: &'a [f32], count: usize) -> SmallRight<'a> {
        let width = padded(self.d);
        if self.pairs { SmallRight::paired((packed, width), (count, width), width) } else { SmallRight::Values(packed.into()) }
    }

    /// Writes a block's probabilities to `p`, (rows, padded M); q is packed, bias (L, M).
    fn probabilities(&self, block: Block, q: &[f32], keys_turned: &SmallRight, bias: Option<&[f32]>, p: &mut [f32]) {
        let (width, seen) = (padded(self.m), padded(block.keys));
        let added = match bias {
            None => Added::Nothing,
            Some(bias) if block.keys == seen => Added::To(&bias[block.first * self.m..], self.m),
            Some(bias) => {
                for (i, row) in p.chunks_exact_mut(width).enumerate().take(block.rows) {
                    row[..block.keys].copy_from_slice(&bias[(block.first + i) * self.m..][..block.keys]);
                    row[block.keys..seen].fill(0.0);
                }
                Added::Own
            }
        };
        let left = Left { values: q, row: padded(self.d), column: 1, size: (block.rows, self.d) };
        product(p, left, keys_turned, seen, width, added);
        for (i, row) in p.chunks_exact_mut(width).enumerate().take(block.rows) {
            let query = block.first + i;
            let end = self.end(query);
            normalise(&mut row[..seen], self.scales()[1], end, self.m, self.visible.unwrap_or(&[]), self.sees_nothing(query));
        }
    }

    /// One key-value head and the query heads that share it. outs: (L, D) of each.
    pub fn forward(&self, queries: &[Rows], keys: Rows, values: Rows, bias: Option<&[f32]>, outs: &mut [Band]) {
        if self.l * queries.len() <= FEW {
            return self.forward_few(queries, keys, values, bias, outs);
        }
        let (width, d_width) = (padded(self.m), padded(self.d));
        let (keys_turned, values) = (self.turned(keys, self.m), pack(values, 0, self.m, self.d, 1.0));
        let values = self.right(&values, self.m);
        let mut p = vec![0.0; BLOCK.min(self.l) * width];
        let mut y = vec![0.0; BLOCK.min(self.l) * d_width];
        for (head, (q, out)) in queries.iter().zip(outs).enumerate() {
            let bias = bias.map(|bias| &bias[head * self.l * self.m..]);
            for block in self.blocks() {
                let q = pack(*q, block.first, block.rows, self.d, self.scales()[0]);
                self.probabilities(block, &q, &keys_turned, bias, &mut p);
                let left = Left { values: &p, row: width, column: 1, size: (block.rows, block.keys) };
                product(&mut y, left, &values, d_width, d_width, Added::Nothing);
                unpack(&y, out, (block.first, block.rows), self.d, 1.0);
            }
        }
    }

    /// As [`Self::forward`], one query at a time: for generation, where turning the keys would cost more than using them.
    fn forward_few(&self, queries: &[Rows], keys: Rows, values: Rows, bias: Option<&[f32]>, outs: &mut [Band]) {
        let mut p = vec![0.0; self.m];
        for row in 0..queries.len() * self.l {
            let (head, query) = (row / self.l, row % self.l);
            let q = &queries[head].values[query * queries[head].stride..][..self.d];
            inner_products(q, keys, self.scale, &mut p);
            if let Some(bias) = bias {
                add(&mut p, &bias[row * self.m..][..self.m]);
            }
            normalise(&mut p, 1.0, self.end(query), self.m, self.visible.unwrap_or(&[]), self.sees_nothing(query));
            weighted_sums(&p, 1, self.m, values, outs[head].row(query));
        }
    }

    /// Gradients of one key-value head and the query heads that share it; what is added to `dbias` is (heads, L, M). grads: (L, D) of each query
    /// head.
    #[allow(clippy::too_many_arguments, reason = "each is a tensor of its own")]
    pub fn backward(
        &self,
        queries: &[Rows],
        keys: Rows,
        values: Rows,
        bias: Option<&[f32]>,
        grads: &[Rows],
        mut out: Gradients,
        mut dbias: Option<&mut [f32]>,
    ) {
        let (l, m, d, width, d_width) = (self.l, self.m, self.d, padded(self.m), padded(self.d));
        let (keys_turned, values_turned) = (self.turned(keys, m), self.turned(values, m));
        let keys = pack(keys, 0, m, d, 1.0);
        let keys = self.right(&keys, m);
        let (mut dk, mut dv) = (vec![0.0; m * d_width], vec![0.0; m * d_width]);
        let rows = BLOCK.min(l);
        let (mut p, mut ds, mut dq) = (vec![0.0; rows * width], vec![0.0; rows * width], vec![0.0; rows * d_width]);
        for (head, (q, grad)) in queries.iter().zip(grads).enumerate() {
            let bias = bias.map(|bias| &bias[head * l * m..]);
            for block in self.blocks() {
                let q = pack(*q, block.first, block.rows, d, self.scales()[0]);
                let g = pack(*grad, block.first, block.rows, d, 1.0);
                self.probabilities(block, &q, &keys_turned, bias, &mut p);
                self.logit_gradients(block, &g, &values_turned, &p, &mut ds);
                let turned = |values| Left { values, row: 1, column: width, size: (block.keys, block.rows) };
                add_product(&mut dv, turned(&p), &self.right(&g, block.rows), d_width, d_width);
                add_product(&mut dk, turned(&ds), &self.right(&q, block.rows), d_width, d_width);
                let left = Left { values: &ds, row: width, column: 1, size: (block.rows, block.keys) };
                product(&mut dq, left, &keys, d_width, d_width, Added::Nothing);
                unpack(&dq, &mut out.dq[head], (block.first, block.rows), d, self.scale);
                if let Some(dbias) = dbias.as_deref_mut() {
                    for (i, ds) in ds.chunks_exact(width).enumerate().take(block.rows) {
                        add(&mut dbias[(head * l + block.first + i) * m..][..block.keys], ds);
                    }
                }
            }
        }
        unpack(&dk, &mut out.dk, (0, m), d, self.scales()[1]);
        unpack(&dv, &mut out.dv, (0, m), d, 1.0);
    }

    /// dL/dS of a block, (rows, padded M); 0 for a query that sees nothing.
    fn logit_gradients(&self, block: Block, grad: &[f32], values_turned: &SmallRight, p: &[f32], ds: &mut [f32]) {
        let (width, seen) = (padded(self.m), padded(block.keys));
        let left = Left { values: grad, row: padded(self.d), column: 1, size: (block.rows, self.d) };
        product(ds, left, values_turned, seen, width, Added::Nothing);
        for (i, (ds, p)) in ds.chunks_exact_mut(width).zip(p.chunks_exact(width)).enumerate().take(block.rows) {
            if self.sees_nothing(block.first + i) {
                ds[..seen].fill(0.0);
            } else {
                logit_gradient(&p[..seen], &mut ds[..seen]);
            }
        }
    }
}

/// Where the gradients of one key-value head go, and those of the query heads that share it.
pub struct Gradients<'a> {
    /// (L, D) of each query head.
    pub dq: Vec<Band<'a>>,
    /// (M, D)
    pub dk: Band<'a>,
    /// (M, D)
    pub dv: Band<'a>,
}

/// Takes the padding off (rows, d), multiplies by `scale` and writes it to the rows from `first` on.
fn unpack(packed: &[f32], out: &mut Band, (first, rows): (usize, usize), d: usize, scale: f32) {
    for (i, packed) in packed.chunks_exact(padded(d)).enumerate().take(rows) {
        out.row(first + i).iter_mut().zip(packed).for_each(|(x, p)| *x = p * scale);
    }
}
