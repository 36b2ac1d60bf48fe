//! Reading a preset, overriding keys, finding every fault.

use std::path::Path;

use sha2::{Digest, Sha256};
use yaml_serde::Value;

use crate::device::DeviceName;
use crate::{Error, Result};

use super::watching::{LANGUAGE_MEASURES, REPORT_MEASURES, STRUCTURE_MEASURES};
use super::{Config, SCHEMA};

/// The presets that the program carries: name and text.
const PRESETS: [(&str, &str); 5] = [
    ("phantom", include_str!("../../configs/phantom.yaml")),
    ("ct-rate-llama2-7b", include_str!("../../configs/ct-rate-llama2-7b.yaml")),
    ("ct-rate-bert", include_str!("../../configs/ct-rate-bert.yaml")),
    ("reference-code", include_str!("../../configs/reference-code.yaml")),
    ("ctrg-548k", include_str!("../../configs/ctrg-548k.yaml")),
];

impl Config {
    /// The names of the presets that the program carries.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A preset by name, or a file by path, with `overrides` (`a.b=value`, values in YAML); all faults at once.
    pub fn load(name_or_path: &str, overrides: &[String]) -> Result<Self> {
        let preset = PRESETS.iter().find(|(name, _)| *name == name_or_path);
        let text = match preset {
            Some((_, text)) => (*text).to_string(),
            None => read(name_or_path)?,
        };
        Config::parse(name_or_path, &text, overrides)
    }

    /// The configuration that a run folder was started with.
    pub fn of_run(run: &Path) -> Result<Self> {
        let path = run.join("config.yaml");
        if !path.is_file() {
            return Err(Error::file(run, "not a run folder: it holds no config.yaml"));
        }
        Config::load(&path.to_string_lossy(), &[])
    }

    /// Parses `text`; `source` names it in errors.
    pub fn parse(source: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let one = |fault: String| Error::Config { source_name: source.to_string(), faults: vec![fault] };
        let config: Config = if overrides.is_empty() {
            yaml_serde::from_str(text).map_err(|e| one(e.to_string()))?
        } else {
            let mut value: Value = yaml_serde::from_str(text).map_err(|e| one(e.to_string()))?;
            for text in overrides {
                set(&mut value, text).map_err(one)?;
            }
            yaml_serde::from_value(value).map_err(|e| one(e.to_string()))?
        };
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(Error::Config { source_name: source.to_string(), faults }) }
    }

    /// The resolved configuration as YAML.
    pub fn to_yaml(&self) -> Result<String> {
        yaml_serde::to_string(self).map_err(|e| Error::Invalid(format!("the configuration cannot be written: {e}")))
    }

    /// SHA-256 of the resolved configuration, the device and what belongs to it aside.
    pub fn sha256(&self) -> Result<String> {
        let yaml = Config { device: DeviceName::Cpu, ..self.clone() }.to_yaml()?;
        let digest =
            Sha256::digest(yaml.split_inclusive('\n').filter(|line| !line.starts_with("cuda_graphs:")).collect::<String>().as_bytes());
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Every fault of the numbers, one line each, named by key.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.schema != SCHEMA {
            faults.push(format!("schema: {} is not {SCHEMA}, the version that this program reads", self.schema));
        }
        if self.threads == 0 {
            faults.push("threads: must be at least 1".to_string());
        }
        if !(0.0..1.0).contains(&self.data.validation_share) {
            faults.push(format!("data.validation_share: {} is not in [0, 1)", self.data.validation_share));
        }
        faults.extend(self.data.grey.iter().flat_map(|grey| grey.faults("data.grey")));
        faults.extend(self.train_structure.training.faults("train_structure.training", &STRUCTURE_MEASURES));
        for (key, training) in [("llama.training", &self.llama.training), ("bert.training", &self.bert.training)] {
            let written: &[&str] = if training.watch.studies > 0 { &REPORT_MEASURES } else { &[] };
            faults.extend(training.faults(key, &[&["validation_loss"], written].concat()));
        }
        if let Some(language) = &self.language {
            faults.extend(language.training.faults("language.training", &LANGUAGE_MEASURES));
        }
        faults.extend(self.shape_faults());
        faults
    }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            let names = Config::presets().collect::<Vec<_>>().join(", ");
            return Error::file(path, format!("no such file, and not one of the presets {names}"));
        }
        Error::io(path, e)
    })
}

/// Sets `a.b.c=value` in `root`; the key must exist.
fn set(root: &mut Value, text: &str) -> std::result::Result<(), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("--set {text}: expected KEY=VALUE"))?;
    let value: Value = yaml_serde::from_str(value).map_err(|e| format!("--set {key}: {e}"))?;
    let mut at = root;
    for part in key.split('.') {
        let known = at.as_mapping_mut().and_then(|map| map.get_mut(part));
        at = known.ok_or_else(|| format!("--set {key}: no key {part}"))?;
    }
    *at = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{EncoderConfig, Precision};
    use crate::weights::{BasePrecision, WeightPrecision};

    #[test]
    fn every_preset_is_whole_and_reads_back_as_it_was_written() {
        for name in Config::presets() {
            let config = Config::load(name, &[]).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(Config::parse(name, &config.to_yaml().unwrap(), &[]).unwrap(), config);
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/phantom.yaml")).unwrap();
        let message = Config::parse("mine.yaml", &text.replace("threads: 2", "threads: 2\nthreds: 2"), &[]).unwrap_err().to_string();
        assert!(message.starts_with("mine.yaml") && message.contains("threds"), "{message}");
        let message = Config::load("phantom", &["llama.lora.rank=4".to_string()]).unwrap_err().to_string();
        assert!(message.contains("--set llama.lora.rank: no key rank"), "{message}");
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let bad = ["structure.selection.patches=9999", "bert.model.num_attention_heads=5", "train_structure.training.batch=0"];
        let message = Config::load("phantom", &bad.map(String::from)).unwrap_err().to_string();
        for part in [
            "structure.selection.patches: 9999 exceeds the 288 patches",
            "bert.model.num_attention_heads: 5",
            "train_structure.training.batch: must",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_device_is_a_key_of_its_own_and_changes_no_hash() {
        let there = Config::load("phantom", &["device=cuda:1", "cuda_graphs=false"].map(String::from)).unwrap();
        assert_eq!((there.device, there.at_once()), (DeviceName::Cuda(1), 1));
        let here = Config::load("phantom", &[]).unwrap();
        assert_eq!((here.device, here.at_once()), (DeviceName::Cpu, here.threads));
        assert_eq!(there.sha256().unwrap(), here.sha256().unwrap());
        let message = Config::load("phantom", &["device=gpu".to_string()]).unwrap_err().to_string();
        assert!(message.contains("no device is called `gpu`"), "{message}");
    }

    #[test]
    fn visions_precision_is_f32_and_llamas_auto_unless_said_otherwise_and_neither_is_bf16() {
        let precisions =
            |sets: &[String]| Config::load("ct-rate-bert", sets).map(|config| (config.vision.precision, config.llama.precision));
        assert_eq!(precisions(&[]).unwrap(), (WeightPrecision::F32, BasePrecision::Auto));
        let set = ["vision.precision=int16".to_string()];
        assert_eq!(precisions(&set).unwrap(), (WeightPrecision::Int16, BasePrecision::Auto));
        for (name, expected) in [("f32", BasePrecision::F32), ("int16", BasePrecision::Int16)] {
            let set = [format!("llama.precision={name}")];
            assert_eq!(precisions(&set).unwrap(), (WeightPrecision::F32, expected));
        }
        for key in ["vision", "llama"] {
            let message = precisions(&[format!("{key}.precision=bf16")]).unwrap_err().to_string();
            assert!(message.contains("bf16") && message.contains("int16"), "{message}");
        }
    }

    #[test]
    fn the_text_encoders_precision_is_read_and_a_wrong_or_missing_one_refused() {
        let precision = |sets: &[String]| match Config::load("ct-rate-bert", sets).map(|config| config.text.encoder) {
            Ok(EncoderConfig::Bert { precision, .. }) => Ok(precision),
            Ok(other) => panic!("{other:?}"),
            Err(e) => Err(e.to_string()),
        };
        assert_eq!(precision(&[]), Ok(Precision::F32));
        assert_eq!(precision(&["text.encoder.precision=bf16".to_string()]), Ok(Precision::Bf16));
        assert_eq!(precision(&["text.encoder.precision=int16".to_string()]), Ok(Precision::Int16));
        let message = precision(&["text.encoder.precision=f64".to_string()]).unwrap_err();
        assert!(message.contains("f64") && message.contains("one of `f32`, `int16`, `bf16`"), "{message}");
        let message = precision(&["text.encoder={kind: bert, folder: x, pooling: cls, max_tokens: 256}".to_string()]).unwrap_err();
        assert!(message.contains("precision"), "{message}");
    }

    #[test]
    fn overrides_reach_their_keys() {
        let set = ["llama.lora.r=4".to_string(), "llama.generation.strategy=!beam {width: 2, length_penalty: 1.0}".to_string()];
        let config = Config::load("phantom", &set).unwrap();
        assert_eq!(config.llama.lora.r, 4);
        assert_eq!(config.llama.generation.strategy, crate::decoder::Strategy::Beam { width: 2, length_penalty: 1.0 });
    }
}
