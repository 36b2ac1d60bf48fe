//! Frozen matrices with LoRA beside them, as the fused blocks multiply them: E. Hu et al., "LoRA" (2021), W x + scale B A x.
//!
//! Adapters of matrices that take the same inputs are multiplied together where they can: their A lie one below the other.

use std::cell::OnceCell;

use candle_core::{Device, Result, Tensor, bail};

use crate::cpu::{PIECE, Values, for_pieces, fused};
use crate::few::{FEW_ROWS, add_rows_times, rows_times, rows_times_each};
use crate::gemm::{Left, Precision, Right, add_product, product};
use crate::simd::vectorised;
use crate::{DropoutMask, Matrix};

/// What LoRA adds to a matrix: scale B A drop(x), with gradients to A and B.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// (r, in), f32.
    pub a: Tensor,
    /// (out, r), f32.
    pub b: Tensor,
    /// What the product is multiplied by.
    pub scale: f64,
    /// What a training step's dropout keeps of x.
    pub dropout: Option<DropoutMask>,
}

impl LowRank {
    fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

/// A frozen matrix in the host's memory, and what LoRA adds to it.
#[derive(Debug, Clone)]
pub struct AdaptedMatrix {
    /// (out, in).
    pub matrix: Matrix,
    /// Its adapter.
    pub low_rank: Option<LowRank>,
}

impl From<&Matrix> for AdaptedMatrix {
    fn from(matrix: &Matrix) -> Self {
        AdaptedMatrix { matrix: matrix.clone(), low_rank: None }
    }
}

impl AdaptedMatrix {
    /// The same for what is read without a gradient: see [`Matrix::for_reading`].
    pub fn for_reading(self) -> Self {
        let detached = |low: LowRank| LowRank { a: low.a.detach(), b: low.b.detach(), ..low };
        AdaptedMatrix { matrix: self.matrix.for_reading(), low_rank: self.low_rank.map(detached) }
    }

    /// An error where the adapter does not fit the matrix or either is not for the processor.
    pub(crate) fn check(&self, name: &str) -> Result<()> {
        let (outputs, inputs) = self.matrix.size();
        if !self.matrix.in_place() {
            bail!("{name}: {:?} is not in the host's memory", self.matrix);
        }
        let Some(LowRank { a, b, .. }) = &self.low_rank else { return Ok(()) };
        let ((rank, of_a), (of_b, of_rank)) = (a.dims2()?, b.dims2()?);
        if !fused(&[a, b]) || (of_a, of_b, of_rank) != (inputs, outputs, rank) || !a.is_contiguous() || !b.is_contiguous() {
            bail!("{name}: A is {a:?}, B {b:?} beside {:?} (expected f32 in the host's memory)", self.matrix);
        }
        Ok(())
    }
}

/// x times each of some matrices with its adapter, without gradients. x: (..., in), f32 in the host's memory -> (..., out) of each.
pub fn adapted_products<const N: usize>(x: &Tensor, projections: [AdaptedMatrix; N]) -> Result<[Tensor; N]> {
    for own in &projections {
        own.check("adapted products")?;
        if x.dims().last() != Some(&own.matrix.size().1) || !fused(&[x]) {
            bail!("adapted products: x is {x:?} (expected f32 in the host's memory), a matrix {:?}", own.matrix.size());
        }
    }
    let x = x.detach().contiguous()?;
    let (ys, _) = Group::of(projections.each_ref())?.forward(&Values::of(&x)?)?;
    let mut tensors = Vec::with_capacity(N);
    for (y, own) in ys.into_iter().zip(&projections) {
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(own.matrix.size().0);
        tensors.push(Tensor::from_vec(y, shape, &Device::Cpu)?);
    }
    Ok(tensors.try_into().expect("there is one of each matrix"))
}

/// The tensors of all adapters, in the order in which [`Group::backward`] gives their gradients; none where none takes any.
pub(crate) fn trained(matrices: &[AdaptedMatrix]) -> Vec<Tensor> {
    let adapters = matrices.iter().flat_map(|matrix| &matrix.low_rank);
    let tensors: Vec<Tensor> = adapters.flat_map(|low| [low.a.clone(), low.b.clone()]).collect();
    if tensors.iter().any(Tensor::track_op) { tensors } else { Vec::new() }
}

/// A x of a group's adapters, scaled: rows of each segment's ranks.
pub(crate) type Thin = Vec<Vec<f32>>;

/// Adapters whose A multiply one input together: all that have no dropout, or one that has.
struct Segment<'a> {
    /// Place in the group, adapter and first column of A x.
    members: Vec<(usize, &'a LowRank, usize)>,
    /// See [`Self::a`].
    a: OnceCell<Vec<f32>>,
    ranks: usize,
}

impl Segment<'_> {
    /// The A times their scales, one below the other (ranks, in).
    fn a(&self) -> Result<&[f32]> {
        if let Some(a) = self.a.get() {
            return Ok(a);
        }
        let mut all = Vec::new();
        for (_, low, _) in &self.members {
            all.extend(Values::of(&low.a)?.iter().map(|a| a * low.scale as f32));
        }
        Ok(self.a.get_or_init(|| all))
    }

    /// A x (rows, ranks), scaled.
    fn thin(&self, x: &[f32], inputs: usize) -> Result<Vec<f32>> {
        let rows = x.len() / inputs.max(1);
        if rows > FEW_ROWS {
            return Ok(rows_times(x, Right::values(self.a()?, inputs, true), (inputs, self.ranks), Precision::F32));
        }
        // laying them one below the other would cost more than a few rows' products
        let all: Vec<Values> = self.members.iter().map(|(_, low, _)| Values::of(&low.a)).collect::<Result<_>>()?;
        let rights: Vec<_> = all.iter().zip(&self.members).map(|(a, (_, low, _))| (Right::values(a, inputs, true), low.rank())).collect();
        let mut thin = vec![0.0; rows * self.ranks];
        for (own, &(_, low, first)) in rows_times_each(x, &rights, inputs, Precision::F32).iter().zip(&self.members) {
            for (row, own) in thin.chunks_exact_mut(self.ranks).zip(own.chunks_exact(low.rank())) {
                row[first..].iter_mut().zip(own).for_each(|(thin, own)| *thin = own * low.scale as f32);
            }
        }
        Ok(thin)
    }

    fn input(&self, x: &[f32]) -> Option<Vec<f32>> {
        self.members[0].1.dropout.as_ref().map(|mask| mask.apply(x))
    }
}

/// Matrices that take the same inputs.
pub(crate) struct Group<'a, const N: usize> {
    matrices: [&'a Matrix; N],
    segments: Vec<Segment<'a>>,
    inputs: usize,
}

impl<'a, const N: usize> Group<'a, N> {
    pub fn of(adapted: [&'a AdaptedMatrix; N]) -> Result<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        for (place, low) in adapted.iter().enumerate().filter_map(|(place, own)| own.low_rank.as_ref().map(|low| (place, low))) {
            let beside = |segment: &Segment| low.dropout.is_none() && segment.members[0].1.dropout.is_none();
            let at = segments.iter().position(beside).unwrap_or_else(|| {
                segments.push(Segment { members: Vec::new(), a: OnceCell::new(), ranks: 0 });
                segments.len() - 1
            });
            let segment = &mut segments[at];
            segment.members.push((place, low, segment.ranks));
            segment.ranks += low.rank();
        }
        let matrices = adapted.map(|own| &own.matrix);
        Ok(Group { matrices, segments, inputs: adapted[0].matrix.size().1 })
    }

    /// Whether any of them has an adapter: without one, the backward pass needs no inputs.
    pub fn is_adapted(&self) -> bool {
        !self.segments.is_empty()
    }

    /// x: (rows, in) -> (rows, out) of each matrix, and what the backward pass needs of its adapters.
    pub fn forward(&self, x: &[f32]) -> Result<([Vec<f32>; N], Thin)> {
        let mut ys = Matrix::multiply_each(self.matrices, x, true);
        let thin = self.add_adapters(x, ys.each_mut().map(|y| &mut y[..]))?;
        Ok((ys, thin))
    }

    /// As [`Self::forward`], added to `ys`.
    pub fn add_forward(&self, x: &[f32], mut ys: [&mut [f32]; N]) -> Result<Thin> {
        for (matrix, y) in self.matrices.iter().zip(&mut ys) {
            matrix.add_multiply(x, true, y);
        }
        self.add_adapters(x, ys)
    }

    /// A x of the adapters, scaled.
    pub fn thin(&self, x: &[f32]) -> Result<Thin> {
        self.segments.iter().map(|segment| segment.thin(segment.input(x).as_deref().unwrap_or(x), self.inputs)).collect()
    }

    /// Adds what the adapters make of x to `ys`; what the backward pass needs of it.
    fn add_adapters(&self, x: &[f32], ys: [&mut [f32]; N]) -> Result<Thin> {
        let all = self.thin(x)?;
        for (segment, thin) in self.segments.iter().zip(&all) {
            for &(place, low, first) in &segment.members {
                let (b, rank, outputs) = (Values::of(&low.b)?, low.rank(), self.matrices[place].size().0);
                let mut own = Vec::with_capacity(thin.len() / segment.ranks * rank);
                thin.chunks_exact(segment.ranks).for_each(|row| own.extend_from_slice(&row[first..first + rank]));
                add_rows_times(&own, Right::values(&b, rank, true), (rank, outputs), Precision::F32, ys[place]);
            }
        }
        Ok(all)
    }

    /// The gradients of x (rows, in), and of A and B of each adapter in the matrices' order. grads: (rows, out) of each matrix; x: what the forward
    /// pass got, which is not read where there are no adapters.
    pub fn backward(&self, x: &[f32], thin: &Thin, grads: [&[f32]; N]) -> Result<(Vec<f32>, Vec<Tensor>)> {
        let mut dx = self.matrices[0].multiply(grads[0], false);
        for (matrix, grad) in self.matrices.iter().zip(grads).skip(1) {
            matrix.add_multiply(grad, false, &mut dx);
        }
        let rows = dx.len() / self.inputs.max(1);
        let mut of_adapters: [Option<[Tensor; 2]>; N] = [const { None }; N];
        for (segment, thin) in self.segments.iter().zip(thin) {
            // (rows, ranks): the gradient of A x without the scale
            let mut upstream = vec![0.0; rows * segment.ranks];
            for &(place, low, first) in &segment.members {
                let (b, rank, outputs) = (Values::of(&low.b)?, low.rank(), self.matrices[place].size().0);
                let left = Left { values: grads[place], row: outputs, column: 1 };
                let own = product((rows, outputs, rank), left, Right::values(&b, rank, false), Precision::F32);
                for (row, own) in upstream.chunks_exact_mut(segment.ranks).zip(own.chunks_exact(rank)) {
                    row[first..first + rank].copy_from_slice(own);
                }
            }
            let dropped = segment.input(x);
            let x = dropped.as_deref().unwrap_or(x);
            let left = Left { values: &upstream, row: 1, column: segment.ranks };
            let da = product((segment.ranks, rows, self.inputs), left, Right::values(x, self.inputs, false), Precision::F32);
            for &(place, low, first) in &segment.members {
                let own = &da[first * self.inputs..][..low.rank() * self.inputs];
                let da = own.iter().map(|da| da * low.scale as f32).collect();
                let da = Tensor::from_vec(da, low.a.shape(), &Device::Cpu)?;
                let left = Left { values: &thin[first..], row: 1, column: segment.ranks };
                of_adapters[place] = Some([da, gradient_of_b(low, left, grads[place], rows)?]);
            }
            let left = Left { values: &upstream, row: segment.ranks, column: 1 };
            let (size, a) = ((rows, segment.ranks, self.inputs), Right::values(segment.a()?, self.inputs, false));
            match &segment.members[0].1.dropout {
                None => add_product(size, left, a, Precision::F32, &mut dx),
                Some(mask) => add_all(&mut dx, &mask.apply(&product(size, left, a, Precision::F32))),
            }
        }
        Ok((dx, of_adapters.into_iter().flatten().flatten().collect()))
    }
}

/// (out, r) = grad^T A x, made as its transpose: its many columns are shared by the cores. left: (A x)^T.
fn gradient_of_b(low: &LowRank, left: Left, grad: &[f32], rows: usize) -> Result<Tensor> {
    let (outputs, rank) = low.b.dims2()?;
    let turned = product((rank, rows, outputs), left, Right::values(grad, outputs, false), Precision::F32);
    let db = (0..outputs * rank).map(|at| turned[at % rank * outputs + at / rank]).collect();
    Tensor::from_vec(db, (outputs, rank), &Device::Cpu)
}

vectorised! {
    fn add(sum: &mut [f32], x: &[f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

/// sum += x.
pub(crate) fn add_all(sum: &mut [f32], x: &[f32]) {
    for_pieces(sum, PIECE, |i, sum| add(sum, &x[i * PIECE..]));
}
