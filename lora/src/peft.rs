//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};

use crate::{Error, LoraConfig, Result};

/// What PEFT puts before a base model's module path.
pub const PREFIX: &str = "base_model.model.";

/// An adapter as it lies on disk.
#[derive(Debug)]
pub struct AdapterFile {
    /// Rank, scale, dropout, targets.
    pub config: LoraConfig,
    /// `base_model_name_or_path`.
    pub base: String,
    /// A and B by module path (`model.layers.0.self_attn.q_proj`).
    pub modules: BTreeMap<String, [Tensor; 2]>,
}

/// Keys that change the mathematics, with the values under which nothing but plain (or rank-stabilised) LoRA is meant.
const PLAIN: [(&str, &[&str]); 13] = [
    ("peft_type", &["\"LORA\""]),
    ("bias", &["\"none\""]),
    ("fan_in_fan_out", &["false", "null"]),
    ("use_dora", &["false", "null"]),
    ("layers_to_transform", &["null"]),
    ("layers_pattern", &["null", "\"\"", "[]"]),
    ("layer_replication", &["null"]),
    ("rank_pattern", &["{}", "null"]),
    ("alpha_pattern", &["{}", "null"]),
    ("modules_to_save", &["null", "[]"]),
    ("use_qalora", &["false", "null"]),
    ("lora_bias", &["false", "null"]),
    ("exclude_modules", &["null", "[]"]),
];

/// Keys that describe training, storage or the base and change nothing of what the adapter computes.
const HARMLESS: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "megatron_config",
    "megatron_core",
    "revision",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "runtime_config",
    "peft_version",
];

/// Reads an adapter's folder. What would not be computed as PEFT computes it is refused by name, never read as plain LoRA.
pub fn read_adapter(folder: &Path) -> Result<AdapterFile> {
    let path = folder.join("adapter_config.json");
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let keys: Map<String, Value> = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
    let config = parse_config(&path, &keys)?;
    let base = keys.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default().to_string();
    let path = folder.join("adapter_model.safetensors");
    if !path.is_file() {
        return Err(Error::file(&path, "no such file"));
    }
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(AdapterFile { modules: pair(&path, tensors, config.r)?, config, base })
}

fn parse_config(path: &Path, keys: &Map<String, Value>) -> Result<LoraConfig> {
    let refuse = |key: &str, what: String| Error::Unsupported { path: path.to_path_buf(), key: key.to_string(), what };
    for (key, value) in keys {
        let text = value.to_string();
        match PLAIN.iter().find(|(name, _)| name == key) {
            Some((_, allowed)) if !allowed.contains(&text.as_str()) => {
                return Err(refuse(key, format!("{text} is not supported (expected {})", allowed.join(" or "))));
            }
            None if !HARMLESS.contains(&key.as_str()) && !matches!(value, Value::Null | Value::Bool(false)) => {
                return Err(refuse(key, format!("{text}: an unknown key may change what the adapter computes")));
            }
            _ => {}
        }
    }
    let number = |key: &str| keys.get(key).and_then(Value::as_f64).ok_or_else(|| refuse(key, "missing or not a number".to_string()));
    let names = keys
        .get("target_modules")
        .and_then(Value::as_array)
        .ok_or_else(|| refuse("target_modules", "expected a list of names".to_string()))?;
    let mut target_modules: Vec<String> = names.iter().filter_map(|name| Some(name.as_str()?.to_string())).collect();
    target_modules.sort();
    Ok(LoraConfig {
        r: number("r")? as usize,
        alpha: number("lora_alpha")?,
        dropout: keys.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
        target_modules,
        rslora: keys.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn pair(path: &Path, tensors: HashMap<String, Tensor>, r: usize) -> Result<BTreeMap<String, [Tensor; 2]>> {
    let fault = |tensor: &str, what: String| Error::OtherBase { path: path.to_path_buf(), tensor: tensor.to_string(), what };
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let module = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(".weight"));
        let (module, which) = match module.map(|module| (module.strip_suffix(".lora_A"), module.strip_suffix(".lora_B"))) {
            Some((Some(module), _)) => (module, 0),
            Some((_, Some(module))) => (module, 1),
            _ => return Err(fault(&name, "not a tensor of a plain LoRA adapter".to_string())),
        };
        let rank = tensor.dims().get(which).copied();
        if tensor.rank() != 2 || rank != Some(r) {
            return Err(fault(&name, format!("shape {:?} is not of rank r = {r}", tensor.dims())));
        }
        halves.entry(module.to_string()).or_default()[which] = Some(tensor);
    }
    let whole = |(module, halves): (String, [Option<Tensor>; 2])| match halves {
        [Some(a), Some(b)] => Ok((module, [a, b])),
        _ => Err(fault(&module, "lora_A or lora_B is missing".to_string())),
    };
    halves.into_iter().map(whole).collect()
}

/// Writes an adapter's folder as PEFT would: it reads it without a change.
pub fn write_adapter(folder: &Path, adapter: &AdapterFile) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let config = &adapter.config;
    let keys = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": adapter.base, "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
        "loftq_config": {}, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "megatron_config": null,
        "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": config.r, "rank_pattern": {},
        "revision": null, "target_modules": config.target_modules, "task_type": "CAUSAL_LM", "use_dora": false, "use_rslora": config.rslora,
    });
    let path = folder.join("adapter_config.json");
    let text = serde_json::to_string_pretty(&keys).map_err(|e| Error::file(&path, e.to_string()))?;
    fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    let mut tensors = BTreeMap::new();
    for (module, [a, b]) in &adapter.modules {
        tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), a.contiguous()?);
        tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), b.contiguous()?);
    }
    let path = folder.join("adapter_model.safetensors");
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &path).map_err(|e| Error::file(&path, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> AdapterFile {
        let a = Tensor::new(&[[1.0f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[4.0f32], [5.0]], &Device::Cpu).unwrap();
        let config = LoraConfig { r: 1, alpha: 2.0, dropout: 0.05, target_modules: vec!["q_proj".into()], rslora: true };
        AdapterFile { config, base: "base".into(), modules: BTreeMap::from([("model.layers.0.self_attn.q_proj".to_string(), [a, b])]) }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &adapter()).unwrap();
        let back = read_adapter(folder.path()).unwrap();
        assert_eq!((back.config, back.base.as_str()), (adapter().config, "base"));
        let [a, b] = &back.modules["model.layers.0.self_attn.q_proj"];
        assert_eq!(a.to_vec2::<f32>().unwrap(), [[1.0, 2.0, 3.0]]);
        assert_eq!(b.to_vec2::<f32>().unwrap(), [[4.0], [5.0]]);
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let cases = [
            ("use_dora", "true"),
            ("bias", "\"all\""),
            ("rank_pattern", "{\"q_proj\": 2}"),
            ("modules_to_save", "[\"lm_head\"]"),
            ("use_new", "true"),
        ];
        for (key, value) in cases {
            let folder = tempfile::tempdir().unwrap();
            write_adapter(folder.path(), &adapter()).unwrap();
            let path = folder.path().join("adapter_config.json");
            let mut keys: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            keys.insert(key.into(), serde_json::from_str(value).unwrap());
            fs::write(&path, Value::Object(keys).to_string()).unwrap();
            let message = read_adapter(folder.path()).unwrap_err().to_string();
            assert!(message.contains(&format!("adapter_config.json: {key}: ")), "{message}");
        }
    }

    #[test]
    fn a_tensor_of_another_rank_and_a_missing_half_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut wrong = adapter();
        wrong.config.r = 2;
        write_adapter(folder.path(), &wrong).unwrap();
        assert!(read_adapter(folder.path()).unwrap_err().to_string().contains("is not of rank r = 2"));
    }
}
