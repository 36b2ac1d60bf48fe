//! Checkpoints that stay where they are: mapped into memory, their frozen matrices multiplied as they lie.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, gguf_file};
use ctscribe_ops::{Bytes, Format, Held, Matrix};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};

use crate::{Error, Result};

/// A GGUF file's key-value pairs.
pub type GgufMetadata = HashMap<String, gguf_file::Value>;

#[derive(Clone)]
struct Entry {
    bytes: Bytes,
    range: Range<usize>,
    format: Format,
    shape: Vec<usize>,
    order: Option<Vec<u32>>,
}

impl Entry {
    /// Its values as a matrix of `size`, which must hold as many.
    fn rows(&self, size: (usize, usize)) -> Result<Matrix> {
        let matrix = Matrix::new(self.bytes.clone(), self.range.clone(), self.format, size)?;
        Ok(match &self.order {
            Some(order) => matrix.reordered(order.clone())?,
            None => matrix,
        })
    }
}

/// The tensors of safetensors files or of a GGUF file, by Hugging Face's names.
pub struct Mapped {
    source: String,
    entries: BTreeMap<String, Entry>,
    gguf: Option<GgufMetadata>,
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Mapped({}, {} tensors)", self.source, self.entries.len())
    }
}

impl Mapped {
    /// Maps a `.gguf` or `.safetensors` file, or a folder: the shards that its index names, else all its `.safetensors` files, else its one
    /// `.gguf` file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut mapped = Mapped { source: path.display().to_string(), entries: BTreeMap::new(), gguf: None };
        let files = if path.is_dir() { shards(path)? } else { vec![path.to_path_buf()] };
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("gguf") => mapped.add_gguf(&file)?,
                _ => mapped.add_safetensors(&file)?,
            }
        }
        Ok(mapped)
    }

    /// The file or folder, for errors.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A GGUF file's metadata.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        self.gguf.as_ref()
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.range.len() as u64).sum()
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A matrix where it lies. The tensor must have two axes.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        let entry = self.entry(name)?;
        match *entry.shape {
            [rows, columns] => entry.rows((rows, columns)),
            _ => Err(self.fault(name, format!("expected two axes, found {:?}", entry.shape))),
        }
    }

    /// A copy of a tensor, f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let columns = entry.shape.last().copied().unwrap_or(1);
        let rows = entry.shape.iter().product::<usize>() / columns.max(1);
        Ok(entry.rows((rows, columns))?.to_tensor()?.reshape(entry.shape.as_slice())?)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| self.fault(name, "no such tensor".to_string()))
    }

    fn fault(&self, name: &str, what: String) -> Error {
        Error::Tensor { source_name: self.source.clone(), tensor: name.to_string(), what }
    }

    fn add_safetensors(&mut self, path: &Path) -> Result<()> {
        let map = map(path)?;
        let read = SafeTensors::read_metadata(map.as_ref());
        let (header, metadata) = read.map_err(|e| Error::file(path, format!("not a whole safetensors file: {e}")))?;
        let (start, bytes): (usize, Bytes) = (header + 8, Arc::new(map));
        for (name, info) in metadata.tensors() {
            let format = match info.dtype {
                Dtype::F32 => Format::F32,
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::Bf16,
                // old versions of transformers wrote tables that nothing reads
                _ => continue,
            };
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            self.entries.insert(name, Entry { bytes: bytes.clone(), range, format, shape: info.shape.clone(), order: None });
        }
        Ok(())
    }

    fn add_gguf(&mut self, path: &Path) -> Result<()> {
        let map = map(path)?;
        let fault = |e: candle_core::Error| Error::file(path, format!("not a whole GGUF file: {e}"));
        let content = gguf_file::Content::read(&mut Cursor::new(map.as_ref())).map_err(fault)?;
        let (length, bytes): (usize, Bytes) = (map.as_ref().len(), Arc::new(map));
        for (name, info) in &content.tensor_infos {
            let (shape, format) = (info.shape.dims().to_vec(), gguf_format(path, name, info.ggml_dtype)?);
            let columns = shape.last().copied().unwrap_or(1);
            let size = shape.iter().product::<usize>() / columns.max(1) * format.row_bytes(columns).map_err(fault)?;
            let start = content.tensor_data_offset as usize + info.offset as usize;
            if start + size > length {
                return Err(Error::file(path, format!("tensor {name} ends at byte {}, the file at {length}: cut short?", start + size)));
            }
            let name = hugging_face_name(name).ok_or_else(|| Error::file(path, format!("tensor {name} is not one of LLaMA's")))?;
            let order = head_order(&content.metadata, &name, &shape);
            self.entries.insert(name, Entry { bytes: bytes.clone(), range: start..start + size, format, shape, order });
        }
        self.gguf = Some(content.metadata);
        Ok(())
    }
}

/// A file that is mapped and only read.
struct MappedFile(Mmap);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Held for MappedFile {
    fn release(&self, range: Range<usize>) {
        // SAFETY: the pages are a file's and never written: whoever reads them again has the same bytes. Where the system declines, they stay.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        #[cfg(not(unix))]
        let _ = range;
    }
}

fn map(path: &Path) -> Result<MappedFile> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: a checkpoint that is cut or written while it is in use breaks any reader of it; ours are renamed into place.
    Ok(MappedFile(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?))
}

/// The shards of a folder: those of its index, or all that it holds.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        let text = fs::read_to_string(&index).map_err(|e| Error::io(&index, e))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::file(&index, e.to_string()))?;
        let names = json.get("weight_map").and_then(|map| map.as_object());
        let names = names.ok_or_else(|| Error::field(&index, "weight_map", "expected an object of tensor names"))?;
        let files: std::collections::BTreeSet<&str> = names.values().filter_map(|file| file.as_str()).collect();
        return Ok(files.into_iter().map(|file| folder.join(file)).collect());
    }
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let (mut plain, mut gguf) = (Vec::new(), Vec::new());
    for path in entries.flatten().map(|entry| entry.path()) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => plain.push(path),
            Some("gguf") => gguf.push(path),
            _ => {}
        }
    }
    plain.sort();
    match (plain.is_empty(), gguf.len()) {
        (false, _) => Ok(plain),
        (true, 1) => Ok(gguf),
        (true, 0) => Err(Error::file(folder, "holds no .safetensors and no .gguf file")),
        (true, count) => Err(Error::file(folder, format!("holds {count} .gguf files: name the one that is meant"))),
    }
}

fn gguf_format(path: &Path, name: &str, dtype: GgmlDType) -> Result<Format> {
    match dtype {
        GgmlDType::F32 => Ok(Format::F32),
        GgmlDType::F16 => Ok(Format::F16),
        GgmlDType::BF16 => Ok(Format::Bf16),
        GgmlDType::Q8_0 => Ok(Format::Q8_0),
        GgmlDType::Q4K => Ok(Format::Q4K),
        GgmlDType::Q6K => Ok(Format::Q6K),
        other => {
            let what =
                format!("tensor {name} is {other:?} (expected F32, F16, BF16, Q8_0, Q4_K or Q6_K: Q4_K_M and Q8_0 files have no other)");
            Err(Error::file(path, what))
        }
    }
}

/// llama.cpp's names of LLaMA's tensors (`llama-arch.cpp`) and Hugging Face's: of the whole model, then of a layer.
const WHOLE: [(&str, &str); 3] =
    [("token_embd.weight", "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight"), ("output.weight", "lm_head.weight")];
const PARTS: [(&str, &str); 9] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

fn hugging_face_name(name: &str) -> Option<String> {
    if let Some((_, other)) = WHOLE.iter().find(|(own, _)| *own == name) {
        return Some(other.to_string());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let (_, other) = PARTS.iter().find(|(own, _)| *own == part)?;
    Some(format!("model.layers.{layer}.{other}"))
}

/// llama.cpp's name of one of Hugging Face's.
pub(super) fn gguf_name(name: &str) -> Option<String> {
    if let Some((own, _)) = WHOLE.iter().find(|(_, other)| *other == name) {
        return Some(own.to_string());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (own, _) = PARTS.iter().find(|(_, other)| *other == part)?;
    Some(format!("blk.{layer}.{own}"))
}

/// Where Hugging Face's rows of a query or key projection lie: llama.cpp's converter puts a head's two halves side by side, pair by pair,
/// for its own rotary embedding (`LlamaModel.permute` of `convert_hf_to_gguf.py`).
fn head_order(metadata: &GgufMetadata, name: &str, shape: &[usize]) -> Option<Vec<u32>> {
    let key = match name.rsplit('.').nth(1)? {
        "q_proj" => "llama.attention.head_count",
        "k_proj" => "llama.attention.head_count_kv",
        _ => return None,
    };
    let heads = metadata.get(key).or_else(|| metadata.get("llama.attention.head_count"))?.to_u32().ok()? as usize;
    let (rows, width) = (shape[0], shape[0] / heads.max(1));
    let place = |row: usize| (row / width * width + row % width % (width / 2) * 2 + row % width / (width / 2)) as u32;
    Some((0..rows).map(place).collect())
}
