//! LLaMA's sizes, in Hugging Face's names.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::layer::PROJECTIONS;

use crate::weights::{GgufMetadata, Mapped};
use crate::{Error, Result};

/// The part of a LLaMA `config.json` that decides what is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Width D.
    pub hidden_size: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; absent: as many as query heads.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; absent: hidden size over heads.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of a fresh embedding; Hugging Face's key for all fresh weights.
    #[serde(default = "default_range")]
    pub initializer_range: f64,
}

// config.json files written before the keys existed lack them; these are transformers' own defaults
fn default_theta() -> f64 {
    10_000.0
}

fn default_range() -> f64 {
    0.02
}

impl LlamaConfig {
    /// Reads `config.json`; what would be computed otherwise than here is refused by name.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        let plain = [
            ("model_type", vec!["\"llama\""]),
            ("hidden_act", vec!["\"silu\""]),
            ("rope_scaling", vec!["null"]),
            ("attention_bias", vec!["false"]),
            ("mlp_bias", vec!["false"]),
            ("quantization_config", vec!["null"]),
        ];
        for (key, allowed) in plain {
            if let Some(value) = keys.get(key).map(ToString::to_string).filter(|value| !allowed.contains(&value.as_str())) {
                return Err(Error::field(path, key, format!("{value} is not supported (expected {})", allowed.join(" or "))));
            }
        }
        let config: LlamaConfig = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        let faults = config.faults("config");
        if faults.is_empty() { Ok(config) } else { Err(Error::file(path, faults.join("; "))) }
    }

    /// The sizes in a GGUF file's metadata (keys of llama.cpp's `llama` architecture).
    pub fn of_gguf(path: &Path, metadata: &GgufMetadata, tie_word_embeddings: bool) -> Result<Self> {
        let absent = |key: &str| Error::field(path, key, "the GGUF file does not say it");
        let architecture = metadata.get("general.architecture").and_then(|value| value.to_string().ok());
        if architecture.is_none_or(|architecture| architecture != "llama") {
            return Err(Error::field(path, "general.architecture", format!("{architecture:?} is not supported (expected llama)")));
        }
        let number = |key: &str| -> Result<usize> {
            let key = format!("llama.{key}");
            let value = metadata.get(&key).and_then(|value| value.to_u32().ok());
            value.map(|value| value as usize).ok_or_else(|| absent(&key))
        };
        let real = |key: &str| metadata.get(key).and_then(|value| value.to_f32().ok()).map(f64::from);
        let epsilon = "llama.attention.layer_norm_rms_epsilon";
        let (hidden_size, heads) = (number("embedding_length")?, number("attention.head_count")?);
        let words = metadata.get("tokenizer.ggml.tokens").and_then(|tokens| tokens.to_vec().ok()).map(Vec::len);
        Ok(LlamaConfig {
            hidden_size,
            intermediate_size: number("feed_forward_length")?,
            num_hidden_layers: number("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: number("attention.head_count_kv").ok(),
            head_dim: number("attention.key_length").ok().filter(|width| width * heads != hidden_size),
            vocab_size: number("vocab_size").ok().or(words).ok_or_else(|| absent("llama.vocab_size"))?,
            max_position_embeddings: number("context_length")?,
            // f32 in the file: 1e-5 as it was meant
            rms_norm_eps: real(epsilon).map(|epsilon| (epsilon * 1e9).round() / 1e9).ok_or_else(|| absent(epsilon))?,
            rope_theta: real("llama.rope.freq_base").unwrap_or_else(default_theta),
            tie_word_embeddings,
            initializer_range: default_range(),
        })
    }

    /// What [`LlamaConfig::of_gguf`] reads, and what llama.cpp asks for besides: which vocabulary the file holds.
    pub fn gguf(&self) -> GgufMetadata {
        let number = |value: usize| Value::U32(value as u32);
        let pairs = [
            ("general.architecture", Value::String("llama".to_string())),
            // none: the tokenizer lies beside the file
            ("tokenizer.ggml.model", Value::String("no_vocab".to_string())),
            ("llama.embedding_length", number(self.hidden_size)),
            ("llama.feed_forward_length", number(self.intermediate_size)),
            ("llama.block_count", number(self.num_hidden_layers)),
            ("llama.attention.head_count", number(self.num_attention_heads)),
            ("llama.attention.head_count_kv", number(self.kv_heads())),
            ("llama.attention.key_length", number(self.head_width())),
            ("llama.vocab_size", number(self.vocab_size)),
            ("llama.context_length", number(self.max_position_embeddings)),
            ("llama.rope.dimension_count", number(self.head_width())),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(self.rms_norm_eps as f32)),
            ("llama.rope.freq_base", Value::F32(self.rope_theta as f32)),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }

    /// Names, shapes and fresh standard deviations (0: all one) of the model's tensors, in Hugging Face's order.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, f64)> {
        let dim = self.hidden_size;
        let fan_in = |name: &str, outputs: usize, inputs: usize| (name.to_string(), vec![outputs, inputs], 1.0 / (inputs as f64).sqrt());
        let norm = |name: String| (name, vec![dim], 0.0);
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, dim], self.initializer_range)];
        for layer in (0..self.num_hidden_layers).map(|layer| format!("model.layers.{layer}")) {
            let projections = PROJECTIONS.iter().zip(self.projection_sizes());
            tensors.extend(projections.map(|(name, (outputs, inputs))| fan_in(&format!("{layer}.{name}.weight"), outputs, inputs)));
            tensors.push(norm(format!("{layer}.input_layernorm.weight")));
            tensors.push(norm(format!("{layer}.post_attention_layernorm.weight")));
        }
        tensors.push(norm("model.norm.weight".to_string()));
        if !self.tie_word_embeddings {
            tensors.push(fan_in("lm_head.weight", self.vocab_size, dim));
        }
        tensors
    }

    /// (out, in) of a layer's projections, in the order of their names.
    pub(super) fn projection_sizes(&self) -> [(usize, usize); PROJECTIONS.len()] {
        let (dim, ffn) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_width(), self.kv_heads() * self.head_width());
        [(q, dim), (kv, dim), (kv, dim), (dim, q), (ffn, dim), (ffn, dim), (dim, ffn)]
    }

    /// The sizes of the model in `base`, opened as `mapped`: those of a GGUF file by itself, else of the folder's `config.json`.
    pub fn of_base(base: &Path, mapped: &Mapped) -> Result<Self> {
        match mapped.gguf() {
            Some(metadata) if !base.is_dir() => Self::of_gguf(base, metadata, mapped.shape("lm_head.weight").is_none()),
            _ => Self::read(&base.join("config.json")),
        }
    }

    /// The sizes of a published model: `llama2-7b`, or those of the benchmarks (`llama-1b`: TinyLlama's; `llama-tiny`).
    pub fn named(name: &str) -> Result<Self> {
        let sizes = |layers, dim, heads, kv, ffn| LlamaConfig {
            hidden_size: dim,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(kv),
            head_dim: None,
            vocab_size: 32_000,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: default_theta(),
            tie_word_embeddings: false,
            initializer_range: default_range(),
        };
        match name {
            "llama2-7b" => Ok(sizes(32, 4096, 32, 32, 11_008)),
            "llama-1b" => Ok(sizes(22, 2048, 32, 4, 5632)),
            "llama-tiny" => Ok(sizes(4, 512, 8, 8, 1376)),
            _ => Err(Error::Invalid(format!("{name}: no such model (expected llama2-7b, llama-1b or llama-tiny)"))),
        }
    }

    /// `config.json` as transformers reads it.
    pub fn json(&self, begin: u32, end: u32) -> serde_json::Value {
        let mut keys = json!({
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "bos_token_id": begin,
            "eos_token_id": end,
        });
        let own = serde_json::to_value(self).expect("numbers have a JSON form");
        keys.as_object_mut().into_iter().zip(own.as_object()).for_each(|(keys, own)| keys.extend(own.clone()));
        keys
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Faults of these numbers, named by `key`.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.kv_heads() == 0 || !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            faults.push(format!("{key}: {} heads do not divide over {} key-value heads", self.num_attention_heads, self.kv_heads()));
        }
        if !self.head_width().is_multiple_of(2) {
            faults.push(format!("{key}: head width {} is odd; rotary embedding needs an even one", self.head_width()));
        }
        faults
    }
}
