//! The decoders of a run, put together from base, adapter, projector and tokenizer.

use std::path::{Path, PathBuf};

use candle_core::Device;

use crate::config::Config;
use crate::decoder::bert::{BertDecoder, BertDecoderConfig};
use crate::decoder::{Llama, LlamaConfig, Projector, ReportDecoder};
use crate::text::{PromptText, Tokenizer};
use crate::weights::{self, Params};
use crate::{Error, Result};

/// Which decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderKind {
    /// LLaMA with LoRA.
    Llama,
    /// BERT with cross-attention.
    Bert,
}

impl DecoderKind {
    /// Its folder in a run, and its name in results.
    pub fn name(self) -> &'static str {
        match self {
            DecoderKind::Llama => "llama",
            DecoderKind::Bert => "bert",
        }
    }

    /// The decoding keys of this decoder.
    pub fn generation(self, config: &Config) -> &crate::decoder::GenerationConfig {
        match self {
            DecoderKind::Llama => &config.llama.generation,
            DecoderKind::Bert => &config.bert.generation,
        }
    }
}

/// A decoder and the tensors beside the base that are trained or loaded.
#[derive(Debug)]
pub struct Assembled {
    /// The decoder.
    pub decoder: ReportDecoder,
    /// The projector's tensors (BERT: the decoder's too, under `decoder.`).
    pub params: Params,
}

/// The folder of LLaMA's base: the configuration's, or the run's own language model.
pub fn llama_base(config: &Config, run: &Path) -> PathBuf {
    config.llama.base.clone().unwrap_or_else(|| run.join("language"))
}

/// A frozen LLaMA from a folder in Hugging Face's layout.
pub fn open_llama(folder: &Path) -> Result<Llama> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Err(Error::file(folder, "no LLaMA here: it holds no config.json"));
    }
    let config = LlamaConfig::read(&path)?;
    let params = Params::loaded(folder.display().to_string(), weights::open(folder)?, &Device::Cpu).frozen();
    let model = Llama::new(&config, &params)?;
    params.finish()?;
    Ok(model)
}

/// LLaMA without adapters, behind `params`' projector: fresh, or loaded from a run.
pub fn assemble_llama(config: &Config, run: &Path, params: Params) -> Result<Assembled> {
    let base = llama_base(config, run);
    let model = open_llama(&base)?;
    let stage = &config.llama;
    let (hidden, std) = (model.config().hidden_size, model.embedding_std()?);
    let projector = Projector::new(&stage.projector, visual(config), hidden, std, &params.at("projector"))?;
    let (tokenizer, prompt) = (Tokenizer::read(&base)?, PromptText::load(&stage.prompt)?);
    if tokenizer.vocabulary() > model.config().vocab_size {
        let what = format!("the tokenizer has {} tokens, the model {}", tokenizer.vocabulary(), model.config().vocab_size);
        return Err(Error::file(&base, what));
    }
    let decoder = ReportDecoder::llama(model, projector, tokenizer, &prompt, stage.begin_and_end)?;
    Ok(Assembled { decoder, params })
}

/// The BERT decoder of `params`: fresh, or loaded from a run.
pub fn assemble_bert(config: &Config, run: &Path, params: Params) -> Result<Assembled> {
    let stage = &config.bert;
    let tokenizer = Tokenizer::read(&stage.tokenizer.clone().unwrap_or_else(|| run.join("language")))?;
    let vocab_size = match stage.model.vocab_size {
        0 => tokenizer.vocabulary(),
        size => size,
    };
    let sizes = BertDecoderConfig { vocab_size, ..stage.model.clone() };
    let model = BertDecoder::new(&sizes, &params.at("decoder"))?;
    let projector = match &stage.projector {
        // a layer norm stands before every use of them: unit deviation is as good as any
        Some(projector) => Some(Projector::new(projector, visual(config), sizes.hidden_size, 1.0, &params.at("projector"))?),
        None => None,
    };
    Ok(Assembled { decoder: ReportDecoder::bert(model, projector, tokenizer), params })
}

/// Visual tokens V and their width h.
fn visual(config: &Config) -> (usize, usize) {
    (config.structure.visual_tokens(), config.structure.queries.width())
}

/// The file of a finished decoder's own tensors inside its run folder.
pub fn decoder_file(run: &Path, kind: DecoderKind) -> PathBuf {
    run.join(kind.name()).join(match kind {
        DecoderKind::Llama => "projector.safetensors",
        DecoderKind::Bert => "model.safetensors",
    })
}

/// A run's finished decoder, frozen; LLaMA with `adapter` (by default the run's own).
pub fn open_decoder(config: &Config, run: &Path, kind: DecoderKind, adapter: Option<&Path>) -> Result<ReportDecoder> {
    let path = decoder_file(run, kind);
    if !path.is_file() {
        let name = kind.name();
        return Err(Error::file(
            &path,
            format!("no such file: the {name} decoder has not been trained to its end (see `ctscribe train report --decoder {name}`)"),
        ));
    }
    let params = Params::loaded(path.display().to_string(), weights::open(&path)?, &Device::Cpu).frozen();
    let mut assembled = match kind {
        DecoderKind::Llama => assemble_llama(config, run, params)?,
        DecoderKind::Bert => assemble_bert(config, run, params)?,
    };
    assembled.params.finish()?;
    if let crate::decoder::Network::Llama { model, .. } = assembled.decoder.network_mut() {
        model.load_adapter(adapter.unwrap_or(&run.join("llama/adapter")))?;
    }
    Ok(assembled.decoder)
}
