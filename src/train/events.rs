//! TensorBoard event files: TFRecords of protobuf events (tensorflow/core/util/event.proto, the few fields that scalars and text need).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::{Error, Result};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<TextTensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct TextTensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(string, repeated, tag = "8")]
    string_val: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

/// TensorFlow's DT_STRING.
const STRING: i32 = 7;
/// What TensorBoard expects in the first event.
const VERSION: &str = "brain.Event:2";
const PREFIX: &str = "events.out.tfevents.";

/// The event file of a stage's folder, written record by record.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: fs::File,
}

/// A number that an event file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    /// The step it belongs to.
    pub step: u64,
    /// Its name.
    pub tag: String,
    /// The number.
    pub value: f32,
}

impl EventFile {
    /// Goes on with the folder's event file after step `step`: what later steps (or half a record) left is cut off. None there: a new one.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let Some(path) = event_file(folder) else { return EventFile::create(folder) };
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let kept = records(&bytes).take_while(|(event, _)| event.step <= step as i64).last().map_or(0, |(_, end)| end);
        let open = || -> std::io::Result<fs::File> {
            let file = fs::OpenOptions::new().append(true).open(&path)?;
            file.set_len(kept as u64)?;
            Ok(file)
        };
        let mut events = EventFile { file: open().map_err(|e| Error::io(&path, e))?, path };
        if kept == 0 {
            events.begin()?;
        }
        Ok(events)
    }

    fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(format!("{PREFIX}{:010}.ctscribe", wall_time() as u64));
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = EventFile { path, file };
        events.begin()?;
        Ok(events)
    }

    fn begin(&mut self) -> Result<()> {
        self.write(&Event { wall_time: wall_time(), step: 0, file_version: Some(VERSION.to_string()), summary: None })
    }

    /// Numbers of a step, by name.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let value = |(tag, value): &(String, f64)| Value { tag: tag.clone(), simple_value: Some(*value as f32), ..Value::default() };
        self.summary(step, values.iter().map(value).collect())
    }

    /// Texts of a step, by name; TensorBoard reads them as Markdown.
    pub fn texts(&mut self, step: u64, texts: &[(String, String)]) -> Result<()> {
        let value = |(tag, text): &(String, String)| Value {
            tag: tag.clone(),
            simple_value: None,
            tensor: Some(TextTensor { dtype: STRING, shape: Some(Shape { dim: vec![Dim { size: 1 }] }), string_val: vec![text.clone()] }),
            metadata: Some(Metadata { plugin_data: Some(PluginData { plugin_name: "text".to_string() }) }),
        };
        self.summary(step, texts.iter().map(value).collect())
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        self.write(&Event { wall_time: wall_time(), step: step as i64, file_version: None, summary: Some(Summary { value }) })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] = [&length, &masked_crc(&length).to_le_bytes(), &data, &masked_crc(&data).to_le_bytes()];
        self.file.write_all(&parts.concat()).map_err(|e| Error::io(&self.path, e))
    }
}

/// The numbers in a folder's event file, in the order in which they were written.
pub fn read_scalars(folder: &Path) -> Result<Vec<Scalar>> {
    let path = event_file(folder).ok_or_else(|| Error::file(folder, format!("holds no {PREFIX}*")))?;
    let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let values = records(&bytes).flat_map(|(event, _)| {
        let step = event.step as u64;
        event.summary.into_iter().flat_map(|summary| summary.value).map(move |value| (step, value))
    });
    Ok(values.filter_map(|(step, value)| Some(Scalar { step, tag: value.tag, value: value.simple_value? })).collect())
}

/// The newest by name, which begins with the time.
fn event_file(folder: &Path) -> Option<PathBuf> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    names.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))).max()
}

/// Whole, undamaged records from the start on, each with the position behind it.
fn records(bytes: &[u8]) -> impl Iterator<Item = (Event, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let part = |from: usize, count: usize| bytes.get(from..from.checked_add(count)?);
        let crc = |from: usize| Some(u32::from_le_bytes(part(from, 4)?.try_into().ok()?));
        let length = part(at, 8)?;
        let count = u64::from_le_bytes(length.try_into().ok()?) as usize;
        if crc(at + 8)? != masked_crc(length) {
            return None;
        }
        let data = part(at + 12, count)?;
        if crc(at + 12 + count)? != masked_crc(data) {
            return None;
        }
        at += 16 + count;
        Some((Event::decode(data).ok()?, at))
    })
}

/// TFRecord's checksum: rotated and shifted, so that a checksum of data that holds checksums stays sound (tensorflow/core/lib/hash/crc32c.h).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(value: f64) -> Vec<(String, f64)> {
        vec![("train/loss".to_string(), value)]
    }

    fn steps(folder: &Path) -> Vec<u64> {
        read_scalars(folder).unwrap().iter().map(|scalar| scalar.step).collect()
    }

    #[test]
    fn the_checksum_is_tensorflows_for_known_bytes() {
        // RFC 3720 B.4: 32 zeros give 8a9136aa; masked by hand: rotated right by 15 it is 6d55_1522, plus a282_ead8
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn numbers_and_texts_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::open(folder.path(), 0).unwrap();
        events.scalars(3, &[("train/loss".to_string(), 0.0), ("train/learning_rate".to_string(), 1.5e-3)]).unwrap();
        events.texts(3, &[("samples/a".to_string(), "Heart size is normal.".to_string())]).unwrap();
        let scalar = |tag: &str, value: f32| Scalar { step: 3, tag: tag.to_string(), value };
        assert_eq!(read_scalars(folder.path()).unwrap(), [scalar("train/loss", 0.0), scalar("train/learning_rate", 1.5e-3)]);
        let bytes = fs::read(event_file(folder.path()).unwrap()).unwrap();
        let (last, end) = records(&bytes).last().unwrap();
        assert_eq!(
            (last.summary.unwrap().value[0].tensor.as_ref().unwrap().string_val[0].as_str(), end),
            ("Heart size is normal.", bytes.len())
        );
    }

    #[test]
    fn a_resumed_file_shows_no_step_twice_and_no_half_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::open(folder.path(), 0).unwrap();
        for step in 1..=4 {
            events.scalars(step, &loss(step as f64)).unwrap();
        }
        let path = event_file(folder.path()).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(steps(folder.path()), [1, 2, 3]);
        let mut events = EventFile::open(folder.path(), 2).unwrap();
        for step in 3..=5 {
            events.scalars(step, &loss(-1.0)).unwrap();
        }
        assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5]);
        assert_eq!(read_scalars(folder.path()).unwrap()[2].value, -1.0);
    }
}
