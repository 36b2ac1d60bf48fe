//! Every trained tensor of every model gets a gradient, no frozen one has any.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use ctscribe::config::{Config, OptimizerConfig};
use ctscribe::decoder::{Llama, LlamaConfig, Network, ReportDecoder, TargetReport};
use ctscribe::generate::{Observer, assemble_bert, assemble_llama};
use ctscribe::structure::{Contrast, LossConfig, contrast, reference_contrast};
use ctscribe::train::{AdamW, Gradients, step_rng};
use ctscribe::weights::Params;
use rand::Rng;

use crate::tiny;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = step_rng(seed, 0, 0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Gradients of the trained tensors, and a step.
fn step(adamw: &mut AdamW, loss: &Tensor) -> Gradients {
    let gradients = adamw.gradients(&mut loss.backward().unwrap());
    adamw.step(&gradients, 1e-2).unwrap();
    gradients
}

fn adamw(trainable: Vec<(String, Var)>) -> AdamW {
    AdamW::new(trainable, OptimizerConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, no_decay: vec![] })
}

#[track_caller]
fn assert_all_learn(adamw: &AdamW, gradients: &Gradients) {
    for (name, _) in adamw.vars() {
        let gradient = gradients.get(name).unwrap_or_else(|| panic!("{name} has no gradient"));
        let largest: f32 = gradient.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
        assert!(largest.is_finite() && largest > 0.0, "{name}: largest gradient {largest}");
    }
}

fn observer_loss(config: &Config, observer: &mut Observer) -> Tensor {
    let volumes = noise(&[4, 1, 48, 64, 48], 1);
    let tokens = observer.observe(&volumes, Some(&mut step_rng(3, 0, 0))).unwrap().tokens;
    let tokens = match observer.standardiser_mut() {
        Some(standardiser) => standardiser.train(&tokens).unwrap(),
        None => tokens,
    };
    let features = ctscribe_ops::l2_normalize(&noise(&[4, 10, 64], 2), 1e-12).unwrap();
    match &config.structure.loss {
        LossConfig::Ours(loss) => {
            let present = vec![vec![true; 10]; 4];
            let batch = Contrast { observations: &tokens, features: &features, present: &present, queue: &[] };
            contrast(observer.head(), &batch, loss).unwrap().loss
        }
        LossConfig::Reference(loss) => {
            let visual = observer.head().visual_raw(&tokens.flatten_to(1).unwrap()).unwrap();
            let text = observer.head().text(&features.flatten_to(1).unwrap()).unwrap();
            reference_contrast(&visual, &text, &noise(&[32, 80], 5), 10, loss).unwrap().loss
        }
    }
}

#[test]
fn all_of_stage_one_learns_under_both_presets() {
    let reference = [
        "structure.queries={kind: reference, structures: 10, patch_width: 32, width: 32, heads: 4, depth: 2, ffn_width: 64, eps: 1.0e-12, dropout: 0.0}",
        "structure.loss={kind: reference, alpha: 0.2, temperature: 0.07, other_structure_weight: 0.1}",
        "structure.head={width: 32, train_text: false, temperature: !fixed 0.07, centre_text: false}",
        "structure.queue={kind: reference, length: 8}",
    ];
    for config in [tiny::config(&[]), tiny::config(&reference)] {
        let mut observer = Observer::fresh(&config, 64).unwrap();
        let mut adamw = adamw(observer.trainable());
        // the reference updates patches in its last layer too, and nothing reads them: reference.md 1.3
        let unread = |name: &str| matches!(config.structure.loss, LossConfig::Reference(_)) && name.contains("unread");
        let loss = observer_loss(&config, &mut observer);
        let gradients = step(&mut adamw, &loss);
        let missing: Vec<&str> =
            adamw.vars().map(|(name, _)| name).filter(|name| !gradients.contains_key(*name) && !unread(name)).collect();
        assert!(missing.is_empty(), "no gradient: {missing:?}");
        assert_all_learn(&adamw, &gradients);
        assert!(!adamw.vars().any(|(name, _)| name.contains("vq.")), "the codebook moves by its own rule");
    }
}

fn reports() -> [TargetReport; 2] {
    [vec![5, 6, 7, 2], vec![8, 9, 2]].map(|ids: Vec<u32>| TargetReport { weights: vec![1.0; ids.len()], ids })
}

fn decoder_loss(decoder: &ReportDecoder) -> Tensor {
    let [a, b] = reports();
    decoder.loss_sum(&noise(&[2, 110, 32], 4), &[&a, &b], None).unwrap()
}

/// A base folder as `train language` leaves it, untrained.
fn base(run: &std::path::Path, config: &Config) {
    let stage = config.language.as_ref().unwrap();
    let tokenizer = ctscribe::text::Tokenizer::train_byte_pair(&["Heart size is normal.".to_string()], 300).unwrap();
    let folder = run.join("language");
    std::fs::create_dir_all(&folder).unwrap();
    tokenizer.save(&folder.join("tokenizer.json")).unwrap();
    let sizes = LlamaConfig { vocab_size: tokenizer.vocabulary(), ..stage.model.clone() };
    let params = Params::fresh(1, &Device::Cpu);
    Llama::new(&sizes, &params).unwrap();
    ctscribe::weights::save(&folder.join("model.safetensors"), &params.tensors(), &HashMap::new()).unwrap();
    std::fs::write(folder.join("config.json"), serde_json::to_string(&sizes).unwrap()).unwrap();
}

#[test]
fn adapters_and_projector_learn_by_the_second_step_and_the_base_never() {
    let (config, root) = (tiny::config(&["llama.lora.dropout=0.0"]), tempfile::tempdir().unwrap());
    base(root.path(), &config);
    let before = std::fs::read(root.path().join("language/model.safetensors")).unwrap();
    let mut assembled = assemble_llama(&config, root.path(), Params::fresh(2, &Device::Cpu)).unwrap();
    let mut trainable = assembled.params.trainable();
    let Network::Llama { model, .. } = assembled.decoder.network_mut() else { panic!("not a LLaMA") };
    model.attach_lora(&config.llama.lora, 3).unwrap();
    trainable.extend(model.lora_vars());
    assert_eq!(trainable.iter().filter(|(name, _)| name.contains("lora_")).count(), 2 * 7 * 2);
    let mut adamw = adamw(trainable);
    let first = step(&mut adamw, &decoder_loss(&assembled.decoder));
    let (a, b): (Vec<&str>, Vec<&str>) =
        adamw.vars().map(|(name, _)| name).filter(|name| name.contains("lora_")).partition(|name| name.contains("lora_A"));
    let largest = |name: &&str| first[*name].abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(a.iter().all(|name| largest(name) == 0.0), "B is zero at first, so that A has nothing to learn yet");
    assert!(b.iter().all(|name| largest(name) > 0.0));
    let loss = decoder_loss(&assembled.decoder);
    let store = loss.backward().unwrap();
    let Network::Llama { model, .. } = assembled.decoder.network() else { panic!("not a LLaMA") };
    for (name, weight) in model.projection_weights().unwrap() {
        assert!(store.get(&weight).is_none(), "{name} is frozen and has a gradient");
    }
    let second = step(&mut adamw, &loss);
    assert_all_learn(&adamw, &second);
    assert_eq!(std::fs::read(root.path().join("language/model.safetensors")).unwrap(), before);
}

#[test]
fn the_whole_bert_decoder_and_a_whole_fresh_llama_learn() {
    let (config, root) = (tiny::config(&["bert.model.dropout=0.0"]), tempfile::tempdir().unwrap());
    base(root.path(), &config);
    let assembled = assemble_bert(&config, root.path(), Params::fresh(2, &Device::Cpu)).unwrap();
    let mut bert = adamw(assembled.params.trainable());
    let gradients = step(&mut bert, &decoder_loss(&assembled.decoder));
    assert_all_learn(&bert, &gradients);
    let sizes = LlamaConfig { vocab_size: 40, ..config.language.as_ref().unwrap().model.clone() };
    let params = Params::fresh(1, &Device::Cpu);
    let model = Llama::new(&sizes, &params).unwrap();
    let mut llama = adamw(params.trainable());
    let embedded = model.embed(&Tensor::new(&[[1u32, 5, 6, 7]], &Device::Cpu).unwrap()).unwrap();
    let hidden = model.forward(&embedded, None, None).unwrap();
    let loss = model.loss_sum(&hidden, &[vec![5, 6, 7, 2]], &[vec![1.0; 4]]).unwrap();
    assert_eq!(hidden.dtype(), DType::F32);
    let gradients = step(&mut llama, &loss);
    assert_all_learn(&llama, &gradients);
}
