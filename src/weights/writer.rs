//! Writing whole models tensor by tensor: sharded safetensors, or GGUF with a quantised mix. No more than one tensor is held in f32.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use ctscribe_ops::Format;
use half::{bf16, f16};
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, View};
use serde_json::json;

use super::params::generator;
use super::{GgufMetadata, Mapped, write_aside};
use crate::{Error, Result};

/// A tensor that is made when it is its turn.
pub struct Source<'a> {
    /// Hugging Face's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Makes its values.
    pub values: Box<dyn Fn() -> Result<Vec<f32>> + Send + Sync + 'a>,
}

/// Values that are drawn at once from a generator of their own.
const DRAWN: usize = 1 << 18;

impl<'a> Source<'a> {
    /// Normal values with this standard deviation (a zero deviation: all one, as a norm's scale), by seed and name alone.
    pub fn random(name: String, shape: Vec<usize>, std: f64, seed: u64) -> Result<Self> {
        let normal = Normal::new(0.0, std).map_err(|e| Error::Invalid(format!("{name}: standard deviation {std}: {e}")))?;
        let (count, own) = (shape.iter().product::<usize>(), name.clone());
        let values = move || {
            let mut values = vec![1.0; count];
            if std > 0.0 {
                values.par_chunks_mut(DRAWN).enumerate().for_each(|(index, chunk)| {
                    let mut rng = generator(seed, &[own.as_bytes(), &index.to_le_bytes()]);
                    chunk.iter_mut().for_each(|value| *value = normal.sample(&mut rng) as f32);
                });
            }
            Ok(values)
        };
        Ok(Source { name, shape, values: Box::new(values) })
    }

    /// A tensor of a mapped checkpoint.
    pub fn mapped(mapped: &'a Mapped, name: &str) -> Result<Self> {
        let shape = mapped.shape(name).ok_or_else(|| Error::Invalid(format!("{}: no tensor {name}", mapped.source())))?.to_vec();
        let own = name.to_string();
        let values = move || Ok(mapped.tensor(&own)?.flatten_all()?.to_vec1()?);
        Ok(Source { name: name.to_string(), shape, values: Box::new(values) })
    }

    /// The same tensor with what f16 keeps of its values in bf16: those of a bf16 model that is published in f16, as LLaMA2 is.
    pub fn bf16_in_f16(self) -> Self {
        let Source { name, shape, values } = self;
        let narrow = |value: &mut f32| *value = f16::from_f32(bf16::from_f32(*value).to_f32()).to_f32();
        let values = move || {
            let mut values = values()?;
            values.par_iter_mut().with_min_len(DRAWN).for_each(narrow);
            Ok(values)
        };
        Source { name, shape, values: Box::new(values) }
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

struct Written<'a> {
    source: &'a Source<'a>,
    format: Format,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self.format {
            Format::F16 => Dtype::F16,
            Format::Bf16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.source.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // the trait has no way to fail; a mapped or drawn tensor of a known shape cannot
        let values = (self.source.values)().expect("the tensor's shape was read from the same place");
        let mut bytes = vec![0; self.data_len()];
        let width = self.format.block_bytes();
        bytes.par_chunks_mut(width * DRAWN).zip(values.par_chunks(DRAWN)).for_each(|(bytes, values)| {
            for (bytes, &value) in bytes.chunks_exact_mut(width).zip(values) {
                match self.format {
                    Format::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                    Format::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    _ => bytes.copy_from_slice(&value.to_le_bytes()),
                }
            }
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.source.count() * self.format.block_bytes()
    }
}

/// Writes `model-0000i-of-0000n.safetensors` of at most about `shard_bytes` and their index. format: f32, f16 or bf16.
pub fn write_shards(folder: &Path, sources: &[Source], format: Format, shard_bytes: usize) -> Result<Vec<PathBuf>> {
    if format.is_quantised() {
        return Err(Error::Invalid(format!("{format} is not a type of safetensors (expected f32, f16 or bf16)")));
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut shards: Vec<Vec<Written>> = vec![vec![]];
    let mut filled = 0;
    for source in sources {
        let written = Written { source, format };
        if filled > 0 && filled + written.data_len() > shard_bytes {
            shards.push(vec![]);
            filled = 0;
        }
        filled += written.data_len();
        shards.last_mut().expect("there is a first shard").push(written);
    }
    let count = shards.len();
    let (mut index, mut files) = (BTreeMap::new(), Vec::new());
    for (number, shard) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        index.extend(shard.iter().map(|written| (written.source.name.clone(), name.clone())));
        let (path, aside) = (folder.join(&name), folder.join(format!("{name}.incomplete")));
        let metadata = Some(HashMap::from([("format".to_string(), "pt".to_string())]));
        let views = shard.into_iter().map(|written| (written.source.name.clone(), written));
        safetensors::serialize_to_file(views, metadata, &aside).map_err(|e| Error::file(&path, e.to_string()))?;
        std::fs::rename(&aside, &path).map_err(|e| Error::io(&path, e))?;
        files.push(path);
    }
    let total: usize = sources.iter().map(|source| source.count() * format.block_bytes()).sum();
    let json = json!({"metadata": {"total_size": total}, "weight_map": index});
    let path = folder.join("model.safetensors.index.json");
    write_aside(&path, format!("{json:#}\n").as_bytes())?;
    files.push(path);
    Ok(files)
}

/// Which types a GGUF file's matrices have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Q8_0 throughout.
    Q8_0,
    /// llama.cpp's Q4_K_M: Q4_K, with Q6_K for the head and for half of the value and down projections.
    Q4KM,
}

impl Mix {
    /// The type of a tensor of a model of `layers` layers (`llama_tensor_get_type` of llama.cpp).
    fn dtype(self, name: &str, shape: &[usize], layers: usize) -> GgmlDType {
        if shape.len() < 2 {
            return GgmlDType::F32;
        }
        if self == Mix::Q8_0 || !shape[1].is_multiple_of(256) {
            return GgmlDType::Q8_0;
        }
        let layer = name.split('.').nth(2).and_then(|layer| layer.parse::<usize>().ok()).unwrap_or(0);
        let more_bits = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        match name {
            "lm_head.weight" => GgmlDType::Q6K,
            _ if more_bits && (name.contains("v_proj") || name.contains("down_proj")) => GgmlDType::Q6K,
            _ => GgmlDType::Q4K,
        }
    }
}

/// Writes a GGUF file with llama.cpp's names and order of heads. heads: of queries and of keys and values.
pub fn write_gguf(path: &Path, sources: &[Source], metadata: &GgufMetadata, mix: Mix, heads: (usize, usize)) -> Result<()> {
    let layers = sources.iter().filter(|source| source.name.ends_with("q_proj.weight")).count();
    let mut tensors = Vec::new();
    for source in sources {
        let name = super::mapped::gguf_name(&source.name)
            .ok_or_else(|| Error::Invalid(format!("{}: a tensor that llama.cpp's LLaMA does not have", source.name)))?;
        let own_heads = if source.name.contains("q_proj") { heads.0 } else { heads.1 };
        let mut values = (source.values)()?;
        if source.name.contains("q_proj") || source.name.contains("k_proj") {
            values = pair_by_pair(&values, source.shape[0], own_heads);
        }
        tensors.push((name, quantise(values, &source.shape, mix.dtype(&source.name, &source.shape, layers))?));
    }
    let aside = path.with_extension("gguf.incomplete");
    let file = File::create(&aside).map_err(|e| Error::io(&aside, e))?;
    let pairs: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let views: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut BufWriter::new(file), &pairs, &views).map_err(|e| Error::file(path, e.to_string()))?;
    std::fs::rename(&aside, path).map_err(|e| Error::io(path, e))
}

/// llama.cpp's order of a head's rows: its two halves side by side.
fn pair_by_pair(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (columns, width) = (values.len() / rows, rows / heads);
    let source = |row: usize| row / width * width + row % 2 * (width / 2) + row % width / 2;
    (0..rows).flat_map(|row| values[source(row) * columns..][..columns].iter().copied()).collect()
}

/// Quantises by pieces of rows, on every core.
fn quantise(values: Vec<f32>, shape: &[usize], dtype: GgmlDType) -> Result<QTensor> {
    let columns = shape.last().copied().unwrap_or(1);
    let piece = columns * (DRAWN / columns).max(1);
    let pieces = values.par_chunks(piece).map(|piece| -> Result<Vec<u8>> {
        let rows = Tensor::from_slice(piece, (piece.len() / columns, columns), &Device::Cpu)?;
        Ok(QTensor::quantize(&rows, dtype)?.data()?.to_vec())
    });
    let bytes = pieces.collect::<Result<Vec<_>>>()?.concat();
    Ok(QTensor::new(QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, dtype)?, shape)?)
}
