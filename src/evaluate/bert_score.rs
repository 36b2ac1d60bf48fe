//! BERTScore (Zhang et al., 2020) with any encoder of ours: greedy cosine matching, no idf weights, no rescaling.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::text::bert::BertEncoder;
use crate::text::{Precision, Tokenizer, padded, read_bert};
use crate::weights::sha256;
use crate::{Error, Result};

/// Pairs that go through the encoder together: their states are held no longer.
const BATCH: usize = 16;

/// An encoder whose states of one layer are compared.
#[derive(Debug)]
pub struct BertScore {
    folder: PathBuf,
    sha256: String,
    encoder: BertEncoder,
    tokenizer: Tokenizer,
    layer: usize,
}

impl BertScore {
    /// The encoder in `folder` (Hugging Face's layout); states after `layer` layers, all of them if `None`.
    pub fn open(folder: &Path, layer: Option<usize>) -> Result<Self> {
        let (encoder, tokenizer) = (read_bert(folder, Precision::F32, &Device::Cpu)?, Tokenizer::read(folder)?);
        let layers = encoder.config().num_hidden_layers;
        let layer = layer.unwrap_or(layers);
        if layer == 0 || layer > layers {
            return Err(Error::file(folder, format!("BERTScore's layer {layer} is not one of the encoder's 1 to {layers}")));
        }
        let weights = ["model.safetensors", "pytorch_model.bin", "model.pt"].map(|name| folder.join(name));
        let weights = weights.iter().find(|path| path.is_file()).map(|path| sha256(path)).transpose()?;
        Ok(BertScore { folder: folder.to_path_buf(), sha256: weights.unwrap_or_default(), encoder, tokenizer, layer })
    }

    /// `FOLDER_layerN`: the convention in a score's name.
    pub fn convention(&self) -> String {
        let name = self.folder.file_name().map_or_else(|| "encoder".to_string(), |name| name.to_string_lossy().replace(['.', ' '], "_"));
        format!("{name}_layer{}", self.layer)
    }

    /// The encoder in words.
    pub fn name(&self) -> String {
        format!("{} (sha256 {}), layer {}, no idf, not rescaled", self.folder.display(), self.sha256, self.layer)
    }

    /// Precision, recall and F1 of each pair (hypothesis, reference). A text longer than the encoder reads is cut; an empty one scores 0.
    pub fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<[f64; 3]>> {
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_key(|&at| pairs[at].0.len().max(pairs[at].1.len()));
        let mut scores = vec![[0.0; 3]; pairs.len()];
        for chunk in order.chunks(BATCH) {
            let mut texts: Vec<&str> = chunk.iter().flat_map(|&at| [pairs[at].0, pairs[at].1]).collect();
            texts.sort_unstable();
            texts.dedup();
            let states = self.states(&texts)?;
            for &at in chunk {
                scores[at] = matched(&states[pairs[at].0], &states[pairs[at].1])?;
            }
        }
        Ok(scores)
    }

    /// Unit states (L, C) of each text's tokens, the first and the last included.
    fn states<'a>(&self, texts: &[&'a str]) -> Result<HashMap<&'a str, Tensor>> {
        let longest = self.encoder.config().max_position_embeddings;
        // RoBERTa's positions begin behind the padding's.
        let longest = if self.encoder.config().model_type == "roberta" { longest - 2 } else { longest };
        let rows = texts.iter().map(|text| Ok(self.tokenizer.encode_whole(text.trim(), longest)?.0)).collect::<Result<Vec<_>>>()?;
        let (ids, mask) = padded(&rows, self.tokenizer.pad)?;
        let hidden = self.encoder.states(&ids, &mask, self.layer)?.to_dtype(DType::F32)?;
        let unit = hidden.broadcast_div(&hidden.sqr()?.sum_keepdim(2)?.sqrt()?)?;
        let own = |at: usize| -> Result<Tensor> { Ok(unit.get(at)?.narrow(0, 0, rows[at].len())?.contiguous()?) };
        texts.iter().enumerate().map(|(at, text)| Ok((*text, own(at)?))).collect()
    }
}

/// own: (L, C), other: (M, C), unit rows. The first and last tokens can be matched but weigh nothing, as in bert-score.
fn matched(own: &Tensor, other: &Tensor) -> Result<[f64; 3]> {
    let similar: Vec<Vec<f32>> = own.matmul(&other.t()?.contiguous()?)?.to_vec2()?;
    let (rows, columns) = (similar.len(), similar[0].len());
    if rows <= 2 || columns <= 2 {
        return Ok([0.0; 3]);
    }
    let best = |values: &mut dyn Iterator<Item = f32>| f64::from(values.fold(f32::NEG_INFINITY, f32::max));
    let precision = (1..rows - 1).map(|row| best(&mut similar[row].iter().copied())).sum::<f64>() / (rows - 2) as f64;
    let recall = (1..columns - 1).map(|column| best(&mut similar.iter().map(|row| row[column]))).sum::<f64>() / (columns - 2) as f64;
    let f1 = 2.0 * precision * recall / (precision + recall);
    Ok([precision, recall, if f1.is_nan() { 0.0 } else { f1 }])
}
