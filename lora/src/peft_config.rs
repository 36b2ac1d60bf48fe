//! `adapter_config.json`.

use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::peft::aside;
use crate::{Error, LoraConfig, Result, Targets};

/// Keys that change the mathematics, with the values under which nothing but what this crate computes is meant.
const PLAIN: [(&str, &[&str]); 7] = [
    ("peft_type", &["\"LORA\""]),
    ("bias", &["\"none\""]),
    ("fan_in_fan_out", &["false", "null"]),
    ("layer_replication", &["null", "[]"]),
    // the other ways (pissa, olora, loftq) change the base's weights before the adapter is added
    ("init_lora_weights", &["true", "false", "\"gaussian\"", "null"]),
    ("megatron_config", &["null"]),
    // later than PEFT 0.13.2
    ("exclude_modules", &["null", "[]"]),
];

/// Keys that are read.
const READ: [&str; 13] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "base_model_name_or_path",
    "task_type",
];

/// Keys that describe training or storage and change nothing of what the adapter computes.
const HARMLESS: [&str; 7] =
    ["auto_mapping", "inference_mode", "loftq_config", "megatron_core", "revision", "runtime_config", "peft_version"];

/// One or many.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn list(self) -> Vec<T> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// The keys that are read; maps keep the file's order, which decides between patterns.
#[derive(Debug, Deserialize)]
struct Keys {
    r: usize,
    lora_alpha: f64,
    lora_dropout: Option<f64>,
    target_modules: Targets,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    rank_pattern: Option<IndexMap<String, usize>>,
    alpha_pattern: Option<IndexMap<String, f64>>,
    layers_to_transform: Option<OneOrMany<usize>>,
    layers_pattern: Option<OneOrMany<String>>,
    modules_to_save: Option<Vec<String>>,
    base_model_name_or_path: Option<String>,
}

/// The file as it is written, keys in PEFT's order.
#[derive(Debug, Serialize)]
struct Written<'a> {
    alpha_pattern: IndexMap<&'a str, Value>,
    auto_mapping: Option<()>,
    base_model_name_or_path: &'a str,
    bias: &'static str,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    layer_replication: Option<()>,
    layers_pattern: Option<&'a [String]>,
    layers_to_transform: Option<&'a [usize]>,
    loftq_config: Map<String, Value>,
    lora_alpha: Value,
    lora_dropout: f64,
    megatron_config: Option<()>,
    megatron_core: &'static str,
    modules_to_save: Option<&'a [String]>,
    peft_type: &'static str,
    r: usize,
    rank_pattern: &'a IndexMap<String, usize>,
    revision: Option<()>,
    target_modules: &'a Targets,
    task_type: &'static str,
    use_dora: bool,
    use_rslora: bool,
}

/// The configuration and the base's name. What would not be computed as PEFT computes it is refused by name.
pub(crate) fn read(path: &Path) -> Result<(LoraConfig, String)> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let all: Map<String, Value> = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
    refuse_unknown(path, &all)?;
    let keys: Keys = serde_json::from_str(&text).map_err(|e| Error::file(path, unreadable(&all).unwrap_or_else(|| e.to_string())))?;
    let config = LoraConfig {
        r: keys.r,
        alpha: keys.lora_alpha,
        dropout: keys.lora_dropout.unwrap_or(0.0),
        target_modules: sorted(keys.target_modules),
        rslora: keys.use_rslora.unwrap_or(false),
        dora: keys.use_dora.unwrap_or(false),
        rank_pattern: keys.rank_pattern.unwrap_or_default(),
        alpha_pattern: keys.alpha_pattern.unwrap_or_default(),
        layers_to_transform: keys.layers_to_transform.map(OneOrMany::list).unwrap_or_default(),
        // an empty name is PEFT's way to say any
        layers_pattern: keys.layers_pattern.map(OneOrMany::list).unwrap_or_default().into_iter().filter(|name| !name.is_empty()).collect(),
        modules_to_save: keys.modules_to_save.unwrap_or_default(),
    };
    match config.faults("").first() {
        Some(fault) => Err(Error::file(path, fault.trim_start_matches('.').to_string())),
        None => Ok((config, keys.base_model_name_or_path.unwrap_or_default())),
    }
}

/// The first key whose value has another form than it must, named.
fn unreadable(keys: &Map<String, Value>) -> Option<String> {
    let number = |key: &str| keys.get(key).and_then(Value::as_f64).is_none().then(|| key.to_string());
    let key = number("r").or_else(|| number("lora_alpha")).or_else(|| {
        let targets = keys.get("target_modules").unwrap_or(&Value::Null);
        serde_json::from_value::<Targets>(targets.clone()).is_err().then(|| "target_modules".to_string())
    })?;
    Some(format!("{key}: missing, or of another type (found {})", keys.get(&key).unwrap_or(&Value::Null)))
}

fn refuse_unknown(path: &Path, keys: &Map<String, Value>) -> Result<()> {
    for (key, value) in keys {
        let text = value.to_string();
        let what = match PLAIN.iter().find(|(name, _)| name == key) {
            Some((_, allowed)) if !allowed.contains(&text.as_str()) => {
                format!("{text} is not supported (expected {})", allowed.join(" or "))
            }
            None if !READ.contains(&key.as_str())
                && !HARMLESS.contains(&key.as_str())
                && !matches!(value, Value::Null | Value::Bool(false)) =>
            {
                format!("{text}: an unknown key may change what the adapter computes")
            }
            _ => continue,
        };
        return Err(Error::Unsupported { path: path.to_path_buf(), key: key.clone(), what });
    }
    Ok(())
}

fn sorted(targets: Targets) -> Targets {
    match targets {
        Targets::Names(mut names) => {
            names.sort();
            Targets::Names(names)
        }
        pattern => pattern,
    }
}

/// Writes the file as PEFT would.
pub(crate) fn write(path: &Path, config: &LoraConfig, base: &str) -> Result<()> {
    let written = Written {
        alpha_pattern: config.alpha_pattern.iter().map(|(key, alpha)| (key.as_str(), number(*alpha))).collect(),
        auto_mapping: None,
        base_model_name_or_path: base,
        bias: "none",
        fan_in_fan_out: false,
        inference_mode: true,
        init_lora_weights: true,
        layer_replication: None,
        layers_pattern: some(&config.layers_pattern),
        layers_to_transform: some(&config.layers_to_transform),
        loftq_config: Map::new(),
        lora_alpha: number(config.alpha),
        lora_dropout: config.dropout,
        megatron_config: None,
        megatron_core: "megatron.core",
        modules_to_save: some(&config.modules_to_save),
        peft_type: "LORA",
        r: config.r,
        rank_pattern: &config.rank_pattern,
        revision: None,
        target_modules: &config.target_modules,
        task_type: "CAUSAL_LM",
        use_dora: config.dora,
        use_rslora: config.rslora,
    };
    let text = serde_json::to_string_pretty(&written).map_err(|e| Error::file(path, e.to_string()))?;
    aside(path, |aside| fs::write(aside, text).map_err(|e| Error::io(path, e)))
}

fn some<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

/// Whole alphas as whole numbers, as PEFT's type says.
fn number(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { Value::from(alpha as i64) } else { Value::from(alpha) }
}
