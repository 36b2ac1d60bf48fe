//! LLaMA's sizes, in Hugging Face's names.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::weights::GgufMetadata;
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
        let words = metadata.get("tokenizer.ggml.tokens").and_then(|tokens| tokens.to_vec().ok()).map(Vec::len);
        Ok(LlamaConfig {
            hidden_size: number("embedding_length")?,
            intermediate_size: number("feed_forward_length")?,
            num_hidden_layers: number("block_count")?,
            num_attention_heads: number("attention.head_count")?,
            num_key_value_heads: number("attention.head_count_kv").ok(),
            head_dim: number("attention.key_length").ok(),
            vocab_size: number("vocab_size").ok().or(words).ok_or_else(|| absent("llama.vocab_size"))?,
            max_position_embeddings: number("context_length")?,
            // f32 in the file: 1e-5 as it was meant
            rms_norm_eps: real(epsilon).map(|epsilon| (epsilon * 1e9).round() / 1e9).ok_or_else(|| absent(epsilon))?,
            rope_theta: real("llama.rope.freq_base").unwrap_or_else(default_theta),
            tie_word_embeddings,
            initializer_range: default_range(),
        })
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
