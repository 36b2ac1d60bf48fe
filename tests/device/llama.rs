//! LLaMA on the device: its adapters learn and it writes as on the processor, with its passes replayed as without.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use ctscribe::decoder::ReadRows;
use ctscribe::decoder::llama::{Llama, LlamaConfig, LlamaTexts};
use ctscribe::weights::Params;
use ctscribe_lora::{LoraConfig, Targets};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{THERE, difference, norm, turn};

const SIZES: LlamaConfig = LlamaConfig {
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: Some(2),
    head_dim: Some(32),
    vocab_size: 56,
    max_position_embeddings: 60,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    initializer_range: 0.5,
};

fn noise(shape: &[usize], scale: f32, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-scale..scale)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A frozen model of this type on a device, with adapters that are not zero and this dropout.
fn model(device: &Device, dtype: DType, dropout: f64) -> Llama {
    let mut model = Llama::new(&SIZES, &Params::fresh(3, device).frozen().with_dtype(dtype)).unwrap();
    let targets = Targets::Names(["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(String::from).to_vec());
    model.attach_lora(&LoraConfig { dropout, ..LoraConfig::plain(8, 16.0, targets) }, 1).unwrap();
    for (index, (_, var)) in model.lora_vars().iter().filter(|(name, _)| name.contains("lora_B")).enumerate() {
        var.set(&noise(var.dims(), 0.2, index as u64).to_device(device).unwrap()).unwrap();
    }
    model
}

/// The loss of two reports behind visual tokens, and the gradients of tokens and adapters by name, in the host's memory.
fn learn(model: &Llama) -> (f32, BTreeMap<String, Tensor>) {
    let visual = Var::from_tensor(&noise(&[2, 5, 64], 0.5, 9).to_device(model.device()).unwrap()).unwrap();
    let ids = Tensor::new(&[[1u32, 7, 9, 30], [2, 2, 49, 11]], &Device::Cpu).unwrap();
    let input = Tensor::cat(&[&visual.to_dtype(model.dtype()).unwrap(), &model.embed(&ids).unwrap()], 1).unwrap();
    let targets = vec![vec![0, 0, 0, 0, 1, 7, 9, 30, 3], vec![0, 0, 0, 0, 2, 2, 49, 11, 3]];
    let weights = vec![vec![0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], vec![0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 4.0, 1.0, 0.0]];
    let loss = model.next_token_loss(&input, &targets, &weights, Some(&mut ChaCha8Rng::seed_from_u64(4))).unwrap();
    let mut store = loss.backward().unwrap();
    let vars = model.lora_vars().into_iter().chain([("visual".to_string(), visual)]);
    let host = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap();
    let gradients = vars.map(|(name, var)| (name, host(&store.remove(&var).unwrap()))).collect();
    (host(&loss).to_scalar().unwrap(), gradients)
}

#[test]
fn adapters_learn_what_they_learn_on_the_processor() {
    let Some(_turn) = turn() else { return };
    let there = THERE.open().unwrap();
    // bf16 keeps 8 bits: some forty roundings stand one behind the other, forward and back
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::BF16, 40.0 / 512.0)] {
        for (dropout, recompute) in [(0.0, false), (0.2, false), (0.2, true)] {
            let [expected, found] = [&Device::Cpu, &there].map(|device| {
                let mut model = model(device, dtype, dropout);
                model.set_recompute(recompute);
                learn(&model)
            });
            let case = format!("{dtype:?}, dropout {dropout}, recompute {recompute}");
            assert!((found.0 - expected.0).abs() < bound as f32 * expected.0, "{case}: {} for {}", found.0, expected.0);
            for (name, expected) in &expected.1 {
                let (apart, size) = (difference(&found.1[name], expected), norm(expected));
                assert!(apart < bound * size && size > 0.0, "{case}: the gradient of {name} is {apart} apart of {size}");
            }
        }
    }
}

/// Logits of texts that go on alone and together, by one token and by several of which some are forgotten; and how many kinds of passes were recorded.
fn write(model: &Llama) -> (Vec<Vec<f32>>, usize) {
    let prefixes = noise(&[3, 5, 64], 0.5, 9).to_dtype(model.dtype()).unwrap().to_device(model.device()).unwrap();
    let mut texts = LlamaTexts::new(model, &prefixes, 40).unwrap();
    let mut logits: Vec<Vec<f32>> = (0..2).map(|text| texts.begin(text).unwrap()).collect();
    for step in 0..4u32 {
        logits.extend(texts.read(&[(0, vec![step]), (1, vec![4 + step, 5, 6])]).unwrap());
        texts.forget(1, 1 + step as usize % 2);
    }
    texts.end(0);
    // in the place of text 0, whose last ones it must not see
    logits.push(texts.begin(2).unwrap());
    for step in 0..8u32 {
        logits.extend(texts.read(&[(2, vec![10 + step])]).unwrap());
        logits.extend(texts.read(&[(2, vec![20 + step]), (1, vec![7, 8 + step, 9])]).unwrap());
        texts.forget(1, 2);
    }
    (logits, texts.recorded())
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len()));
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn texts_are_written_as_on_the_processor_and_replayed_passes_give_the_same_bits() {
    let Some(_turn) = turn() else { return };
    let there = THERE.open().unwrap();
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::BF16, 0.2)] {
        let (expected, none) = write(&model(&Device::Cpu, dtype, 0.0));
        assert_eq!(none, 0, "the processor records nothing");
        let mut model = model(&there, dtype, 0.0);
        let (plain, none) = write(&model);
        assert_eq!(none, 0, "nothing is recorded unasked");
        model.set_replayed(true);
        let (replayed, recorded) = write(&model);
        // two texts together, one alone, and one beside the other's place
        assert_eq!(recorded, 2, "{dtype:?}");
        let size = expected.iter().flatten().fold(0.0f32, |most, logit| most.max(logit.abs()));
        let apart = largest_difference(&plain, &expected);
        assert!(apart < bound * size, "{dtype:?}: {apart} of {size}");
        assert_eq!(plain, replayed, "{dtype:?}");
    }
}
