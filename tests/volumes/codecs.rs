//! Encoders of compressed pixels, as short as the standards allow.

/// RLE of 16-bit pixels (PS3.5 annex G): the high bytes' PackBits, then the low bytes'.
pub fn rle(pixels: &[u16]) -> Vec<u8> {
    let segments = [8, 0].map(|shift| pack_bits(&pixels.iter().map(|pixel| (pixel >> shift) as u8).collect::<Vec<_>>()));
    let mut header = [0u32; 16];
    header[..3].copy_from_slice(&[2, 64, 64 + segments[0].len() as u32]);
    let mut out: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    out.extend(segments.concat());
    out
}

/// Runs of three and more as one byte, everything else literally; an even length.
fn pack_bits(bytes: &[u8]) -> Vec<u8> {
    let run = |at: usize| bytes[at..].iter().take(128).take_while(|byte| **byte == bytes[at]).count();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let same = run(at);
        if same > 2 {
            out.extend([(257 - same) as u8, bytes[at]]);
            at += same;
            continue;
        }
        let start = at;
        while at < bytes.len() && at - start < 128 && run(at) < 3 {
            at += 1;
        }
        out.push((at - start - 1) as u8);
        out.extend(&bytes[start..at]);
    }
    out.extend(vec![0; out.len() % 2]);
    out
}

/// JPEG lossless, first-order prediction (ITU-T T.81 annex H, selection value 1), one table of 5-bit codes for the 17 categories.
pub fn jpeg_lossless(pixels: &[u16], [columns, rows]: [u16; 2], precision: u8) -> Vec<u8> {
    let mut out = vec![0xFF, 0xD8];
    let [[w1, w0], [h1, h0]] = [columns.to_be_bytes(), rows.to_be_bytes()];
    out.extend([0xFF, 0xC3, 0, 11, precision, h1, h0, w1, w0, 1, 1, 0x11, 0]);
    // 17 codes of five bits, in the order of the categories
    out.extend([0xFF, 0xC4, 0, 19 + 17, 0, 0, 0, 0, 0, 17]);
    out.extend([0; 11]);
    out.extend(0..17u8);
    out.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 0, 0]);
    let mut bits = Bits::default();
    let width = usize::from(columns);
    for (at, pixel) in pixels.iter().enumerate() {
        let predicted = match (at / width, at % width) {
            (0, 0) => 1 << (precision - 1),
            (_, 0) => pixels[at - width],
            _ => pixels[at - 1],
        };
        let difference = i32::from(pixel.wrapping_sub(predicted) as i16);
        let category = if difference == -32768 { 16 } else { 32 - difference.unsigned_abs().leading_zeros() };
        bits.put(category, 5);
        if category < 16 {
            let low = if difference < 0 { difference - 1 } else { difference };
            bits.put(low as u32 & ((1 << category) - 1), category);
        }
    }
    out.extend(bits.finish());
    out.extend([0xFF, 0xD9]);
    out
}

/// Bits, most significant first; a byte of ones is followed by a zero byte.
#[derive(Default)]
struct Bits {
    out: Vec<u8>,
    held: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.held = self.held << count | u64::from(value);
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.held >> self.count) as u8;
            self.out.push(byte);
            if byte == 0xFF {
                self.out.push(0);
            }
        }
        self.held &= (1 << self.count) - 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let rest = (8 - self.count % 8) % 8;
        self.put((1 << rest) - 1, rest);
        self.out
    }
}
