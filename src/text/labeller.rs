//! Who reads the 18 findings out of a report: the rules, or CT-CLIP's RadBERT classifier where its weights are at hand.

use std::path::Path;

use candle_core::Device;
use rayon::prelude::*;

use crate::weights::{self, Params};
use crate::{Error, Result};

use super::bert::{BertConfig, RadBert};
use super::encoder::padded;
use super::findings::{FINDINGS, LABELLER, label_report};
use super::tokenizer::Tokenizer;

/// A labeller of reports.
#[derive(Debug, Default)]
pub enum Labeller {
    /// prompts/findings.yaml.
    #[default]
    Rules,
    /// The classifier that made CT-RATE's label files.
    RadBert(Box<RadBertLabeller>),
}

/// RadBERT with its tokenizer.
#[derive(Debug)]
pub struct RadBertLabeller {
    model: RadBert,
    tokenizer: Tokenizer,
    max_tokens: usize,
    name: String,
}

/// Longest report in tokens, its ends counted: the peers cut there (peers.md d).
const MAX_TOKENS: usize = 512;
/// Reports at once.
const BATCH: usize = 16;

impl Labeller {
    /// What it is called in results.
    pub fn name(&self) -> &str {
        match self {
            Labeller::Rules => LABELLER,
            Labeller::RadBert(labeller) => &labeller.name,
        }
    }

    /// RadBERT out of `folder` (`weights fetch radbert-classifier`): config.json, the tokenizer (tokenizer.json, or vocab.json and merges.txt) and
    /// the classifier's checkpoint.
    pub fn radbert(folder: &Path) -> Result<Self> {
        let names = ["RadBertClassifier.safetensors", "RadBertClassifier.pth", "model.safetensors"];
        let file = names.map(|name| folder.join(name)).into_iter().find(|path| path.is_file()).ok_or_else(|| {
            let what = format!("holds none of {}; `ctscribe weights fetch radbert-classifier` brings them", names.join(", "));
            Error::file(folder, what)
        })?;
        let config = BertConfig::read(&folder.join("config.json"))?;
        let model = classifier(&file, &config)?;
        // RoBERTa counts positions from one past the padding's id
        let max_tokens = MAX_TOKENS.min(config.max_position_embeddings.saturating_sub(config.pad_token_id as usize + 1));
        let name = format!("RadBERT classifier {}", &weights::sha256(&file)?[..12]);
        Ok(Labeller::RadBert(Box::new(RadBertLabeller { model, tokenizer: Tokenizer::read(folder)?, max_tokens, name })))
    }

    /// The findings that each report affirms.
    pub fn label(&self, reports: &[&str]) -> Result<Vec<[bool; 18]>> {
        match self {
            Labeller::Rules => Ok(reports.par_iter().map(|report| label_report(report)).collect()),
            Labeller::RadBert(labeller) => labeller.label(reports),
        }
    }
}

fn classifier(file: &Path, config: &BertConfig) -> Result<RadBert> {
    let params = Params::loaded(file.display().to_string(), weights::open(file)?, &Device::Cpu).frozen();
    let model = RadBert::new(config, FINDINGS.len(), &params)?;
    // left by older versions of transformers
    params.at("model.embeddings").unused("position_ids");
    params.finish()?;
    Ok(model)
}

impl RadBertLabeller {
    /// Reports of like length together: padding costs time and changes nothing.
    fn label(&self, reports: &[&str]) -> Result<Vec<[bool; 18]>> {
        let ids = |report: &&str| Ok(self.tokenizer.encode_whole(report, self.max_tokens)?.0);
        let ids: Vec<Vec<u32>> = reports.iter().map(ids).collect::<Result<_>>()?;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|index| ids[*index].len());
        let mut labels = vec![[false; 18]; ids.len()];
        for chunk in order.chunks(BATCH) {
            let rows: Vec<Vec<u32>> = chunk.iter().map(|index| ids[*index].clone()).collect();
            let (ids, mask) = padded(&rows, self.tokenizer.pad)?;
            let found: Vec<Vec<u8>> = self.model.labels(&ids, &mask)?.to_vec2()?;
            chunk.iter().zip(found).for_each(|(index, row)| labels[*index] = std::array::from_fn(|finding| row[finding] == 1));
        }
        Ok(labels)
    }
}
