//! bf16 without loss in 12 bits: a weight's sign and fraction are a byte, its exponent is a distance of 4 bits from the largest of its row, and
//! the few weights that lie too far below for that (one in some thousands of a trained row) stand beside. Reading a row takes three
//! quarters of the memory's time. The thought that bf16's exponents hold few bits is that of T. Zhang et al., "70% Size, 100% Accuracy:
//! Lossless LLM Compression via Dynamic-Length Float" (arXiv 2504.11651); lengths are fixed here, so that rows can be read in vectors.
//!
//! A row: lines of 64 bytes with the largest exponent (a byte, and three unused), the number of those that stand beside (32 bits), and of each of
//! them place and weight (16 bits each); then blocks of [`BLOCK`] weights: 64 bytes with the distances of 64 weights in their low halves and
//! of the next 64 in their high ones, and two times 64 bytes of signs and fractions. Bytes 8 j .. 8 j + 8 of the first 32 weights of 64 stand at
//! 16 j, those of the other 32 behind them: unpacked in quarters of a register, each 32 come out in their order.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::format::{Format, words};
use crate::cpu::{cleared, written};
use crate::gemm::{Level, Right};
use crate::simd::vectorised;

/// Weights of a block.
pub const BLOCK: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = BLOCK / 2 + BLOCK;
/// Weights whose bytes fill a register.
const HALF: usize = BLOCK / 2;
/// The distance of a weight that stands beside; as itself it is a zero.
const BESIDE: u8 = 15;
/// Bytes before the first weight that stands beside.
const HEAD: usize = 8;

/// A line of memory, in which rows begin.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(#[expect(dead_code, reason = "read as bytes")] [u8; Line::BYTES]);

impl Line {
    pub const BYTES: usize = 64;
}

impl Default for Line {
    fn default() -> Self {
        Line([0; Line::BYTES])
    }
}

/// Rows in 12 bits.
pub struct Packed {
    lines: Vec<Line>,
    /// The first line of each row, and the end of the last.
    pub starts: Vec<u32>,
}

impl AsRef<[u8]> for Packed {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: lines are plain bytes.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * Line::BYTES) }
    }
}

/// Whether rows of this length can be packed, and the processor reads them in vectors.
pub fn takes(columns: usize) -> bool {
    columns > 0 && columns.is_multiple_of(BLOCK) && columns <= 1 << 16 && in_vectors()
}

/// Whether the processor has the vectors that every level but the plain one has.
fn in_vectors() -> bool {
    Level::best() != Level::Plain
}

/// Hands a row's weights on in bf16, and says whether that has them all: f16's seldom, unless they were bf16 once, as LLaMA2's were.
fn in_bf16(right: &Right, row: usize, work: impl FnOnce(&[u16])) -> bool {
    let row = right.row(row);
    if right.format != Format::F16 {
        words::<u16>(row, 0, right.columns, work);
        return true;
    }
    let (mut values, mut bits) = (vec![0.0; right.columns], vec![0; right.columns]);
    right.format.read(row, 0, &mut values);
    let all = upper_halves(&values, &mut bits);
    if all {
        work(&bits);
    }
    all
}

/// Packs `n` rows of bf16, or of f16 whose values bf16 has, on all cores; `None` if they would not become smaller by a sixth.
pub fn pack(right: &Right, n: usize) -> Option<Packed> {
    let blocks = right.columns / BLOCK;
    let lines = |beside: u32| (HEAD + 4 * beside as usize).div_ceil(Line::BYTES) + blocks * BLOCK_BYTES / Line::BYTES;
    let mut exponents = vec![(0, 0); n];
    let of_row = |(row, exponents): (usize, &mut _)| in_bf16(right, row, |bits| *exponents = largest_and_beside(bits));
    if !exponents.par_iter_mut().enumerate().with_min_len(16).all(of_row) {
        return None;
    }
    let mut starts = vec![0];
    for &(_, beside) in &exponents {
        starts.push(starts[starts.len() - 1] + u32::try_from(lines(beside)).ok()?);
    }
    let count = starts[n] as usize;
    if count * Line::BYTES > n * right.columns * 5 / 3 {
        return None;
    }
    // SAFETY: the rows are all there is, and each is cleared before it is packed.
    let lines = unsafe {
        written(count, |mut rest: &mut [MaybeUninit<Line>]| {
            let mut rows = Vec::with_capacity(n);
            for (row, &of_row) in exponents.iter().enumerate() {
                let (own, after) = rest.split_at_mut((starts[row + 1] - starts[row]) as usize);
                rest = after;
                rows.push((own, row, of_row));
            }
            rows.into_par_iter().with_min_len(16).for_each(|(own, row, of_row)| {
                let lines = cleared(own);
                // SAFETY: lines are plain bytes.
                let bytes = std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * Line::BYTES);
                in_bf16(right, row, |bits| pack_row(bits, of_row, bytes));
            });
        })
    };
    Some(Packed { lines, starts })
}

/// What is kept of a weight's exponent: its distance from the row's largest, or that it stands beside.
#[inline(always)]
fn distance(bits: u16, largest: u8) -> u8 {
    let distance = largest - (bits >> 7) as u8;
    if distance < BESIDE { distance } else { BESIDE }
}

vectorised! {
    /// The upper halves of f32's bits, and whether the others are zero.
    fn upper_halves(values: &[f32], out: &mut [u16]) -> bool {
        let mut lower = 0;
        for (out, value) in out.iter_mut().zip(values) {
            let bits = value.to_bits();
            *out = (bits >> 16) as u16;
            lower |= bits & 0xffff;
        }
        lower == 0
    }

    /// A row's largest exponent, and how many of its weights stand beside.
    fn largest_and_beside(bits: &[u16]) -> (u8, u32) {
        let mut largest = 0;
        for &bits in bits {
            largest = (bits >> 7 & 0xff).max(largest);
        }
        let mut beside = 0;
        for &bits in bits {
            // a zero is one as it stands
            beside += u32::from(largest - (bits >> 7 & 0xff) >= u16::from(BESIDE) && bits & 0x7fff != 0);
        }
        (largest as u8, beside)
    }
}

/// Packs a block and returns which of its weights stand beside.
fn pack_block(bits: &[u16; BLOCK], largest: u8, out: &mut [u8; BLOCK_BYTES]) -> u128 {
    #[cfg(target_arch = "x86_64")]
    if in_vectors() {
        // SAFETY: the processor has the features.
        return unsafe { x86::pack(bits, largest, out) };
    }
    let mut beside = 0;
    out.fill(0);
    for (index, &bits) in bits.iter().enumerate() {
        let (distance, (half, at)) = (distance(bits, largest), place(index));
        let kept = (bits >> 8 & 0x80 | bits & 0x7f) as u8;
        out[at] |= distance << (4 * half);
        // of one that stands beside a zero is left
        out[HALF * (1 + half) + at] = if distance == BESIDE { kept & 0x80 } else { kept };
        beside |= u128::from(distance == BESIDE && bits & 0x7fff != 0) << index;
    }
    beside
}

/// The half of a block's weight, and the place of its bytes there.
fn place(index: usize) -> (usize, usize) {
    let (half, own) = (index / HALF, index % HALF);
    (half, own % 32 / 8 * 16 + own / 32 * 8 + own % 8)
}

/// Packs a row, of whose weights so many stand beside.
fn pack_row(bits: &[u16], (largest, beside): (u8, u32), out: &mut [u8]) {
    let (head, blocks) = out.split_at_mut(out.len() - bits.len() / BLOCK * BLOCK_BYTES);
    head.fill(0);
    head[0] = largest;
    head[4..HEAD].copy_from_slice(&beside.to_le_bytes());
    let mut places = head[HEAD..].as_chunks_mut::<4>().0.iter_mut();
    let blocks = blocks.as_chunks_mut::<BLOCK_BYTES>().0;
    for (index, (bits, out)) in bits.as_chunks::<BLOCK>().0.iter().zip(blocks).enumerate() {
        let mut beside = pack_block(bits, largest, out);
        while beside != 0 {
            let own = beside.trailing_zeros() as usize;
            let ([a, b], [c, d]) = (((index * BLOCK + own) as u16).to_le_bytes(), bits[own].to_le_bytes());
            *places.next().expect("the head has room for all that stand beside") = [a, b, c, d];
            beside &= beside - 1;
        }
    }
}

/// A row apart: its largest exponent, place and weight of those that stand beside, its blocks.
pub fn row_parts(row: &[u8]) -> (u8, &[[u8; 4]], &[u8]) {
    let count = u32::from_le_bytes([row[4], row[5], row[6], row[7]]) as usize;
    let (beside, blocks) = (&row[HEAD..][..4 * count], &row[(HEAD + 4 * count).next_multiple_of(Line::BYTES)..]);
    (row[0], beside.as_chunks().0, blocks)
}

/// Place and bits of a weight that stands beside.
pub fn place_and_bits([a, b, c, d]: [u8; 4]) -> (usize, u16) {
    (usize::from(u16::from_le_bytes([a, b])), u16::from_le_bytes([c, d]))
}

/// The bits of the weights from `start` on.
pub fn read(row: &[u8], start: usize, out: &mut [u16]) {
    let (largest, beside, blocks) = row_parts(row);
    let mut done = 0;
    while done < out.len() {
        let (block, skipped) = ((start + done) / BLOCK, (start + done) % BLOCK);
        let block = blocks[block * BLOCK_BYTES..].first_chunk().expect("the row has as many blocks");
        let count = (BLOCK - skipped).min(out.len() - done);
        match out[done..].first_chunk_mut() {
            Some(out) if count == BLOCK => unpack(block, largest, out),
            _ => {
                let mut bits = [0; BLOCK];
                unpack(block, largest, &mut bits);
                out[done..][..count].copy_from_slice(&bits[skipped..][..count]);
            }
        }
        done += count;
    }
    for &beside in beside {
        let (place, bits) = place_and_bits(beside);
        if (start..start + out.len()).contains(&place) {
            out[place - start] = bits;
        }
    }
}

/// The bits of a block's weights, without those that stand beside.
fn unpack(block: &[u8; BLOCK_BYTES], largest: u8, out: &mut [u16; BLOCK]) {
    #[cfg(target_arch = "x86_64")]
    if in_vectors() {
        // SAFETY: the processor has the features.
        return unsafe { x86::unpack(block, largest, out) };
    }
    for (index, out) in out.iter_mut().enumerate() {
        let (half, at) = place(index);
        let (distance, rest) = (block[at] >> (4 * half) & 15, u16::from(block[HALF * (1 + half) + at]));
        let exponent = if distance == BESIDE { 0 } else { u16::from(largest.wrapping_sub(distance)) };
        *out = (rest & 0x80) << 8 | exponent << 7 | rest & 0x7f;
    }
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::*;

    use super::{BESIDE, BLOCK, BLOCK_BYTES, HALF};

    /// The high and the low byte of a weight for each distance, without sign and fraction: a table in each quarter.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub fn tables(largest: u8) -> [__m512i; 2] {
        let distances = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        // the last one, of those that stand beside, is of a zero
        let exponents = _mm_maskz_sub_epi8(0x7fff, _mm_set1_epi8(largest as i8), distances);
        let high = _mm_and_si128(_mm_srli_epi16::<1>(exponents), _mm_set1_epi8(0x7f));
        let low = _mm_and_si128(_mm_slli_epi16::<7>(exponents), _mm_set1_epi8(-128));
        [_mm512_broadcast_i32x4(high), _mm512_broadcast_i32x4(low)]
    }

    /// The distances of a block's two halves.
    ///
    /// # Safety
    /// A block lies there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn distances(block: *const u8) -> [__m512i; 2] {
        let nibble = _mm512_set1_epi8(15);
        // SAFETY: the caller's promise.
        let both = unsafe { _mm512_loadu_si512(block.cast()) };
        [_mm512_and_si512(both, nibble), _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble)]
    }

    /// Two times 32 weights of one of a block's halves.
    ///
    /// # Safety
    /// A block lies there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn weights(block: *const u8, half: usize, distances: __m512i, [high, low]: [__m512i; 2]) -> [__m512i; 2] {
        let sign = _mm512_set1_epi8(-128);
        // SAFETY: the caller's promise.
        let rest = unsafe { _mm512_loadu_si512(block.add(HALF * (1 + half)).cast()) };
        // a | b & c, and a | b & !c
        let high = _mm512_ternarylogic_epi32::<0xf8>(_mm512_shuffle_epi8(high, distances), rest, sign);
        let low = _mm512_ternarylogic_epi32::<0xf4>(_mm512_shuffle_epi8(low, distances), rest, sign);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub fn pack(bits: &[u16; BLOCK], largest: u8, out: &mut [u8; BLOCK_BYTES]) -> u128 {
        let (farthest, sign) = (_mm512_set1_epi16(i16::from(BESIDE)), _mm512_set1_epi16(0x80));
        let mut beside = [0u32; 4];
        let (mut distances, mut rest) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
        for part in 0..4 {
            // SAFETY: four times 32 weights.
            let bits = unsafe { _mm512_loadu_si512(bits.as_ptr().add(32 * part).cast()) };
            let exponents = _mm512_and_si512(_mm512_srli_epi16::<7>(bits), _mm512_set1_epi16(0xff));
            let far = _mm512_min_epu16(_mm512_sub_epi16(_mm512_set1_epi16(i16::from(largest)), exponents), farthest);
            let zero = _mm512_cmpeq_epi16_mask(far, farthest);
            let fraction = _mm512_maskz_mov_epi16(!zero, _mm512_and_si512(bits, _mm512_set1_epi16(0x7f)));
            distances[part] = far;
            rest[part] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<8>(bits), sign), fraction);
            beside[part] = _mm512_mask_test_epi16_mask(zero, bits, _mm512_set1_epi16(0x7fff));
        }
        let out = out.as_mut_ptr();
        let [low, high] = [_mm512_packus_epi16(distances[0], distances[1]), _mm512_packus_epi16(distances[2], distances[3])];
        // SAFETY: three times 64 bytes.
        unsafe {
            _mm512_storeu_si512(out.cast(), _mm512_or_si512(low, _mm512_slli_epi16::<4>(high)));
            _mm512_storeu_si512(out.add(HALF).cast(), _mm512_packus_epi16(rest[0], rest[1]));
            _mm512_storeu_si512(out.add(2 * HALF).cast(), _mm512_packus_epi16(rest[2], rest[3]));
        }
        (0..4).rev().fold(0, |all, part| all << 32 | u128::from(beside[part]))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub fn unpack(block: &[u8; BLOCK_BYTES], largest: u8, out: &mut [u16; BLOCK]) {
        let (block, out, tables) = (block.as_ptr(), out.as_mut_ptr(), tables(largest));
        // SAFETY: a block, and 128 weights of two bytes.
        unsafe {
            let [first, second] = distances(block);
            let [a, b] = weights(block, 0, first, tables);
            let [c, d] = weights(block, 1, second, tables);
            _mm512_storeu_si512(out.cast(), a);
            _mm512_storeu_si512(out.add(32).cast(), b);
            _mm512_storeu_si512(out.add(64).cast(), c);
            _mm512_storeu_si512(out.add(96).cast(), d);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bf16 of about a normal distribution, with the odd ones among them.
    fn weights(count: usize) -> Vec<u16> {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let odd = [0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x0080, 0x3f80, 0xbf80];
        let normal = |i: usize, x: f32| if i % 397 == 5 { odd[i / 397 % 8] } else { half::bf16::from_f32(x * 0.02).to_bits() };
        (0..count).map(|i| normal(i, (0..6).map(|_| uniform()).sum())).collect()
    }

    #[test]
    fn every_bit_comes_back_from_any_place_on() {
        let (n, k) = (37, 640);
        let bits = weights(n * k);
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let order: Vec<u32> = (0..n as u32).rev().collect();
        let right = Right { bytes: &bytes, format: Format::Bf16, columns: k, turned: true, order: Some(&order), small: None };
        let rows = pack(&right, n).unwrap();
        let held = rows.as_ref();
        assert!(held.len() < bytes.len() * 5 / 6);
        for row in 0..n {
            let own = &held[rows.starts[row] as usize * Line::BYTES..rows.starts[row + 1] as usize * Line::BYTES];
            let exact = &bits[(n - 1 - row) * k..][..k];
            for (start, count) in [(0, k), (128, 256), (5, 1), (127, 2), (64, 300), (639, 1)] {
                let mut out = vec![0; count];
                read(own, start, &mut out);
                assert_eq!(out, exact[start..][..count], "row {row}, from {start}");
            }
        }
    }

    #[test]
    fn a_block_is_read_alike_with_and_without_vectors() {
        #[cfg(target_arch = "x86_64")]
        if in_vectors() {
            let bits = weights(BLOCK);
            let (largest, beside) = largest_and_beside(&bits);
            let mut row = vec![0; Line::BYTES * (HEAD + 4 * beside as usize).div_ceil(Line::BYTES) + BLOCK_BYTES];
            pack_row(&bits, (largest, beside), &mut row);
            let block = row_parts(&row).2.first_chunk().unwrap();
            let (mut fast, plain) =
                ([0; BLOCK], bits.iter().map(|&bits| if distance(bits, largest) == BESIDE { bits & 0x8000 } else { bits }));
            // SAFETY: the processor has the features.
            unsafe { x86::unpack(block, largest, &mut fast) };
            assert!(fast.iter().copied().eq(plain));
            return;
        }
        eprintln!("skipped: this processor has no such vectors");
    }

    #[test]
    fn f16_is_packed_where_bf16_has_its_values_and_left_alone_where_not() {
        let (n, k) = (19, 640);
        // f16's smallest steps are 2^-24: what bf16 has between them it has not
        let seen = |bits: u16| half::f16::from_f32(half::bf16::from_bits(bits).to_f32());
        let mut halves: Vec<half::f16> = weights(n * k).into_iter().map(seen).collect();
        // below f16's normal values, one of 8 digits
        halves[3] = half::f16::from_bits(0x00ff);
        let bytes = |halves: &[half::f16]| -> Vec<u8> { halves.iter().flat_map(|half| half.to_le_bytes()).collect() };
        let packed = |bytes: &[u8]| pack(&Right { bytes, format: Format::F16, columns: k, turned: true, order: None, small: None }, n);
        let rows = packed(&bytes(&halves)).unwrap();
        for row in 0..n {
            let mut out = vec![0; k];
            read(&rows.as_ref()[rows.starts[row] as usize * Line::BYTES..], 0, &mut out);
            let found = out.iter().map(|&bits| half::bf16::from_bits(bits).to_f32().to_bits());
            assert!(found.eq(halves[row * k..][..k].iter().map(|half| half.to_f32().to_bits())), "row {row}");
        }
        // one of 9 digits
        for odd in [0x0101, 0x2804] {
            let mut halves = halves.clone();
            halves[18 * k + 77] = half::f16::from_bits(odd);
            assert!(packed(&bytes(&halves)).is_none(), "{odd:#x}");
        }
    }

    #[test]
    fn rows_of_all_exponents_are_left_as_they_are() {
        let bits: Vec<u16> = (0..4 * 256).map(|i| (i % 250) << 7 | 1).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let right = Right { bytes: &bytes, format: Format::Bf16, columns: 256, turned: true, order: None, small: None };
        assert!(pack(&right, 4).is_none());
    }
}
