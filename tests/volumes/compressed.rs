//! Compressed transfer syntaxes: pixels that come back as they were.

use ctscribe::volume::read;

use crate::assert_refused;
use crate::codecs::{jpeg_lossless, rle};
use crate::dicom_file::{DicomFile, JPEG_LOSSLESS, JPEG_LS, Pixels, RLE};

/// A ramp, runs, jumps from end to end: 40 x 30 pixels of `bits` bits.
fn pixels(bits: u32, seed: u32) -> Vec<u16> {
    let mask = (1u32 << bits) - 1;
    let value = |at: u32| match at / 300 {
        0 => at * 7 + seed,
        1 => 24,
        2 => {
            if at.is_multiple_of(2) {
                0
            } else {
                mask
            }
        }
        _ => (at + seed).wrapping_mul(2_654_435_761) >> 13,
    };
    (0..1200).map(|at| (value(at) & mask) as u16).collect()
}

fn slice(z: f64, bits: u32) -> DicomFile {
    let file = DicomFile::slice([40, 30], z, &[]);
    file.with(0x0028, 0x0101, "US", &bits.to_string()).with(0x0028, 0x0102, "US", &(bits - 1).to_string())
}

/// Two slices through `encode`; every pixel must come back, rescaled.
fn round_trip(syntax: &'static str, bits: u32, encode: impl Fn(&[u16]) -> Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let both = [pixels(bits, 1), pixels(bits, 9)];
    for (z, pixels) in both.iter().enumerate() {
        slice(z as f64, bits).with_pixels(syntax, Pixels::Fragment(encode(pixels))).write(folder.path(), &format!("{z}"));
    }
    let expected: Vec<f32> = both.concat().iter().map(|pixel| f32::from(*pixel) - 1024.0).collect();
    assert_eq!(read(folder.path()).unwrap().values, expected, "{bits} bits");
}

#[test]
fn rle_comes_back_as_it_was() {
    round_trip(RLE, 12, rle);
    round_trip(RLE, 16, rle);
}

#[test]
fn lossless_jpeg_comes_back_as_it_was() {
    round_trip(JPEG_LOSSLESS, 12, |pixels| jpeg_lossless(pixels, [40, 30], 12));
    round_trip(JPEG_LOSSLESS, 16, |pixels| jpeg_lossless(pixels, [40, 30], 16));
}

#[test]
fn lossless_jpeg_of_signed_twelve_bits_keeps_the_sign() {
    let folder = tempfile::tempdir().unwrap();
    let pixels = pixels(12, 3);
    for z in [0.0, 1.0] {
        let file = slice(z, 12).with(0x0028, 0x0103, "US", "1").with(0x0028, 0x1052, "DS", "0");
        file.with_pixels(JPEG_LOSSLESS, Pixels::Fragment(jpeg_lossless(&pixels, [40, 30], 12))).write(folder.path(), &format!("{z}"));
    }
    let expected: Vec<f32> = pixels.iter().map(|bits| f32::from((bits << 4) as i16 >> 4)).collect();
    assert_eq!(read(folder.path()).unwrap().values[..1200], expected);
}

#[test]
fn a_compression_that_is_not_decoded_is_named() {
    let folder = tempfile::tempdir().unwrap();
    slice(0.0, 12).with_pixels(JPEG_LS, Pixels::Fragment(vec![0xFF, 0xD8, 0xFF, 0xD9])).write(folder.path(), "0");
    slice(1.0, 12).with_pixels(JPEG_LS, Pixels::Fragment(vec![0xFF, 0xD8, 0xFF, 0xD9])).write(folder.path(), "1");
    assert_refused(folder.path(), &folder.path().join("0"), &["PixelData", "cannot be decoded", JPEG_LS]);
}

#[test]
fn a_damaged_compressed_slice_is_named() {
    let pixels = pixels(12, 1);
    let (rle, jpeg) = (rle(&pixels), jpeg_lossless(&pixels, [40, 30], 12));
    for (syntax, whole) in [(RLE, rle), (JPEG_LOSSLESS, jpeg)] {
        let folder = tempfile::tempdir().unwrap();
        slice(0.0, 12).with_pixels(syntax, Pixels::Fragment(whole.clone())).write(folder.path(), "0");
        for length in [0, 2, 20, 70, whole.len() / 2] {
            slice(1.0, 12).with_pixels(syntax, Pixels::Fragment(whole[..length].to_vec())).write(folder.path(), "1");
            assert_refused(folder.path(), &folder.path().join("1"), &["PixelData"]);
        }
    }
}
