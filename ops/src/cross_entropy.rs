//! Cross-entropy against token ids.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{Values, fused, made_in_pieces, rows_a_piece, values};
use crate::norm::{rms_gradient, rms_norm, rms_rows};
use crate::simd::{exp, exp_and_sum, largest, sum_of, vectorised};
use crate::transfers::host_values;
use crate::{Matrix, composed};

/// Logits of a chunk in [`linear_cross_entropy`]: 56 MB.
const CHUNK: usize = 14 << 20;

/// Weighted sum of -log softmax(logits)\[target\]. logits: (N, V), targets: (N) u32, weights: (N) f32, 0 ignores a row -> scalar.
///
/// The weights are constants: they get no gradient.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    if !fused(&[logits, weights]) {
        return composed::cross_entropy(logits, targets, &weights.detach());
    }
    let (_, vocabulary) = logits.dims2()?;
    logits.contiguous()?.apply_op1(CrossEntropy { labels: Labels::read(targets, weights, logits.dims()[0], vocabulary)? })
}

/// [`cross_entropy`] of `hidden W^T` with W (V, D) frozen; logits are made in chunks of rows and never kept.
/// hidden: (N, D), targets: (N) u32, weights: (N) f32 -> scalar. Rows of weight 0 cost nothing.
///
/// The gradient to `hidden` is made with the loss, while a chunk's logits are at hand.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Matrix, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    or_cuda!(crate::cuda::linear_cross_entropy(hidden, head, targets, weights));
    if !fused(&[hidden, weights]) || !head.in_place() {
        return composed::cross_entropy(&head.forward(hidden)?, targets, &weights.detach());
    }
    let (n, width) = hidden.dims2()?;
    let (vocabulary, inputs) = head.size();
    if width != inputs {
        bail!("cross-entropy: rows of {width} values, a head of {inputs}");
    }
    let labels = Labels::read(targets, weights, n, vocabulary)?;
    let source = hidden.detach().contiguous()?;
    let (loss, gradient) = linear_loss(&Values::of(&source)?, head, &labels, hidden.track_op());
    scalar_with_gradient(hidden, loss, gradient)
}

/// [`linear_cross_entropy`] of rms_norm(x, norm) with a frozen norm, as one operation: nothing of the norm is kept. x: (N, D), norm: (D) -> scalar.
pub fn normed_cross_entropy(x: &Tensor, (norm, eps): (&Tensor, f64), head: &Matrix, [targets, weights]: [&Tensor; 2]) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    if norm.track_op() || !fused(&[x, norm, weights]) || !head.in_place() || (head.size().1, norm.elem_count()) != (width, width) {
        return linear_cross_entropy(&rms_norm(x, norm, eps)?, head, targets, weights);
    }
    let labels = Labels::read(targets, weights, n, head.size().0)?;
    let (source, norm) = (x.detach().contiguous()?, norm.detach().contiguous()?);
    let (source, norm) = (Values::of(&source)?, Values::of(&norm)?);
    let (loss, gradient) = linear_loss(&rms_rows(&source, &norm, eps as f32), head, &labels, x.track_op());
    scalar_with_gradient(x, loss, gradient.map(|gradient| rms_gradient(&source, &norm, &gradient, eps as f32)))
}

/// The loss of rows of `source`, and where it is asked for their gradient.
fn linear_loss(source: &[f32], head: &Matrix, labels: &Labels, asked: bool) -> (f64, Option<Vec<f32>>) {
    let ((vocabulary, width), n) = (head.size(), labels.weights.len());
    let counted: Vec<usize> = (0..n).filter(|&row| labels.weights[row] != 0.0).collect();
    let mut loss = 0.0;
    let mut gradient = asked.then(|| vec![0.0; n * width]);
    for rows in even_chunks(&counted, (CHUNK / vocabulary.max(1)).clamp(1, 1024)) {
        let labels = labels.only(rows);
        let mut hidden = Vec::with_capacity(rows.len() * width);
        rows.iter().for_each(|&row| hidden.extend_from_slice(&source[row * width..][..width]));
        let mut logits = head.multiply(&hidden, true);
        let Some(gradient) = &mut gradient else {
            loss += labels.loss(&logits);
            continue;
        };
        loss += labels.loss_and_gradient(&mut logits);
        for (&row, dhidden) in rows.iter().zip(head.multiply(&logits, false).chunks_exact(width)) {
            gradient[row * width..][..width].copy_from_slice(dhidden);
        }
    }
    (loss, gradient)
}

/// The rows in as few chunks of at most `limit` as there can be, of one size but the last: none is left with a handful.
fn even_chunks(rows: &[usize], limit: usize) -> impl Iterator<Item = &[usize]> {
    let chunks = rows.len().div_ceil(limit).max(1);
    rows.chunks(rows.len().div_ceil(chunks).max(1))
}

fn scalar_with_gradient(hidden: &Tensor, loss: f64, gradient: Option<Vec<f32>>) -> Result<Tensor> {
    match gradient {
        None => Tensor::new(loss as f32, hidden.device()),
        Some(gradient) => {
            let gradient = Tensor::from_vec(gradient, hidden.shape(), hidden.device())?;
            hidden.apply_op1(Known { value: loss as f32, gradient })
        }
    }
}

/// Targets and weights of the rows of (N, V) logits.
struct Labels {
    targets: Vec<u32>,
    weights: Vec<f32>,
    vocabulary: usize,
}

vectorised! {
    /// Largest value of a row and the sum of e^(x - largest).
    fn exponential_sum(row: &[f32]) -> (f32, f32) {
        let shift = largest(row);
        (shift, sum_of([row], |[x]| exp(x - shift)))
    }

    /// scale * softmax(row).
    fn scaled_softmax(row: &[f32], scale: f32, out: &mut [f32]) {
        let (shift, sum) = exponential_sum(row);
        let scale = scale / sum;
        for (out, &x) in out.iter_mut().zip(row) {
            *out = exp(x - shift) * scale;
        }
    }
}

vectorised! {
    /// Makes `scale * softmax(row)` of a row; its largest value and the sum of e^(x - largest).
    fn scale_softmax(row: &mut [f32], scale: f32) -> (f32, f32) {
        let shift = largest(row);
        let sum = exp_and_sum(row, shift);
        let scale = scale / sum;
        row.iter_mut().for_each(|x| *x *= scale);
        (shift, sum)
    }
}

impl Labels {
    fn read(targets: &Tensor, weights: &Tensor, rows: usize, vocabulary: usize) -> Result<Self> {
        let (targets, weights) = (host_values::<u32>(targets)?, host_values::<f32>(weights)?);
        if targets.len() != rows || weights.len() != rows {
            bail!("cross-entropy: {rows} rows of logits, {} targets, {} weights", targets.len(), weights.len());
        }
        let outside = targets.iter().zip(&weights).find(|&(&t, &w)| w != 0.0 && t as usize >= vocabulary);
        if let Some((target, _)) = outside {
            bail!("cross-entropy: target {target} is outside the vocabulary of {vocabulary}");
        }
        Ok(Labels { targets, weights, vocabulary })
    }

    fn only(&self, rows: &[usize]) -> Labels {
        let (targets, weights) = rows.iter().map(|&row| (self.targets[row], self.weights[row])).unzip();
        Labels { targets, weights, vocabulary: self.vocabulary }
    }

    fn loss(&self, logits: &[f32]) -> f64 {
        let row_loss = |(row, logits): (usize, &[f32])| {
            if self.weights[row] == 0.0 {
                return 0.0;
            }
            let (shift, sum) = exponential_sum(logits);
            let own = logits[self.targets[row] as usize];
            f64::from(self.weights[row]) * (f64::from(sum).ln() + f64::from(shift) - f64::from(own))
        };
        let losses: Vec<f64> = logits.par_chunks_exact(self.vocabulary).enumerate().map(row_loss).collect();
        losses.iter().sum()
    }

    /// As [`Self::loss`]; makes (softmax - one-hot) * weight of the logits, none of which may have weight 0.
    fn loss_and_gradient(&self, logits: &mut [f32]) -> f64 {
        let row_loss = |(row, logits): (usize, &mut [f32])| {
            let (weight, target) = (self.weights[row], self.targets[row] as usize);
            let own = logits[target];
            let (shift, sum) = scale_softmax(logits, weight);
            logits[target] -= weight;
            f64::from(weight) * (f64::from(sum).ln() + f64::from(shift) - f64::from(own))
        };
        let losses: Vec<f64> = logits.par_chunks_exact_mut(self.vocabulary).enumerate().map(row_loss).collect();
        losses.iter().sum()
    }

    /// (softmax - one-hot) * weight * upstream, (N, V).
    fn gradient(&self, logits: &[f32], upstream: f32) -> Vec<f32> {
        let v = self.vocabulary;
        let rows = rows_a_piece(v);

        made_in_pieces(logits.len(), rows * v, |i, piece| {
            for (row, out) in (i * rows..).zip(piece.chunks_exact_mut(v)) {
                let scale = self.weights[row] * upstream;
                if self.weights[row] != 0.0 {
                    scaled_softmax(&logits[row * v..][..v], scale, out);
                    out[self.targets[row] as usize] -= scale;
                }
            }
        })
    }
}

struct CrossEntropy {
    labels: Labels,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let loss = self.labels.loss(values(logits, layout)?);
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.labels.gradient(&Values::of(logits)?, host_values(grad)?[0]);
        Ok(Some(Tensor::from_vec(gradient, logits.shape(), logits.device())?))
    }
}

/// A scalar whose value and gradient are known beforehand.
struct Known {
    value: f32,
    gradient: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.affine(f64::from(host_values::<f32>(grad)?[0]), 0.0)?))
    }
}
