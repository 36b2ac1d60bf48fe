//! Products of a few rows with a frozen matrix, at the speed at which the matrix can be read: each of its rows is read once, as it lies.
//!
//! A row's product does not depend on how many rows are multiplied beside it: a token gives the same bits alone and in a batch.

mod plain;
pub mod quantised;

use rayon::prelude::*;

use crate::gemm::{Left, Level, Out, Precision, Right, add_product, products};
use crate::integers;
use crate::matrix::Format;
use crate::simd::dot_of;
use plain::Split;
use quantised::Activations;

/// Rows up to which a matrix is read row by row instead of being packed: so many tokens give the same bits one by one and together.
pub const FEW_ROWS: usize = 8;

/// Rows of the matrix in one piece of work.
const PIECE: usize = 64;
/// Rows of the matrix that are read at once.
const ROWS: usize = 4;

/// Products of two values below which one core is faster than two.
const PARALLEL_FROM: usize = 1 << 17;

/// x (m, k) times `right` (k, n) -> (m, n): a few rows at the speed of reading, more of them by packing.
pub fn rows_times(x: &[f32], right: Right, (k, n): (usize, usize), precision: Precision) -> Vec<f32> {
    rows_times_each(x, &[(right, n)], k, precision).remove(0)
}

/// Whether many rows are multiplied in integers.
fn in_integers(right: &Right, precision: Precision) -> bool {
    precision == Precision::Int8 && right.turned && right.format.is_quantised() && quantised::available()
}

/// x (m, k) times each of `rights` (k, n) -> (m, n), in one round of work; they are all turned or none is.
pub fn rows_times_each(x: &[f32], rights: &[(Right, usize)], k: usize, precision: Precision) -> Vec<Vec<f32>> {
    let m = x.len() / k.max(1);
    if m <= FEW_ROWS && rights.iter().all(|(right, _)| right.turned) {
        return few_rows(Level::best(), m, x, rights);
    }
    let kinds = rights.chunk_by(|(a, _), (b, _)| in_integers(a, precision) == in_integers(b, precision));
    kinds
        .flat_map(|rights| match in_integers(&rights[0].0, precision) {
            true => integers::products((m, k), x, rights),
            false => products((m, k), Left { values: x, row: k, column: 1 }, rights, precision),
        })
        .collect()
}

/// As [`rows_times`], added to `out` (m, n).
pub fn add_rows_times(x: &[f32], right: Right, (k, n): (usize, usize), precision: Precision, out: &mut [f32]) {
    let m = x.len() / k.max(1);
    if right.turned && (m <= FEW_ROWS || in_integers(&right, precision)) {
        out.iter_mut().zip(rows_times(x, right, (k, n), precision)).for_each(|(out, y)| *out += y);
    } else {
        add_product((m, k, n), Left { values: x, row: k, column: 1 }, right, precision, out);
    }
}

/// Inner products of the rows of x (m, k) with those of `rows` (n, k), written to `out` (m, n): on one core.
pub fn inner_products(x: &[f32], rows: &[f32], k: usize, out: &mut [f32]) {
    let (m, right) = (x.len() / k, Right::values(rows, k, true));
    match Level::best() {
        Level::Plain => read_rows(x, m, right, 0, out),
        _ => plain::rows(x, m, right, 0, out),
    }
}

/// The rows of x as a format's kernel reads them.
enum Prepared {
    /// In 8 bits.
    Integers(Activations),
    /// Apart by evens and odds, for bf16.
    Split(Split),
    Plain,
}

impl Prepared {
    fn new(level: Level, x: &[f32], k: usize, format: Format) -> Self {
        match format {
            format if format.is_quantised() && quantised::available() => Prepared::Integers(Activations::new(x, k, format)),
            Format::Bf16 | Format::Bf12 if level != Level::Plain => Prepared::Split(Split::new(x, k)),
            _ => Prepared::Plain,
        }
    }
}

/// x (m, k) times the turned matrices (n, k), each with its n -> (m, n); m is at most [`FEW_ROWS`].
fn few_rows(level: Level, m: usize, x: &[f32], rights: &[(Right, usize)]) -> Vec<Vec<f32>> {
    if m == 0 {
        return vec![Vec::new(); rights.len()];
    }
    let mut prepared: Vec<(Format, Prepared)> = Vec::new();
    for (right, _) in rights {
        if prepared.iter().all(|(format, _)| *format != right.format) {
            prepared.push((right.format, Prepared::new(level, x, right.columns, right.format)));
        }
    }
    let of = |format: Format| prepared.iter().find(|(own, _)| *own == format).map(|(_, prepared)| prepared);
    let mut outs: Vec<Vec<f32>> = rights.iter().map(|(_, n)| vec![0.0; m * n]).collect();
    let mut pieces = Vec::new();
    for ((right, n), out) in rights.iter().zip(&mut outs) {
        let out = Out(out.as_mut_ptr());
        pieces.extend((0..*n).step_by(PIECE).map(|first| Piece { right: *right, first, columns: PIECE.min(n - first), n: *n, out }));
    }
    let work = |piece: &Piece| {
        let Piece { right, first, columns, .. } = *piece;
        // (m, columns)
        let mut sums = [0.0; PIECE * FEW_ROWS];
        let sums = &mut sums[..columns * m];
        match of(right.format) {
            Some(Prepared::Integers(activations)) => quantised::rows(activations, right, first, sums),
            Some(Prepared::Split(split)) if right.format == Format::Bf12 => plain::bf12_rows(split, right, first, sums),
            Some(Prepared::Split(split)) => plain::bf16_rows(split, right, first, sums),
            _ if level != Level::Plain && !right.format.is_quantised() => plain::rows(x, m, right, first, sums),
            _ => read_rows(x, m, right, first, sums),
        }
        // SAFETY: the output has m rows of n, these columns are this piece's own.
        unsafe { piece.write(sums, m) };
    };
    let products = m * rights.iter().map(|(right, n)| n * right.columns).sum::<usize>();
    if products < PARALLEL_FROM {
        pieces.iter().for_each(work);
    } else {
        // a few at a time, each worth taking: of a longer share nothing is left to take for a core that has ended
        let at_a_time = pieces.len() * PARALLEL_FROM / products;
        pieces.par_iter().with_max_len(at_a_time.max(1)).for_each(work);
    }
    outs
}

/// Some rows of a matrix, which are columns of the output.
struct Piece<'a> {
    right: Right<'a>,
    first: usize,
    columns: usize,
    /// Columns of the output.
    n: usize,
    out: Out,
}

impl Piece<'_> {
    /// Writes sums (m, columns) to the columns of the output's m rows.
    ///
    /// # Safety
    /// The output has m rows of n, and nothing else uses these columns meanwhile.
    unsafe fn write(&self, sums: &[f32], m: usize) {
        for (i, sums) in sums.chunks_exact(self.columns).enumerate().take(m) {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.out.0.add(i * self.n + self.first), self.columns) }.copy_from_slice(sums);
        }
    }
}

/// Any format on any processor: rows are widened to f32 first.
fn read_rows(x: &[f32], m: usize, right: Right, first: usize, out: &mut [f32]) {
    let (mut values, columns) = (vec![0.0; right.columns], out.len() / m);
    for column in 0..columns {
        right.format.read(right.row(first + column), 0, &mut values);
        for (row, x) in x.chunks_exact(right.columns).enumerate() {
            out[row * columns + column] = dot_of(&values, x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Format;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use half::{bf16, f16};

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    fn bytes(format: Format, values: &[f32], k: usize) -> Vec<u8> {
        let quantised = |kind| {
            let tensor = Tensor::from_slice(values, (values.len() / k, k), &Device::Cpu).unwrap();
            QTensor::quantize(&tensor, kind).unwrap().data().unwrap().to_vec()
        };
        match format {
            Format::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Format::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Format::Bf16 | Format::Bf12 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Format::Q8_0 => quantised(GgmlDType::Q8_0),
            Format::Q4K => quantised(GgmlDType::Q4K),
            Format::Q6K => quantised(GgmlDType::Q6K),
        }
    }

    const FORMATS: [Format; 6] = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4K, Format::Q6K];

    fn columns(format: Format) -> &'static [usize] {
        match format.block() {
            1 => &[1, 15, 16, 33, 700],
            32 => &[32, 96, 512],
            _ => &[256, 512, 1280],
        }
    }

    /// x as the kernels see it: rounded to 8 bits in blocks where the matrix is quantised.
    fn rounded(x: &[f32], format: Format) -> Vec<f64> {
        if !format.is_quantised() || !quantised::available() {
            return x.iter().map(|&x| f64::from(x)).collect();
        }
        let round = |block: &[f32]| {
            let scale = block.iter().fold(0f32, |a, b| a.max(b.abs())) / 127.0;
            block.iter().map(|x| f64::from((x / scale).round_ties_even()) * f64::from(scale)).collect::<Vec<_>>()
        };
        x.chunks(format.block()).flat_map(round).collect()
    }

    #[test]
    fn a_few_rows_times_any_format_equal_the_product_in_f64() {
        for format in FORMATS {
            for &k in columns(format) {
                for (m, n) in [(1, 1), (1, 70), (2, 5), (3, 9), (5, 130), (8, 4)] {
                    let (x, w) = (noise(m * k, 1), noise(n * k, 2));
                    let bytes = bytes(format, &w, k);
                    let right = Right { bytes: &bytes, format, columns: k, turned: true, order: None, small: None };
                    let mut seen = vec![0.0; n * k];
                    seen.chunks_exact_mut(k).enumerate().for_each(|(row, out)| format.read(right.row(row), 0, out));
                    let x_seen = rounded(&x, format);
                    for level in [Level::Plain, Level::best()] {
                        let out = few_rows(level, m, &x, &[(right, n)]).remove(0);
                        for (at, &found) in out.iter().enumerate() {
                            let (i, j) = (at / n, at % n);
                            let expected: f64 = (0..k).map(|p| x_seen[i * k + p] * f64::from(seen[j * k + p])).sum();
                            assert!((f64::from(found) - expected).abs() < 2e-6 * k as f64, "{format} {m} {k} {n}: {found} for {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_bits_alone_and_beside_others() {
        for format in FORMATS {
            let (m, k, n) = (7, 512, 50);
            let (x, w) = (noise(m * k, 3), noise(n * k, 4));
            let bytes = bytes(format, &w, k);
            let right = Right { bytes: &bytes, format, columns: k, turned: true, order: None, small: None };
            let all = few_rows(Level::best(), m, &x, &[(right, n)]).remove(0);
            for (row, expected) in all.chunks_exact(n).enumerate() {
                let alone = few_rows(Level::best(), 1, &x[row * k..][..k], &[(right, n)]).remove(0);
                assert_eq!(alone, expected, "{format}");
            }
        }
    }
}
