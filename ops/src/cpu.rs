//! What the fused CPU kernels share: access to values, work split over cores in fixed pieces.
//!
//! Pieces depend on sizes alone, never on the number of threads, and sums over pieces are taken in order:
//! the same input gives the same bits.

use std::mem::MaybeUninit;
use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, StorageRef, Tensor, bail};
use rayon::prelude::*;

/// Below this many values one core is faster than two.
const PARALLEL_FROM: usize = 32 * 1024;

/// Values of a piece of elementwise work.
pub const PIECE: usize = 16 * 1024;

/// True where the fused kernels apply: f32 on the CPU.
pub fn fused(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.dtype() == DType::F32 && t.device().is_cpu())
}

/// The tensors as a kernel without gradients reads them: contiguous, f32 in the host's memory, else an error of `what`.
pub fn held<'a>(what: &str, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Vec<Tensor>> {
    let held: Vec<Tensor> = tensors.into_iter().map(|tensor| tensor.detach().contiguous()).collect::<Result<_>>()?;
    if !held.iter().all(|tensor| fused(&[tensor])) {
        bail!("{what}: expected f32 in the host's memory");
    }
    Ok(held)
}

/// The values of a contiguous f32 storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected contiguous values, found strides {:?}", layout.stride()),
    }
}

/// The values of a contiguous f32 tensor, held for reading.
pub struct Values<'a> {
    storage: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl<'a> Values<'a> {
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(cpu) = &*storage else { bail!("expected a tensor on the CPU") };
        cpu.as_slice::<f32>()?;
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Self { storage, start, end }),
            None => bail!("expected contiguous values, found strides {:?}", layout.stride()),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => unreachable!("`of` has checked type and device"),
        }
    }
}

/// `count` values that `fill` writes, without a pass that clears them first.
///
/// # Safety
/// `fill` writes every one of them and reads none that it has not written.
pub unsafe fn written<T>(count: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    // SAFETY: the caller's promise.
    unsafe { written_in(Vec::new(), count, fill) }
}

/// As [`written`], in the place of `values`.
///
/// # Safety
/// As that of [`written`].
pub unsafe fn written_in<T>(mut values: Vec<T>, count: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    values.clear();
    values.reserve_exact(count);
    fill(&mut values.spare_capacity_mut()[..count]);
    // SAFETY: the caller's promise.
    unsafe { values.set_len(count) };
    values
}

/// Values as memory that is written to.
///
/// # Safety
/// Nothing but values is written to it.
pub unsafe fn rewritten<T: Copy>(values: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: both have one layout, and values stay values: the caller's promise.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<T>]) }
}

/// The first `count` values of a room that is kept for the next use.
pub fn room(values: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if values.len() < count {
        values.resize(count, 0.0);
    }
    &mut values[..count]
}

/// Zeros in fresh memory.
pub fn cleared<T: Copy + Default>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    out.fill(MaybeUninit::new(T::default()));
    // SAFETY: every value has just been written.
    unsafe { out.assume_init_mut() }
}

/// `count` values, of which `work(piece number, piece)` makes each piece out of zeros. A piece is cleared by the core that fills it, while it lies
/// in that core's cache.
pub fn made_in_pieces(count: usize, piece: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let fill = |(i, out): (usize, &mut [MaybeUninit<f32>])| work(i, cleared(out));
    // SAFETY: the pieces are all there is.
    unsafe {
        written(count, |out| match count < PARALLEL_FROM {
            true => out.chunks_mut(piece).enumerate().for_each(fill),
            false => out.par_chunks_mut(piece).enumerate().for_each(fill),
        })
    }
}

/// As [`made_in_pieces`], two results with a count and a piece length each.
pub fn made_in_pieces2(a: (usize, usize), b: (usize, usize), work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(a.0.div_ceil(a.1), b.0.div_ceil(b.1), "both have as many pieces");
    let fill = |(i, (a, b)): (usize, (&mut [_], &mut [_]))| work(i, cleared(a), cleared(b));
    let mut second = Vec::new();
    // SAFETY: the pieces are all there is of both.
    let first = unsafe {
        written(a.0, |first| {
            second = written(b.0, |second| match a.0 < PARALLEL_FROM {
                true => first.chunks_mut(a.1).zip(second.chunks_mut(b.1)).enumerate().for_each(fill),
                false => first.par_chunks_mut(a.1).zip(second.par_chunks_mut(b.1)).enumerate().for_each(fill),
            });
        })
    };
    (first, second)
}

/// Calls `work(piece number, piece)` for each piece of `out`.
pub fn for_pieces(out: &mut [f32], piece: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() < PARALLEL_FROM {
        out.chunks_mut(piece).enumerate().for_each(|(i, out)| work(i, out));
    } else {
        out.par_chunks_mut(piece).enumerate().for_each(|(i, out)| work(i, out));
    }
}

/// As [`for_pieces`], over two outputs with a piece length each.
pub fn for_pieces2(a: (&mut [f32], usize), b: (&mut [f32], usize), work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
    if a.0.len() < PARALLEL_FROM {
        a.0.chunks_mut(a.1).zip(b.0.chunks_mut(b.1)).enumerate().for_each(|(i, (a, b))| work(i, a, b));
    } else {
        a.0.par_chunks_mut(a.1).zip(b.0.par_chunks_mut(b.1)).enumerate().for_each(|(i, (a, b))| work(i, a, b));
    }
}

/// Rows of a piece so that it holds about [`PIECE`] values.
pub fn rows_a_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Rows of a piece where each piece also has a partial sum of its own: at most 32 pieces.
pub fn rows_a_partial(rows: usize, width: usize) -> usize {
    rows.div_ceil(32).max(rows_a_piece(width))
}

/// Adds up partial sums of `width` values in order.
pub fn sum_partials(partials: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for partial in partials.chunks_exact(width) {
        total.iter_mut().zip(partial).for_each(|(t, p)| *t += p);
    }
    total
}

/// Sum over the rows of (rows, width).
pub fn sum_rows(x: &[f32], width: usize) -> Vec<f32> {
    let rows = rows_a_partial(x.len() / width, width);
    let pieces = (x.len() / width).div_ceil(rows);
    let mut partials = vec![0.0; pieces * width];
    let work = |(partial, x): (&mut [f32], &[f32])| {
        for row in x.chunks_exact(width) {
            partial.iter_mut().zip(row).for_each(|(p, x)| *p += x);
        }
    };
    if x.len() < PARALLEL_FROM {
        partials.chunks_mut(width).zip(x.chunks(rows * width)).for_each(work);
    } else {
        partials.par_chunks_mut(width).zip(x.par_chunks(rows * width)).for_each(work);
    }
    sum_partials(&partials, width)
}
