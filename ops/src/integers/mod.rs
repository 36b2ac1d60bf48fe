//! Products of many rows with quantised matrices: rows rounded to 8 bits, as [`crate::few`] rounds them, and sums in integers within a part of a
//! block that has one scale.
//!
//! The scheme is [`crate::gemm`]'s: strips of the matrix's rows stay in the first-level cache, packed as they are multiplied, while tiles of the
//! left factor stream past. A row's product depends neither on the rows beside it nor on the number of threads.

mod pack;
#[cfg(target_arch = "x86_64")]
mod tile;

use crate::gemm::Right;
use crate::matrix::Format;

/// Rows of a tile of the output.
const ROWS: usize = 6;
/// Columns of a tile of the output: rows of the matrix in a strip.
const WIDTH: usize = 32;

/// Values of a strip's rows that are packed at once: with their scales 20 KiB of the first-level cache.
#[cfg(target_arch = "x86_64")]
const DEPTH: usize = 512;

/// Strips that the same values of the left factor are multiplied with, one after the other, while they lie in the second-level cache.
#[cfg(target_arch = "x86_64")]
const GROUP: usize = 8;

/// Products below this are not worth a second core.
const PARALLEL_FROM: usize = 1 << 18;

/// Added to an integer of less than 2^22 by its bits it gives an f32 of [`SHIFT`] and the integer: with a scale of at most 22 bits,
/// `(SHIFT + i) s - SHIFT s` is `i s` in one fused step, rounded once.
const SHIFT_BITS: i32 = 0x4b40_0000;
/// 1.5 * 2^23.
#[cfg(target_arch = "x86_64")]
const SHIFT: f32 = 12_582_912.0;

/// The values of a row that share a scale.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    values: usize,
    minima: bool,
}

impl Part {
    fn of(format: Format) -> Self {
        Part { values: if format == Format::Q6K { 16 } else { 32 }, minima: format == Format::Q4K }
    }

    /// Words of four values.
    fn words(self) -> usize {
        self.values / 4
    }

    /// Words of a row of the left factor: values, scale, and the start of the integer sum or what the minima are multiplied by.
    fn left_words(self) -> usize {
        self.words() + 2
    }

    /// Words of a strip: values, scales, [`SHIFT`] times minus the scales, minus the minima.
    #[cfg(target_arch = "x86_64")]
    fn strip_words(self) -> usize {
        (self.words() + 2 + usize::from(self.minima)) * WIDTH
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::products;

/// x (m, k) times each of the turned quantised `rights` (k, n) -> (m, n), in one round of work.
#[cfg(not(target_arch = "x86_64"))]
pub fn products(_: (usize, usize), _: &[f32], _: &[(Right, usize)]) -> Vec<Vec<f32>> {
    unreachable!("the callers have asked whether there are integer products")
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use rayon::prelude::*;

    use super::pack::PackedLeft;
    use super::tile::{Line, multiply, pack_strip};
    use super::*;
    use crate::few::quantised;
    use crate::gemm::{Out, Place};

    /// x (m, k) times each of the turned quantised `rights` (k, n) -> (m, n), in one round of work. [`quantised::available`] must be true.
    pub fn products((m, k): (usize, usize), x: &[f32], rights: &[(Right, usize)]) -> Vec<Vec<f32>> {
        assert!(quantised::available() && x.len() == m * k);
        assert!(rights.iter().all(|(right, _)| right.turned && right.format.is_quantised() && right.columns == k));
        if k == 0 {
            return rights.iter().map(|(_, n)| vec![0.0; m * n]).collect();
        }
        let mut packed: Vec<PackedLeft> = Vec::new();
        for (right, _) in rights {
            if packed.iter().all(|packed| packed.format != right.format) {
                packed.push(PackedLeft::new(x, (m, k), right.format));
            }
        }
        let mut outs: Vec<Vec<f32>> = rights.iter().map(|(_, n)| Vec::with_capacity(m * n)).collect();
        // long runs of strips: neighbouring rows of a matrix lie on the same pages
        let all: usize = rights.iter().map(|(_, n)| n.div_ceil(WIDTH)).sum();
        let run = all.div_ceil(8 * rayon::current_num_threads()).max(1);
        let mut pieces = Vec::new();
        for ((right, n), out) in rights.iter().zip(&mut outs) {
            let left = packed.iter().find(|packed| packed.format == right.format).expect("every format is packed above");
            let task = Task { size: (m, k, *n), right: *right, left, out: Out(out.as_mut_ptr()) };
            let strips = n.div_ceil(WIDTH);
            pieces.extend((0..strips).step_by(run).map(|first| (task, first..strips.min(first + run))));
        }
        let work = |strips: &mut Vec<Line>, (task, run): &(Task, std::ops::Range<usize>)| {
            run.clone().step_by(GROUP).for_each(|first| task.group(first..run.end.min(first + GROUP), strips));
        };
        if m * k * rights.iter().map(|(_, n)| n).sum::<usize>() < PARALLEL_FROM {
            let mut strip = Vec::new();
            pieces.iter().for_each(|piece| work(&mut strip, piece));
        } else {
            pieces.par_iter().for_each_init(Vec::new, work);
        }
        // SAFETY: the strips cover the columns of every output, and the first span writes all rows of each.
        outs.iter_mut().zip(rights).for_each(|(out, (_, n))| unsafe { out.set_len(m * n) });
        outs
    }

    #[derive(Clone, Copy)]
    struct Task<'a> {
        size: (usize, usize, usize),
        right: Right<'a>,
        left: &'a PackedLeft,
        out: Out,
    }

    impl Task<'_> {
        /// Multiplies a few neighbouring strips.
        fn group(&self, strips: std::ops::Range<usize>, strip: &mut Vec<Line>) {
            let ((m, k, n), part) = (self.size, self.left.part);
            strip.resize(DEPTH / part.values * part.strip_words() / Line::WORDS, Line::default());
            let spans = (0..k).step_by(DEPTH).flat_map(|start| strips.clone().map(move |index| (index * WIDTH, start)));
            let mut spans = spans.peekable();
            while let Some((first, start)) = spans.next() {
                let (columns, count) = (WIDTH.min(n - first), DEPTH.min(k - start));
                pack_strip(self.right, (first, columns), (start, count), strip);
                for row in (0..m).step_by(ROWS) {
                    let rows = ROWS.min(m - row);
                    if let Some(&(first, start)) = spans.peek() {
                        let (columns, values) = ((first, WIDTH.min(n - first)), (start, DEPTH.min(k - start)));
                        self.right.expect(columns, values, row..row + rows, m);
                    }
                    // SAFETY: row and column lie inside (m, n), and the columns are this piece's own.
                    unsafe {
                        let out = self.out.0.add(row * n + first);
                        let before = (start > 0).then_some((out.cast_const(), n));
                        let place = Place { start: out, stride: n, rows, columns, before };
                        multiply(part, self.left.tile(row, (start, count)), strip, count / part.values, place);
                    }
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::few::quantised::available;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    const FORMATS: [Format; 3] = [Format::Q8_0, Format::Q4K, Format::Q6K];

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    fn bytes(format: Format, values: &[f32], k: usize) -> Vec<u8> {
        let tensor = Tensor::from_slice(values, (values.len() / k, k), &Device::Cpu).unwrap();
        let kind = match format {
            Format::Q8_0 => GgmlDType::Q8_0,
            Format::Q4K => GgmlDType::Q4K,
            _ => GgmlDType::Q6K,
        };
        QTensor::quantize(&tensor, kind).unwrap().data().unwrap().to_vec()
    }

    fn turned(bytes: &[u8], format: Format, k: usize) -> Right<'_> {
        Right { bytes, format, columns: k, turned: true, order: None, small: None }
    }

    /// x as it is multiplied: rounded to 8 bits in blocks.
    fn rounded(x: &[f32], format: Format) -> Vec<f64> {
        let round = |block: &[f32]| {
            let scale = block.iter().fold(0f32, |a, b| a.max(b.abs())) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            block.iter().map(|x| f64::from((x * inverse).round_ties_even()) * f64::from(scale)).collect::<Vec<_>>()
        };
        x.chunks(format.block()).flat_map(round).collect()
    }

    /// Compares with the product of the rounded rows and the read weights in f64, to a few f32 roundings of each part's share.
    fn check(x: &[f32], right: Right, (m, k, n): (usize, usize, usize)) {
        let found = products((m, k), x, &[(right, n)]).remove(0);
        let (x, mut w) = (rounded(x, right.format), vec![0.0; n * k]);
        w.chunks_exact_mut(k).enumerate().for_each(|(row, out)| right.format.read(right.row(row), 0, out));
        assert_eq!(found.len(), m * n);
        for (at, &found) in found.iter().enumerate() {
            let terms = (0..k).map(|p| x[at / n * k + p] * f64::from(w[at % n * k + p]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            // a Q4_K part's scaled values and its minimum, of which the weight is the difference, are rounded apart
            let bound = 1e-6 * (1.0 + if right.format == Format::Q4K { 4.0 } else { 1.0 } * size);
            assert!((f64::from(found) - sum).abs() <= bound, "{} {m} {k} {n} at {at}: {found} for {sum}", right.format);
        }
    }

    #[test]
    fn products_equal_those_of_the_rounded_rows_in_f64_for_odd_sizes() {
        if !available() {
            return;
        }
        for format in FORMATS {
            let depths: &[usize] = if format == Format::Q8_0 { &[32, 96, 512, 544, 1056] } else { &[256, 512, 768, 1280] };
            for (index, &k) in depths.iter().enumerate() {
                for m in 1..=13 {
                    let n = [1, 31, 32, 33, 70, 100, 16][(m + index) % 7];
                    check(&noise(m * k, m), turned(&bytes(format, &noise(n * k, 2), k), format, k), (m, k, n));
                }
                check(&noise(40 * k, 5), turned(&bytes(format, &noise(300 * k, 6), k), format, k), (40, k, 300));
            }
        }
    }

    #[test]
    fn sums_are_exact_where_weights_and_rows_are_at_their_limits() {
        if !available() {
            return;
        }
        let (one, k) = (half::f16::ONE.to_le_bytes(), 768);
        let blocks = |format: Format, block: Vec<u8>| block.repeat(k / format.block());
        let q8 = |q: i8| blocks(Format::Q8_0, [&one[..], &[q as u8; 32]].concat());
        let q4 = |q: u8, scales: u8| blocks(Format::Q4K, [&one[..], &one, &[scales; 12], &[q; 128]].concat());
        let q6 = |q: u8, scale: i8| blocks(Format::Q6K, [&[q; 192][..], &[scale as u8; 16], &one].concat());
        let all = [
            (Format::Q8_0, [q8(127), q8(-128), q8(0)]),
            (Format::Q4K, [q4(0xff, 0xff), q4(0, 0xff), q4(0xff, 0)]),
            (Format::Q6K, [q6(0xff, 127), q6(0, -128), q6(0xff, -128)]),
        ];
        // every fourth row of one sign, of the other, of both, of nothing
        let x: Vec<f32> = (0..9 * k).map(|i| [1.0, -1.0, if i % 2 == 0 { 1.0 } else { -1.0 }, 0.0][i / k % 4]).collect();
        for (format, rows) in all {
            check(&x, turned(&rows.concat(), format, k), (9, k, 3));
        }
    }

    #[test]
    fn a_row_gives_the_same_bits_beside_any_others_in_any_order_and_on_any_number_of_threads() {
        if !available() {
            return;
        }
        let (k, n) = (1280, 530);
        for format in FORMATS {
            let (x, bytes) = (noise(100 * k, 7), bytes(format, &noise(n * k, 8), k));
            let order: Vec<u32> = (0..n as u32).map(|i| i * 7 % n as u32).collect();
            let right = turned(&bytes, format, k);
            let all = products((100, k), &x, &[(right, n)]).remove(0);
            for (first, rows) in [(0, 9), (50, 1), (31, 17)] {
                let some = products((rows, k), &x[first * k..][..rows * k], &[(right, n)]).remove(0);
                assert!(some == all[first * n..][..rows * n], "{format}");
            }
            let ordered = products((100, k), &x, &[(Right { order: Some(&order), ..right }, n)]).remove(0);
            for (at, ordered) in ordered.iter().enumerate() {
                assert_eq!(ordered.to_bits(), all[at / n * n + order[at % n] as usize].to_bits(), "{format}");
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            assert!(pool.install(|| products((100, k), &x, &[(right, n)])).remove(0) == all, "{format}");
        }
    }

    #[test]
    fn several_matrices_at_once_give_what_each_gives() {
        if !available() {
            return;
        }
        let (m, k) = (20, 512);
        let x = noise(m * k, 9);
        let held: Vec<_> = FORMATS.iter().zip([70, 32, 257]).map(|(&format, n)| (bytes(format, &noise(n * k, n), k), format, n)).collect();
        let rights: Vec<_> = held.iter().map(|(bytes, format, n)| (turned(bytes, *format, k), *n)).collect();
        for (together, right) in products((m, k), &x, &rights).iter().zip(&rights) {
            assert!(*together == products((m, k), &x, &[*right])[0]);
        }
    }
}
