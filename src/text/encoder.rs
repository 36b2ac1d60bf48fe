//! Frozen text encoders: sentences of a structure to one feature vector.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ctscribe_ops::{awake, transfers};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::weights::{self, Params};
use crate::{Error, Result};

use super::bert::{BertConfig, BertEncoder, Precision};
use super::tokenizer::Tokenizer;

/// Which frozen encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EncoderConfig {
    /// A pretrained BERT in Hugging Face's layout (CXR-BERT, MiniLM).
    Bert {
        /// Folder of config.json, weights and tokenizer.
        folder: PathBuf,
        /// The first token's state, or the mean over tokens.
        pooling: Pooling,
        /// Longest text in tokens.
        max_tokens: usize,
        /// The numbers of its weights and products.
        precision: Precision,
    },
    /// Words hashed to random directions and summed: needs no weights (phantom.md).
    HashedWords {
        /// Width of a feature.
        width: usize,
        /// Where the directions come from.
        seed: u64,
    },
}

/// How token states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token's state (CXR-BERT).
    Cls,
    /// The mean over the text's tokens (sentence encoders).
    Mean,
}

/// A frozen encoder.
#[derive(Debug)]
pub enum TextEncoder {
    /// A pretrained BERT.
    Bert {
        /// The network.
        encoder: Box<BertEncoder>,
        /// Its tokenizer.
        tokenizer: Box<Tokenizer>,
        /// How states become a vector.
        pooling: Pooling,
        /// Longest text in tokens.
        max_tokens: usize,
    },
    /// Hashed words.
    HashedWords {
        /// Width of a feature.
        width: usize,
        /// Where the directions come from.
        seed: u64,
    },
}

/// Texts that go through BERT together.
const BATCH: usize = 32;

impl TextEncoder {
    /// The encoder of `config`.
    pub fn new(config: &EncoderConfig, device: &Device) -> Result<Self> {
        match config {
            EncoderConfig::HashedWords { width, seed } => Ok(TextEncoder::HashedWords { width: *width, seed: *seed }),
            EncoderConfig::Bert { folder, pooling, max_tokens, precision } => {
                let encoder = read_bert(folder, *precision, device)?;
                let max_tokens = (*max_tokens).min(encoder.config().max_position_embeddings);
                let tokenizer = Box::new(Tokenizer::read(folder)?);
                Ok(TextEncoder::Bert { encoder: Box::new(encoder), tokenizer, pooling: *pooling, max_tokens })
            }
        }
    }

    /// Width C_text of a feature.
    pub fn width(&self) -> usize {
        match self {
            TextEncoder::Bert { encoder, .. } => encoder.config().hidden_size,
            TextEncoder::HashedWords { width, .. } => *width,
        }
    }

    /// One feature a text, each computed once however often it comes.
    pub fn encode(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut distinct: Vec<&str> = texts.iter().map(String::as_str).collect::<HashSet<_>>().into_iter().collect();
        distinct.sort_by_key(|text| (text.len(), *text));
        let encoded = match self {
            TextEncoder::HashedWords { width, seed } => distinct.iter().map(|text| hashed_words(text, *width, *seed)).collect(),
            TextEncoder::Bert { encoder, tokenizer, pooling, max_tokens } => {
                let batch = |texts: &[&str]| bert(encoder, tokenizer, *pooling, *max_tokens, texts);
                awake(|| distinct.chunks(BATCH).map(batch).collect::<Result<Vec<_>>>())?.concat()
            }
        };
        let features: HashMap<&str, Vec<f32>> = distinct.into_iter().zip(encoded).collect();
        Ok(texts.iter().map(|text| features[text.as_str()].clone()).collect())
    }
}

/// The encoder in a folder of Hugging Face's layout. CXR-BERT's checkpoint holds `bert.*` beside heads that are not used (peers.md d).
pub(crate) fn read_bert(folder: &Path, precision: Precision, device: &Device) -> Result<BertEncoder> {
    let config = BertConfig::read(&folder.join("config.json"))?;
    let archive = ["pytorch_model.bin", "model.pt"].map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
    let has_safetensors = folder.join("model.safetensors").is_file();
    let file = archive.filter(|_| !has_safetensors).unwrap_or_else(|| folder.to_path_buf());
    let tensors = weights::part(weights::open(&file)?, "bert.");
    let tensors = tensors.into_iter().filter(|(name, _)| !name.starts_with("cls")).collect();
    let params = Params::loaded(file.display().to_string(), tensors, device).frozen();
    let encoder = BertEncoder::new(&config, precision, &params)?;
    params.finish()?;
    Ok(encoder)
}

fn bert(encoder: &BertEncoder, tokenizer: &Tokenizer, pooling: Pooling, max_tokens: usize, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
    let rows: Vec<Vec<u32>> = texts.iter().map(|text| Ok(tokenizer.encode_whole(text, max_tokens)?.0)).collect::<Result<_>>()?;
    let (ids, mask) = padded(&rows, tokenizer.pad)?;
    let hidden = encoder.forward(&ids, &mask)?;
    let pooled = match pooling {
        Pooling::Cls => hidden.narrow(1, 0, 1)?.squeeze(1)?,
        Pooling::Mean => {
            let mask = transfers::to_device(&mask.to_dtype(DType::F32)?, hidden.device())?;
            hidden.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?.broadcast_div(&mask.sum_keepdim(1)?)?
        }
    };
    Ok(transfers::read_rows(&pooled)?)
}

/// Rows of ids as (B, L) with padding behind, and the mask (B, L).
pub fn padded(rows: &[Vec<u32>], pad: u32) -> Result<(Tensor, Tensor)> {
    let length = rows.iter().map(Vec::len).max().unwrap_or(0);
    if length == 0 {
        return Err(Error::Invalid("no text to encode".to_string()));
    }
    let ids: Vec<u32> = rows.iter().flat_map(|row| (0..length).map(move |at| row.get(at).copied().unwrap_or(pad))).collect();
    let mask: Vec<u32> = rows.iter().flat_map(|row| (0..length).map(move |at| u32::from(at < row.len()))).collect();
    Ok((Tensor::from_vec(ids, (rows.len(), length), &Device::Cpu)?, Tensor::from_vec(mask, (rows.len(), length), &Device::Cpu)?))
}

/// Words that carry no finding; negations stay.
const STOP_WORDS: [&str; 28] = [
    "a", "an", "and", "are", "as", "at", "be", "both", "by", "for", "from", "has", "have", "in", "is", "it", "its", "of", "on", "or",
    "that", "the", "there", "this", "to", "was", "were", "with",
];

/// Lower-case words without digits and stop words, cut to seven letters, each a random direction by its hash; their sum, of unit length.
fn hashed_words(text: &str, width: usize, seed: u64) -> Vec<f32> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty() && !STOP_WORDS.contains(word));
    let mut sum = vec![0f32; width];
    for word in words {
        let stem: String = word.chars().take(7).collect();
        let mut hasher = Sha256::new();
        hasher.update(seed.to_le_bytes());
        hasher.update(stem.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(hasher.finalize().into());
        sum.iter_mut().for_each(|value| *value += rng.sample::<f32, _>(StandardNormal));
    }
    let norm = sum.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
    sum.iter_mut().for_each(|value| *value /= norm);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_words_see_words_and_not_numbers_and_tell_a_negation() {
        let encoder = TextEncoder::new(&EncoderConfig::HashedWords { width: 64, seed: 1 }, &Device::Cpu).unwrap();
        let texts = ["Nodule of 5 mm.", "A nodule of 12 mm", "No nodule, mm."].map(String::from);
        let features = encoder.encode(&texts).unwrap();
        let cosine = |a: usize, b: usize| features[a].iter().zip(&features[b]).map(|(x, y)| x * y).sum::<f32>();
        assert!((cosine(0, 1) - 1.0).abs() < 1e-6 && cosine(0, 2) < 0.95);
    }
}
