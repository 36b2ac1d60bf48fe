//! DICOM files, element by element.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::DeflateEncoder;

pub const IMPLICIT: &str = "1.2.840.10008.1.2";
pub const EXPLICIT: &str = "1.2.840.10008.1.2.1";
pub const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
pub const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
pub const JPEG_LOSSLESS: &str = "1.2.840.10008.1.2.4.70";
pub const JPEG_LS: &str = "1.2.840.10008.1.2.4.80";
pub const RLE: &str = "1.2.840.10008.1.2.5";

/// PixelData.
#[derive(Clone)]
pub enum Pixels {
    Absent,
    /// Bits as stored, before the byte order is chosen.
    Plain(Vec<u16>),
    /// One fragment of a compressed transfer syntax.
    Fragment(Vec<u8>),
}

/// One file: its transfer syntax, its elements and its pixels.
#[derive(Clone)]
pub struct DicomFile {
    pub syntax: &'static str,
    /// Group, element, value representation, value (text, or one 16-bit number for `US`).
    elements: Vec<(u16, u16, &'static str, String)>,
    pub pixels: Pixels,
}

impl DicomFile {
    /// A CT slice of `columns` x `rows` at `z` mm: 2 mm pixels, unsigned 12 of 16 bits, slope 1, intercept -1024.
    pub fn slice([columns, rows]: [u16; 2], z: f64, stored: &[u16]) -> Self {
        let number = |value: u16| value.to_string();
        let elements = vec![
            (0x0008, 0x0060, "CS", "CT".to_string()),
            (0x0020, 0x000E, "UI", "1.2.3".to_string()),
            (0x0020, 0x0032, "DS", format!("-10\\-20\\{z}")),
            (0x0020, 0x0037, "DS", "1\\0\\0\\0\\1\\0".to_string()),
            (0x0028, 0x0002, "US", number(1)),
            (0x0028, 0x0004, "CS", "MONOCHROME2".to_string()),
            (0x0028, 0x0010, "US", number(rows)),
            (0x0028, 0x0011, "US", number(columns)),
            (0x0028, 0x0030, "DS", "2\\2".to_string()),
            (0x0028, 0x0100, "US", number(16)),
            (0x0028, 0x0101, "US", number(12)),
            (0x0028, 0x0102, "US", number(11)),
            (0x0028, 0x0103, "US", number(0)),
            (0x0028, 0x1052, "DS", "-1024".to_string()),
            (0x0028, 0x1053, "DS", "1".to_string()),
        ];
        DicomFile { syntax: EXPLICIT, elements, pixels: Pixels::Plain(stored.to_vec()) }
    }

    /// A structured report: no Rows, no pixels.
    pub fn report() -> Self {
        let elements = vec![(0x0008, 0x0060, "CS", "SR".to_string()), (0x0020, 0x000E, "UI", "1.2.9".to_string())];
        DicomFile { syntax: EXPLICIT, elements, pixels: Pixels::Absent }
    }

    /// With the element set (or added).
    pub fn with(mut self, group: u16, element: u16, representation: &'static str, value: &str) -> Self {
        self.elements.retain(|(g, e, ..)| (*g, *e) != (group, element));
        self.elements.push((group, element, representation, value.to_string()));
        self.elements.sort_by_key(|(g, e, ..)| (*g, *e));
        self
    }

    /// Without the element.
    pub fn without(mut self, group: u16, element: u16) -> Self {
        self.elements.retain(|(g, e, ..)| (*g, *e) != (group, element));
        self
    }

    pub fn with_pixels(self, syntax: &'static str, pixels: Pixels) -> Self {
        DicomFile { syntax, pixels, ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (big, explicit) = (self.syntax == BIG_ENDIAN, self.syntax != IMPLICIT);
        let mut meta = Vec::new();
        put(&mut meta, (2, 0x10), "UI", &padded(self.syntax, "UI"), (false, true));
        let mut bytes = vec![0u8; 128];
        bytes.extend(b"DICM");
        put(&mut bytes, (2, 0), "UL", &(meta.len() as u32).to_le_bytes(), (false, true));
        bytes.extend(meta);
        let mut set = Vec::new();
        for (group, element, representation, text) in &self.elements {
            let value = match *representation {
                "US" => number(text.parse().unwrap(), big).to_vec(),
                _ => padded(text, representation),
            };
            put(&mut set, (*group, *element), representation, &value, (big, explicit));
        }
        match &self.pixels {
            Pixels::Absent => {}
            Pixels::Plain(stored) => {
                let value: Vec<u8> = stored.iter().flat_map(|bits| number(*bits, big)).collect();
                put(&mut set, (0x7FE0, 0x10), "OW", &value, (big, explicit));
            }
            Pixels::Fragment(fragment) => encapsulate(&mut set, fragment),
        }
        match self.syntax {
            DEFLATED => {
                let mut encoder = DeflateEncoder::new(bytes, Compression::default());
                encoder.write_all(&set).unwrap();
                encoder.finish().unwrap()
            }
            _ => [bytes, set].concat(),
        }
    }

    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

fn number(value: u16, big: bool) -> [u8; 2] {
    if big { value.to_be_bytes() } else { value.to_le_bytes() }
}

/// Text of an even length: identifiers end in a null, other text in a space.
fn padded(text: &str, representation: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if representation == "UI" { 0 } else { b' ' });
    }
    bytes
}

fn put(out: &mut Vec<u8>, (group, element): (u16, u16), representation: &str, value: &[u8], (big, explicit): (bool, bool)) {
    let length = value.len() as u32;
    let length32 = if big { length.to_be_bytes() } else { length.to_le_bytes() };
    out.extend(number(group, big));
    out.extend(number(element, big));
    if explicit {
        out.extend(representation.as_bytes());
        if representation == "OW" {
            out.extend([0, 0]);
            out.extend(length32);
        } else {
            out.extend(number(length as u16, big));
        }
    } else {
        out.extend(length32);
    }
    out.extend(value);
}

/// An empty offset table and one fragment (PS3.5 A.4).
fn encapsulate(out: &mut Vec<u8>, fragment: &[u8]) {
    out.extend([0xE0, 0x7F, 0x10, 0x00, b'O', b'B', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    let item = [0xFE, 0xFF, 0x00, 0xE0];
    out.extend(item);
    out.extend(0u32.to_le_bytes());
    out.extend(item);
    out.extend((fragment.len().next_multiple_of(2) as u32).to_le_bytes());
    out.extend(fragment);
    out.extend(vec![0; fragment.len() % 2]);
    out.extend([0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]);
}
