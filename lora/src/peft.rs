//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{AdapterTensors, Error, LoraConfig, Result, peft_config};

/// What PEFT puts before a base model's module path.
pub const PREFIX: &str = "base_model.model.";
/// The configuration's file in an adapter's folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file in an adapter's folder.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";

/// An adapter as it lies on disk.
#[derive(Debug)]
pub struct AdapterFile {
    /// Rank, scale, dropout, targets.
    pub config: LoraConfig,
    /// `base_model_name_or_path`.
    pub base: String,
    /// The tensors by module path (`model.layers.0.self_attn.q_proj`).
    pub modules: BTreeMap<String, AdapterTensors>,
}

/// Reads an adapter's folder. What would not be computed as PEFT computes it is refused by name, never read as plain LoRA.
pub fn read_adapter(folder: &Path) -> Result<AdapterFile> {
    let (config, base) = peft_config::read(&folder.join(CONFIG_FILE))?;
    let path = folder.join(TENSOR_FILE);
    let tensors = read_tensors(&path)?;
    Ok(AdapterFile { modules: together(&path, tensors, &config)?, config, base })
}

impl AdapterFile {
    /// Trained numbers in all.
    pub fn parameters(&self) -> usize {
        self.shapes().values().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// Shapes by PEFT's names in the file.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let tensors = self.modules.iter().flat_map(|(module, tensors)| named(module, tensors));
        tensors.map(|(name, tensor)| (name, tensor.dims().to_vec())).collect()
    }
}

/// A module's tensors by PEFT's names in the file.
fn named<'a>(module: &str, AdapterTensors { a, b, magnitude }: &'a AdapterTensors) -> Vec<(String, &'a Tensor)> {
    let mut tensors = vec![(format!("{PREFIX}{module}.lora_A.weight"), a), (format!("{PREFIX}{module}.lora_B.weight"), b)];
    tensors.extend(magnitude.iter().map(|magnitude| (format!("{PREFIX}{module}.lora_magnitude_vector"), magnitude)));
    tensors
}

/// The configuration of an adapter's folder and the shapes of all that its file holds, whether it is an adapter's or not.
pub fn adapter_shapes(folder: &Path) -> Result<(LoraConfig, BTreeMap<String, Vec<usize>>)> {
    let (config, _) = peft_config::read(&folder.join(CONFIG_FILE))?;
    let shapes = read_tensors(&folder.join(TENSOR_FILE))?.into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec()));
    // a parameter's name for the magnitude is the file's with `.weight`
    let shapes = shapes.map(|(name, shape)| match name.strip_suffix(".lora_magnitude_vector.weight") {
        Some(module) => (format!("{module}.lora_magnitude_vector"), shape),
        None => (name, shape),
    });
    Ok((config, shapes.collect()))
}

fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    if !path.is_file() {
        return Err(Error::file(path, "no such file"));
    }
    candle_core::safetensors::load(path, &Device::Cpu).map_err(|e| Error::file(path, e.to_string()))
}

/// A, B and magnitude of one module, as far as they have been found.
type Parts = [Option<Tensor>; 3];

/// Endings of PEFT's names: its state dictionary has the magnitude without `.weight`, its parameters have it with it.
const ENDINGS: [(&str, usize); 4] =
    [(".lora_A.weight", 0), (".lora_B.weight", 1), (".lora_magnitude_vector", 2), (".lora_magnitude_vector.weight", 2)];

fn together(path: &Path, tensors: HashMap<String, Tensor>, config: &LoraConfig) -> Result<BTreeMap<String, AdapterTensors>> {
    let fault = |tensor: &str, what: String| Error::OtherBase { path: path.to_path_buf(), tensor: tensor.to_string(), what };
    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, tensor) in tensors {
        let inside = name.strip_prefix(PREFIX);
        let found = ENDINGS.iter().find_map(|(ending, part)| Some((inside?.strip_suffix(ending)?, *part)));
        let Some((module, part)) = found else {
            return Err(fault(&name, "not a tensor of a LoRA adapter".to_string()));
        };
        if part == 2 && !config.dora {
            return Err(fault(&name, "a magnitude, but use_dora is false".to_string()));
        }
        let rank = config.rank(module);
        let fits = match part {
            0 => tensor.rank() == 2 && tensor.dims()[0] == rank,
            1 => tensor.rank() == 2 && tensor.dims()[1] == rank,
            _ => tensor.rank() == 1,
        };
        if !fits {
            return Err(fault(&name, format!("shape {:?} is not of rank r = {rank}", tensor.dims())));
        }
        // half precision is computed in f32, as PEFT's autocast_adapter_dtype does
        modules.entry(module.to_string()).or_default()[part] = Some(tensor.to_dtype(DType::F32)?);
    }
    let whole = |(module, parts): (String, Parts)| match parts {
        [Some(a), Some(b), magnitude] if magnitude.is_some() == config.dora => Ok((module, AdapterTensors { a, b, magnitude })),
        [Some(_), Some(_), _] => Err(fault(&module, "lora_magnitude_vector is missing".to_string())),
        _ => Err(fault(&module, "lora_A or lora_B is missing".to_string())),
    };
    modules.into_iter().map(whole).collect()
}

/// Writes an adapter's folder as PEFT would: it reads it without a change.
pub fn write_adapter(folder: &Path, adapter: &AdapterFile) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in adapter.modules.iter().flat_map(|(module, tensors)| named(module, tensors)) {
        tensors.insert(name, tensor.contiguous()?);
    }
    let path = folder.join(TENSOR_FILE);
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    aside(&path, |aside| safetensors::serialize_to_file(tensors, Some(metadata), aside).map_err(|e| Error::file(&path, e.to_string())))?;
    peft_config::write(&folder.join(CONFIG_FILE), &adapter.config, &adapter.base)
}

/// Writes a file aside and renames it: a killed run leaves the old file or the new one.
pub(crate) fn aside(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let aside = path.with_extension("part");
    write(&aside)?;
    fs::rename(&aside, path).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use serde_json::{Map, Value};

    use super::*;
    use crate::Targets;

    const Q: &str = "model.layers.0.self_attn.q_proj";
    const UP: &str = "model.layers.0.mlp.up_proj";

    /// An adapter of two modules, (2, 3) each.
    fn adapter(config: LoraConfig) -> AdapterFile {
        let tensors = |path: &str| {
            let filled = |size: usize, at: f32| (0..size).map(|i| at + i as f32 / 8.0).collect::<Vec<f32>>();
            let rank = config.rank(path);
            let a = Tensor::from_vec(filled(rank * 3, 1.0), (rank, 3), &Device::Cpu).unwrap();
            let b = Tensor::from_vec(filled(rank * 2, 4.0), (2, rank), &Device::Cpu).unwrap();
            let magnitude = config.dora.then(|| Tensor::new(&[6.0f32, 7.0], &Device::Cpu).unwrap());
            AdapterTensors { a, b, magnitude }
        };
        let modules = [Q, UP].map(|path| (path.to_string(), tensors(path)));
        AdapterFile { modules: BTreeMap::from(modules), config, base: "base".into() }
    }

    fn plain() -> LoraConfig {
        LoraConfig { dropout: 0.05, ..LoraConfig::plain(1, 2.0, Targets::Names(vec!["q_proj".into(), "up_proj".into()])) }
    }

    fn kinds() -> [LoraConfig; 6] {
        let ranks = IndexMap::from([("up_proj".to_string(), 3), ("q_proj".to_string(), 2)]);
        [
            plain(),
            LoraConfig { rslora: true, ..plain() },
            LoraConfig { dora: true, rslora: true, ..plain() },
            LoraConfig { rank_pattern: ranks, alpha_pattern: IndexMap::from([("up_proj".into(), 1.5)]), dora: true, ..plain() },
            LoraConfig { target_modules: Targets::Pattern(r".*(q|up)_proj".into()), ..plain() },
            LoraConfig {
                layers_to_transform: vec![0],
                layers_pattern: vec!["layers".into()],
                modules_to_save: vec!["projector".into()],
                ..plain()
            },
        ]
    }

    #[test]
    fn what_is_written_of_every_kind_is_read() {
        for config in kinds() {
            let folder = tempfile::tempdir().unwrap();
            let written = adapter(config.clone());
            write_adapter(folder.path(), &written).unwrap();
            let back = read_adapter(folder.path()).unwrap();
            assert!(back.config.rank_pattern.keys().eq(config.rank_pattern.keys()), "the order of patterns is kept");
            assert_eq!((&back.config, back.base.as_str()), (&config, "base"));
            assert_eq!(back.modules.len(), 2);
            for (path, tensors) in &written.modules {
                let found = &back.modules[path];
                let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!((values(&found.a), values(&found.b)), (values(&tensors.a), values(&tensors.b)));
                assert_eq!(found.magnitude.as_ref().map(values), tensors.magnitude.as_ref().map(values));
            }
        }
    }

    /// The message of reading `adapter` after `key` has been set to `value`.
    fn refused(adapter: &AdapterFile, key: &str, value: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), adapter).unwrap();
        let path = folder.path().join(CONFIG_FILE);
        let mut keys: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        keys.insert(key.into(), serde_json::from_str(value).unwrap());
        fs::write(&path, Value::Object(keys).to_string()).unwrap();
        read_adapter(folder.path()).unwrap_err().to_string()
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let cases = [
            ("bias", "\"all\""),
            ("peft_type", "\"LOHA\""),
            ("init_lora_weights", "\"pissa\""),
            ("exclude_modules", "[\"q_proj\"]"),
            ("layer_replication", "[[0, 2], [1, 3]]"),
            ("use_new", "true"),
            ("target_modules", "null"),
            ("target_modules", "\"(\""),
            ("lora_alpha", "\"x\""),
        ];
        for (key, value) in cases {
            let message = refused(&adapter(plain()), key, value);
            assert!(message.contains(&format!("adapter_config.json: {key}: ")), "{message}");
        }
    }

    #[test]
    fn a_tensor_of_another_rank_and_a_magnitude_too_many_or_too_few_are_named() {
        let message = refused(&adapter(plain()), "r", "2");
        assert!(message.contains("is not of rank r = 2"), "{message}");
        let message = refused(&adapter(plain()), "rank_pattern", "{\"q_proj\": 3}");
        assert!(message.contains("q_proj") && message.contains("is not of rank r = 3"), "{message}");
        let message = refused(&adapter(plain()), "use_dora", "true");
        assert!(message.contains("lora_magnitude_vector is missing"), "{message}");
        let message = refused(&adapter(LoraConfig { dora: true, ..plain() }), "use_dora", "false");
        assert!(message.contains("a magnitude, but use_dora is false"), "{message}");
    }
}
