//! Adapters between folders, runs and bases.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ctscribe_lora::{CONFIG_FILE, LoraConfig, TENSOR_FILE};
use ctscribe_ops::transfers;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::Config;
use crate::decoder::{Fit, Llama};
use crate::weights::{self, BasePrecision, copy_files, save};
use crate::{Error, Result};

use super::decoders::{DecoderKind, PROJECTOR_FILE, llama_base, open_decoder, open_llama, run_adapter};

/// Tokens of the prompt on which a merged model is compared.
const COMPARED_TOKENS: usize = 64;

/// What a merge gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeOutcome {
    /// Tokens of the compared prompt.
    pub tokens: usize,
    /// Largest absolute difference of a logit between the adapter on its base and the merged model as it was written.
    pub largest: f32,
    /// Largest absolute logit of the adapter on its base.
    pub scale: f32,
}

/// Logits (L, vocabulary) of `ids` by the LLaMA in `base` with `adapter`, if there is one.
pub fn adapter_logits(base: &Path, adapter: Option<&Path>, ids: &[u32]) -> Result<Tensor> {
    let mut model = open_llama(base, BasePrecision::F32, &Device::Cpu)?;
    if let Some(adapter) = adapter {
        model.load_adapter(adapter)?;
    }
    logits(&model, ids)
}

fn logits(model: &Llama, ids: &[u32]) -> Result<Tensor> {
    let vocabulary = model.config().vocab_size;
    if ids.is_empty() {
        return Err(Error::Invalid("no id is given".to_string()));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(Error::Invalid(format!("id {id} exceeds the model's vocabulary of {vocabulary}")));
    }
    let ids = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?;
    Ok(model.logits(&model.forward(&model.embed(&ids)?, None, None)?)?.squeeze(0)?.detach())
}

/// The tensors of an adapter beside the base that it is to be put on, and its configuration.
pub fn verify_adapter(adapter: &Path, base: &Path) -> Result<(LoraConfig, Vec<Fit>)> {
    let (config, shapes) = ctscribe_lora::adapter_shapes(adapter)?;
    let fits = open_llama(base, BasePrecision::Auto, &Device::Cpu)?.fits(&config, &shapes);
    Ok((config, fits))
}

/// Writes `base` with `adapter` in it to `out`, a plain LLaMA in the base's own types (`f32`: what was merged in f32), then opens it again and
/// compares: a merged model whose logits are further than `tolerance` from the adapter's on its base is not kept.
pub fn merge_adapter(adapter: &Path, base: &Path, out: &Path, f32: bool, tolerance: f32) -> Result<MergeOutcome> {
    if out.canonicalize().is_ok_and(|out| base.canonicalize().is_ok_and(|base| base == out)) {
        return Err(Error::file(out, "the merged model would take its base's place"));
    }
    let mut model = open_llama(base, BasePrecision::F32, &Device::Cpu)?;
    model.load_adapter(adapter)?;
    let ids = seeded_ids(&model);
    let expected = logits(&model, &ids)?;
    model.merge_adapter()?;
    write_merged(&model, base, out, f32)?;
    drop(model);
    let found = logits(&open_llama(out, BasePrecision::F32, &Device::Cpu)?, &ids)?;
    let largest = |tensor: &Tensor| -> Result<f32> { Ok(transfers::read_number(&tensor.abs()?.flatten_all()?.max(0)?)?) };
    let outcome = MergeOutcome { tokens: ids.len(), largest: largest(&(found - &expected)?)?, scale: largest(&expected)? };
    if outcome.largest.is_nan() || outcome.largest > tolerance {
        let path = out.join("model.safetensors");
        fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        let MergeOutcome { largest, scale, .. } = outcome;
        return Err(Error::file(
            &path,
            format!(
                "not kept: a logit differs by {largest:.3e} (largest logit {scale:.3e}) from the adapter's on its base, tolerance {tolerance:.1e}"
            ),
        ));
    }
    Ok(outcome)
}

/// The same ids for the same vocabulary, on every machine.
fn seeded_ids(model: &Llama) -> Vec<u32> {
    let (vocabulary, longest) = (model.config().vocab_size as u32, model.config().max_position_embeddings);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..COMPARED_TOKENS.min(longest)).map(|_| rng.random_range(0..vocabulary)).collect()
}

fn write_merged(model: &Llama, base: &Path, out: &Path, f32: bool) -> Result<()> {
    fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let mut tensors = weights::open(base)?;
    for (name, weight) in model.projection_weights()? {
        let dtype = tensors.get(&name).map_or(DType::F32, Tensor::dtype);
        tensors.insert(name, weight.to_dtype(if f32 { DType::F32 } else { dtype })?);
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    save(&out.join("model.safetensors"), &tensors.into_iter().collect(), &metadata)?;
    let beside =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"];
    copy_files(base, out, &beside).map(|_| ())
}

/// The files of an adapter's folder. The projector is last: it says that the decoder is whole.
const FILES: [&str; 4] = [CONFIG_FILE, TENSOR_FILE, "README.md", PROJECTOR_FILE];

/// Copies an adapter made elsewhere into a run, checked against the run's base; an adapter that the run has is replaced only if `replace`.
pub fn import_adapter(adapter: &Path, run: &Path, replace: bool) -> Result<Vec<PathBuf>> {
    let (config, own) = (Config::of_run(run)?, run_adapter(run));
    if own.join(TENSOR_FILE).is_file() && !replace {
        return Err(Error::file(&own, "the run has an adapter (--replace puts this one in its place)"));
    }
    if adapter.join(PROJECTOR_FILE).is_file() || own.join(PROJECTOR_FILE).is_file() {
        open_decoder(&config, run, DecoderKind::Llama, Some(adapter))?;
    } else {
        open_llama(&llama_base(&config, run), config.llama.precision, &Device::Cpu)?.load_adapter(adapter)?;
    }
    copy_files(adapter, &own, &FILES)
}

/// Copies a run's adapter with its projector to a folder.
pub fn export_adapter(run: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let own = run_adapter(run);
    crate::decoder::open_adapter(&own)?;
    copy_files(&own, out, &FILES)
}
