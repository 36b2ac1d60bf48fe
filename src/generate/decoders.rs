//! The decoders of a run, put together from base, adapter, projector and tokenizer.

use std::path::{Path, PathBuf};

use candle_core::Device;

use crate::config::Config;
use crate::decoder::bert::{BertDecoder, BertDecoderConfig};
use crate::decoder::{DraftIndex, Llama, LlamaConfig, PROJECTOR, Projector, ReportDecoder, open_adapter};
use crate::device::Memory;
use crate::text::{PromptText, Tokenizer};
use crate::weights::{self, BasePrecision, Mapped, Params};
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

/// A frozen LLaMA, its weights left in their files: a folder in Hugging Face's layout (with a GGUF file in
/// safetensors' place, if it has one), or a GGUF file alone. On a device other than the processor they are copied there.
pub fn open_llama(base: &Path, precision: BasePrecision, device: &Device) -> Result<Llama> {
    let path = base.join("config.json");
    if base.is_dir() && !path.is_file() {
        return Err(Error::file(base, "no LLaMA here: it holds no config.json"));
    }
    let mapped = Mapped::open(base)?;
    let config = LlamaConfig::of_base(base, &mapped)?;
    let params = Params::mapped(mapped, device).with_precision(precision);
    let model = Llama::new(&config, &params)?;
    params.finish()?;
    Ok(model)
}

/// Memory for packed weights (see [`Llama::set_writing`]): what is available but for what a report needs beside.
pub fn room_to_pack() -> u64 {
    const BESIDE: u64 = 2 << 30;
    Memory::now().map_or(0, |memory| memory.available.saturating_sub(BESIDE))
}

/// The folder that holds a base's tokenizer: the base itself, or where its GGUF file lies.
fn tokenizer_folder(base: &Path) -> &Path {
    if base.is_dir() { base } else { base.parent().unwrap_or(base) }
}

/// LLaMA without adapters, behind `params`' projector and on their device: fresh, or loaded from a run.
pub fn assemble_llama(config: &Config, run: &Path, params: Params) -> Result<Assembled> {
    let base = llama_base(config, run);
    let stage = &config.llama;
    let model = open_llama(&base, stage.precision, params.device())?;
    let (hidden, std) = (model.config().hidden_size, model.embedding_std()?);
    let projector = Projector::new(&stage.projector, visual(config), hidden, std, &params.at("projector"))?;
    let (tokenizer, prompt) = (Tokenizer::read(tokenizer_folder(&base))?, PromptText::load(&stage.prompt)?);
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

/// The projector's file in an adapter's folder. It lies beside PEFT's own file, not in it: PEFT 0.13.2 passes over tensors whose module the base
/// lacks without a word and leaves them out of what it saves.
pub const PROJECTOR_FILE: &str = "projector.safetensors";

/// The folder of LLaMA's adapter in a run.
pub fn run_adapter(run: &Path) -> PathBuf {
    run.join(DecoderKind::Llama.name()).join("adapter")
}

/// The index of a run's training reports that LLaMA's guesses are made from. No weight: a report is the same with and without it.
pub fn draft_file(run: &Path) -> PathBuf {
    run.join(DecoderKind::Llama.name()).join("drafts.safetensors")
}

/// The file that holds a finished decoder's tensors inside its run: BERT whole, LLaMA's projector.
pub fn decoder_file(run: &Path, kind: DecoderKind) -> PathBuf {
    match kind {
        DecoderKind::Llama => run_adapter(run).join(PROJECTOR_FILE),
        DecoderKind::Bert => run.join(kind.name()).join("model.safetensors"),
    }
}

/// The files that a decoder is read from; LLaMA's from `adapter` (by default the run's own).
pub fn decoder_files(run: &Path, kind: DecoderKind, adapter: Option<&Path>) -> Result<Vec<PathBuf>> {
    let own = decoder_file(run, kind);
    if kind == DecoderKind::Bert {
        return Ok(vec![own]);
    }
    let adapter = adapter.map_or_else(|| run_adapter(run), Path::to_path_buf);
    Ok(vec![projector_of(&adapter)?.unwrap_or(own), adapter.join(ctscribe_lora::TENSOR_FILE)])
}

/// The projector that travels in an adapter's folder; none in one that was made elsewhere, on a projector that it left alone.
fn projector_of(adapter: &Path) -> Result<Option<PathBuf>> {
    let path = adapter.join(PROJECTOR_FILE);
    if path.is_file() {
        return Ok(Some(path));
    }
    let config = adapter.join(ctscribe_lora::CONFIG_FILE);
    if config.is_file() && open_adapter(adapter)?.config.modules_to_save.iter().any(|name| name == PROJECTOR) {
        return Err(Error::file(&path, "no such file, but adapter_config.json names it in modules_to_save"));
    }
    Ok(None)
}

/// A run's finished decoder, frozen, on the configuration's device; LLaMA with the adapter and the projector in `adapter` (by default the run's own).
pub fn open_decoder(config: &Config, run: &Path, kind: DecoderKind, adapter: Option<&Path>) -> Result<ReportDecoder> {
    let files = decoder_files(run, kind, adapter)?;
    if let Some(path) = files.iter().find(|path| !path.is_file()) {
        let name = kind.name();
        return Err(Error::file(
            path,
            format!("no such file: the {name} decoder has not been trained to its end (see `ctscribe train report --decoder {name}`)"),
        ));
    }
    let params = Params::loaded(files[0].display().to_string(), weights::open(&files[0])?, &config.device.open()?).frozen();
    let mut assembled = match kind {
        DecoderKind::Llama => assemble_llama(config, run, params)?,
        DecoderKind::Bert => assemble_bert(config, run, params)?,
    };
    assembled.params.finish()?;
    if let crate::decoder::Network::Llama { model, .. } = assembled.decoder.network_mut() {
        model.load_adapter(adapter.unwrap_or(&run_adapter(run)))?;
        model.set_writing(room_to_pack());
        model.set_replayed(config.cuda_graphs);
        let drafts = draft_file(run);
        if drafts.is_file() {
            let index = DraftIndex::open(&drafts, assembled.decoder.tokenizer().vocabulary())?;
            assembled.decoder.set_draft_index(index);
        }
    }
    Ok(assembled.decoder)
}
