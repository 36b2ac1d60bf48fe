//! A configuration and a cache small enough for a test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::DType;
use ctscribe::config::Config;
use ctscribe::data::phantom::write_dataset;
use ctscribe::data::{Cache, prepare, read_ct_rate};

/// The preset `phantom` with everything small.
const SETS: [&str; 26] = [
    "data.validation_share=0.2",
    "vision.ct_vit.dim=32",
    "vision.ct_vit.heads=2",
    "vision.ct_vit.codebook_size=16",
    "structure.queries.patch_width=32",
    "structure.queries.width=32",
    "structure.queries.heads=4",
    "structure.queries.ffn_width=64",
    "structure.head.width=32",
    "structure.queue={kind: ours, length: 16, same_cosine: 0.95}",
    "train_structure.training.steps=6",
    "train_structure.training.batch=8",
    "train_structure.training.log_every=1",
    "language.model.hidden_size=32",
    "language.model.intermediate_size=64",
    "language.model.num_hidden_layers=2",
    "language.model.num_attention_heads=2",
    "language.model.num_key_value_heads=1",
    "language.model.head_dim=16",
    "language.training.steps=4",
    "language.training.log_every=1",
    "llama.training.steps=6",
    "llama.training.log_every=1",
    "llama.lora.dropout=0.05",
    "bert.training.steps=6",
    "bert.training.log_every=1",
];
const BERT: [&str; 7] = [
    "bert.model.hidden_size=32",
    "bert.model.intermediate_size=64",
    "bert.model.num_hidden_layers=2",
    "bert.model.num_attention_heads=2",
    "bert.model.dropout=0.1",
    "bert.generation.max_new_tokens=24",
    "llama.generation.max_new_tokens=24",
];

/// The tiny configuration with `more` overrides.
pub fn config(more: &[&str]) -> Config {
    let sets: Vec<String> = SETS.iter().chain(&BERT).chain(more).map(|text| text.to_string()).collect();
    Config::load("phantom", &sets).unwrap_or_else(|e| panic!("{e}"))
}

/// Writes, reads and prepares `train` + `valid` phantoms below `root`.
pub fn cache(root: &Path, config: &Config, train: usize, valid: usize) -> Cache {
    let mut phantoms = config.phantoms.clone().unwrap();
    (phantoms.train, phantoms.valid) = (train, valid);
    write_dataset(&root.join("dataset"), &phantoms, |_| {}).unwrap();
    let dataset = read_ct_rate(&root.join("dataset"), &config.data, config.seed).unwrap();
    let report = prepare(&dataset, &config.volume, &root.join("cache"), |_| {}).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    Cache::open(&root.join("cache")).unwrap()
}

/// A cache of 24 training and 6 held-out phantoms, made once.
pub fn shared() -> &'static Cache {
    static CACHE: OnceLock<(tempfile::TempDir, Cache)> = OnceLock::new();
    let (_, cache) = CACHE.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path(), &config(&[]), 24, 6);
        (root, cache)
    });
    cache
}

/// An empty run folder of `config` in `root`.
pub fn run(root: &Path, config: &Config) -> PathBuf {
    let run = root.join("run");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("config.yaml"), config.to_yaml().unwrap()).unwrap();
    run
}

/// What a safetensors file holds: names and values, sorted. Two files of the same content can differ in the order of their metadata.
pub fn contents(path: &Path) -> Vec<u8> {
    let mut contents = Vec::new();
    for (name, tensor) in ctscribe::weights::open(path).unwrap().into_iter().collect::<BTreeMap<_, _>>() {
        contents.extend(format!("{name} {:?} {:?}\n", tensor.dims(), tensor.dtype()).into_bytes());
        let values: Vec<f64> = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        contents.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let metadata: BTreeMap<_, _> = ctscribe::weights::metadata(path).unwrap().into_iter().collect();
    contents.extend(format!("{metadata:?}").into_bytes());
    contents
}
