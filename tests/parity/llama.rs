//! LLaMA and LoRA against transformers and PEFT.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use ctscribe::config::OptimizerConfig;
use ctscribe::decoder::{GenerationConfig, Llama, LlamaConfig, LlamaPrompt, Strategy, generate};
use ctscribe::train::AdamW;
use ctscribe::weights::{self, Params};

use crate::fixtures::{assert_close, data, folder, tensors};

fn model(folder: &Path) -> Llama {
    let config = LlamaConfig::read(&folder.join("config.json")).unwrap();
    let params = Params::loaded("model.safetensors", weights::open(&folder.join("model.safetensors")).unwrap(), &Device::Cpu).frozen();
    let model = Llama::new(&config, &params).unwrap();
    params.finish().unwrap();
    model
}

fn ids(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

/// The shifted targets and weights of labels that ignore -100.
fn shifted(labels: &Tensor) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
    let labels: Vec<Vec<i64>> = labels.to_vec2().unwrap();
    let next = |row: &Vec<i64>, at: usize| row.get(at + 1).copied().unwrap_or(-100);
    let targets = labels.iter().map(|row| (0..row.len()).map(|at| next(row, at).max(0) as u32).collect()).collect();
    let weights = labels.iter().map(|row| (0..row.len()).map(|at| if next(row, at) == -100 { 0.0 } else { 1.0 }).collect()).collect();
    (targets, weights)
}

struct Case {
    f: HashMap<String, Tensor>,
    prefix: Var,
}

impl Case {
    fn read(folder: &Path, base: &HashMap<String, Tensor>) -> Self {
        let mut f = tensors(folder.join("expected.safetensors"));
        for (name, tensor) in base {
            f.entry(name.clone()).or_insert_with(|| tensor.clone());
        }
        let prefix = Var::from_tensor(&f["prefix_embeds"]).unwrap();
        Case { f, prefix }
    }

    fn hidden(&self, model: &Llama) -> Tensor {
        let embedded = model.embed(&ids(&self.f["input_ids"])).unwrap();
        let input = Tensor::cat(&[self.prefix.as_tensor(), &embedded], 1).unwrap();
        model.forward(&input, Some(&self.f["attention_mask"]), None).unwrap()
    }

    fn check_logits(&self, model: &Llama, name: &str, tolerance: f64) {
        let mask = self.f["attention_mask"].to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap();
        let logits = model.logits(&self.hidden(model)).unwrap().broadcast_mul(&mask).unwrap();
        assert_close(name, &logits, &self.f[name].broadcast_mul(&mask).unwrap(), tolerance);
    }

    /// The same through the cache, row by row: the real positions in two pieces.
    fn check_cached_logits(&self, model: &Llama, name: &str, tolerance: f64) {
        let input = Tensor::cat(&[self.prefix.as_tensor(), &model.embed(&ids(&self.f["input_ids"])).unwrap()], 1).unwrap();
        let mask: Vec<Vec<i64>> = self.f["attention_mask"].to_vec2().unwrap();
        for (row, mask) in mask.iter().enumerate() {
            let (real, first) = (mask.iter().sum::<i64>() as usize, 3);
            let mut cache = model.cache(1, real);
            for (start, length) in [(0, first), (first, real - first)] {
                let piece = input.narrow(0, row, 1).unwrap().narrow(1, start, length).unwrap().contiguous().unwrap();
                let logits = model.logits(&model.forward_cached(&piece, &mut cache).unwrap()).unwrap();
                let expected = self.f[name].narrow(0, row, 1).unwrap().narrow(1, start, length).unwrap();
                assert_close(&format!("{name} through the cache"), &logits, &expected, tolerance);
            }
        }
    }

    fn loss(&self, model: &Llama) -> Tensor {
        let (targets, weights) = shifted(&self.f["labels"]);
        let count: f32 = weights.iter().flatten().sum();
        (model.loss_sum(&self.hidden(model), &targets, &weights).unwrap() / f64::from(count)).unwrap()
    }
}

#[test]
fn the_base_gives_the_peers_logits_loss_and_greedy_ids() {
    let Some(folder) = folder("llama") else { return };
    let model = model(&folder);
    let case = Case::read(&folder, &HashMap::new());
    case.check_logits(&model, "logits_base", 1e-5);
    assert_close("loss_base", &case.loss(&model).reshape(1).unwrap(), &case.f["loss_base"], 1e-5);
    let only = model.forward(&model.embed(&ids(&case.f["input_ids"])).unwrap(), None, None).unwrap();
    let rows: Vec<Vec<i64>> = case.f["attention_mask"].to_vec2().unwrap();
    let prefix = case.prefix.dim(1).unwrap();
    for (b, row) in rows.iter().enumerate() {
        let real = row.iter().sum::<i64>() as usize - prefix;
        let of = |t: &Tensor| t.get(b).unwrap().narrow(0, 0, real).unwrap();
        assert_close("logits_ids_only", &of(&model.logits(&only).unwrap()), &of(&case.f["logits_ids_only"]), 1e-5);
    }
    let expected: Vec<Vec<u32>> = ids(&case.f["greedy_base"]).to_vec2().unwrap();
    let bos: Vec<Vec<u32>> = ids(&case.f["input_ids"]).narrow(1, 0, 1).unwrap().to_vec2().unwrap();
    let mut prompt = LlamaPrompt::new(&model, Some(case.f["prefix_embeds"].clone()), bos.len(), 64).unwrap();
    assert_eq!(generate(&mut prompt, &bos, &greedy(expected[0].len()), &mut |_, _| {}).unwrap(), expected);
}

fn greedy(tokens: usize) -> GenerationConfig {
    GenerationConfig {
        strategy: Strategy::Greedy,
        max_new_tokens: tokens,
        min_new_tokens: 0,
        repetition_penalty: 1.0,
        no_repeat_ngram: 0,
        eos: vec![],
        batch: 8,
        drafts: 0,
        seed: 0,
    }
}

fn check_gradients(model: &Llama, case: &Case, gradients: &HashMap<String, Tensor>, loss: &str) {
    let value = case.loss(model);
    assert_close(loss, &value.reshape(1).unwrap(), &case.f[loss], 1e-5);
    let store = value.backward().unwrap();
    for (name, var) in model.lora_vars() {
        let found = store.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert_close(&name, found, &gradients[&format!("grad.{name}")], 5e-6);
    }
    assert_close("grad_prefix_embeds", store.get(&case.prefix).unwrap(), &case.f["grad_prefix_embeds"], 5e-6);
}

#[test]
fn an_adapter_made_by_peft_gives_its_logits_loss_and_gradients() {
    let Some(folder) = folder("llama") else { return };
    let mut model = model(&folder);
    model.load_adapter(&folder.join("adapter")).unwrap();
    let case = Case::read(&folder, &HashMap::new());
    case.check_logits(&model, "logits_lora", 1e-5);
    check_gradients(&model, &case, &tensors(folder.join("expected_lora_grads.safetensors")), "loss_lora");
}

/// Logits, loss, gradients, decoding and merging of the adapter in `folder` on the base in `llama`.
fn check_adapter(name: &str, dora: bool) {
    let (Some(base), Some(folder)) = (folder("llama"), folder(name)) else { return };
    let mut model = model(&base);
    assert_eq!(model.load_adapter(&folder.join("adapter")).unwrap().dora, dora);
    let case = Case::read(&folder, &tensors(base.join("expected.safetensors")));
    case.check_logits(&model, "logits", 1e-5);
    case.check_cached_logits(&model, "logits", 1e-5);
    check_gradients(&model, &case, &case.f.clone(), "loss");
    model.merge_adapter().unwrap();
    case.check_logits(&model, "logits_merged", 1e-5);
}

#[test]
fn a_rank_stabilised_adapter_gives_pefts_logits_gradients_and_merged_logits() {
    check_adapter("llama_rslora", false);
}

#[test]
fn a_dora_adapter_gives_pefts_logits_gradients_and_merged_logits() {
    check_adapter("llama_dora", true);
}

#[test]
fn five_adamw_steps_end_at_the_peers_adapter() {
    let Some(folder) = folder("llama") else { return };
    let mut model = model(&folder);
    model.load_adapter(&folder.join("adapter")).unwrap();
    let case = Case::read(&folder, &HashMap::new());
    let expected = tensors(folder.join("expected_lora_after_5_adamw.safetensors"));
    let keys: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("train_config.json")).unwrap()).unwrap();
    let number = |key: &str| keys[key].as_f64().unwrap();
    let beta = |index: usize| keys["betas"][index].as_f64().unwrap();
    let config =
        OptimizerConfig { beta1: beta(0), beta2: beta(1), eps: number("eps"), weight_decay: number("weight_decay"), no_decay: vec![] };
    let mut adamw = AdamW::new(model.lora_vars(), config);
    let mut losses = Vec::new();
    for _ in 0..keys["steps"].as_u64().unwrap() {
        let loss = case.loss(&model);
        losses.push(loss.to_scalar::<f32>().unwrap());
        let gradients = adamw.gradients(&mut loss.backward().unwrap());
        adamw.step(&gradients, number("lr")).unwrap();
    }
    let count = losses.len();
    assert_close("losses", &Tensor::from_vec(losses, count, &Device::Cpu).unwrap(), &expected["losses_before_each_step"], 1e-5);
    for (name, var) in model.lora_vars() {
        assert_close(&name, &var, &expected[&name], 1e-5);
    }
    assert_close("loss_after", &case.loss(&model).reshape(1).unwrap(), &expected["loss_after"], 1e-5);
}

#[test]
fn what_we_write_is_what_peft_wrote_and_another_base_is_refused() {
    let Some(folder) = folder("llama") else { return };
    let mut own = model(&folder);
    let config = own.load_adapter(&folder.join("adapter")).unwrap();
    let out = tempfile::tempdir().unwrap();
    own.save_adapter(out.path(), &config, "").unwrap();
    let (written, expected) =
        (tensors(out.path().join("adapter_model.safetensors")), tensors(folder.join("adapter/adapter_model.safetensors")));
    assert_eq!(written.len(), expected.len());
    for (name, tensor) in &expected {
        assert_close(name, &written[name], tensor, 0.0);
    }
    let other = LlamaConfig { hidden_size: 24, intermediate_size: 32, head_dim: Some(6), ..own.config().clone() };
    let mut other = Llama::new(&other, &Params::fresh(1, &Device::Cpu).frozen()).unwrap();
    let message = other.load_adapter(&folder.join("adapter")).unwrap_err().to_string();
    assert!(message.contains("made for another base: found [4, 48], this base needs [4, 24]"), "{message}");
    let shallow = LlamaConfig { num_hidden_layers: 1, ..own.config().clone() };
    let mut shallow = Llama::new(&shallow, &Params::fresh(1, &Device::Cpu).frozen()).unwrap();
    assert!(shallow.load_adapter(&folder.join("adapter")).unwrap_err().to_string().contains("the base has no such module"));
}

#[test]
fn the_real_tiny_llama_tells_its_story() {
    let (Some(fixture), Some(folder)) = (folder("stories260k"), data("models/stories260k")) else { return };
    let model = model(&folder);
    let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(fixture.join("greedy.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let ids = |key: &str| -> Vec<u32> { case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect() };
        let mut prompt = LlamaPrompt::new(&model, None, 1, 512).unwrap();
        let found = generate(&mut prompt, &[ids("prompt_ids")], &greedy(ids("new_ids").len()), &mut |_, _| {}).unwrap();
        assert_eq!(found[0], ids("new_ids"));
    }
}
