//! The model in the form that it has on a device, on the processor: matrices as copies of it, activations in their type. That types and
//! shapes meet, that every gradient arrives and that caches agree can be seen here; what a GPU's own kernels give cannot.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use ctscribe_lora::{LoraConfig, Targets};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::projection::Projection;
use super::{Llama, LlamaConfig, LlamaPrompt, LlamaTexts};
use crate::decoder::greedy::ReadRows;
use crate::decoder::step::NextToken;
use crate::weights::Params;

const SIZES: LlamaConfig = LlamaConfig {
    hidden_size: 64,
    intermediate_size: 96,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: Some(2),
    head_dim: None,
    vocab_size: 50,
    max_position_embeddings: 40,
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

/// A frozen model of this type with adapters that are not zero.
fn adapted(dtype: DType, dropout: f64) -> Llama {
    let mut model = Llama::new(&SIZES, &Params::fresh(3, &Device::Cpu).frozen().with_dtype(dtype)).unwrap();
    let targets = Targets::Names(["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(String::from).to_vec());
    model.attach_lora(&LoraConfig { dropout, ..LoraConfig::plain(8, 16.0, targets) }, 1).unwrap();
    for (index, (_, var)) in model.lora_vars().iter().filter(|(name, _)| name.contains("lora_B")).enumerate() {
        var.set(&noise(var.dims(), 0.2, index as u64)).unwrap();
    }
    model
}

/// The same model as it lies on a device.
fn away(mut model: Llama) -> Llama {
    let copy = |projection: &mut Projection| {
        let Projection::Frozen(matrix) = projection else { panic!("the base is frozen") };
        *matrix = matrix.copy_on(&Device::Cpu).unwrap();
    };
    copy(&mut model.embedding);
    copy(&mut model.head);
    let dtype = model.dtype();
    for layer in &mut model.layers {
        layer.projections.iter_mut().for_each(|projection| copy(&mut projection.base));
        for norm in [&mut layer.input_norm, &mut layer.post_norm] {
            *norm = norm.to_dtype(dtype).unwrap();
        }
    }
    model.norm = model.norm.to_dtype(dtype).unwrap();
    model
}

/// The loss of two reports behind visual tokens, and the gradients of tokens and adapters by name. `whole`: with all positions through all layers.
fn learn(model: &Llama, dropout: bool, whole: bool) -> (f32, BTreeMap<String, Tensor>) {
    let visual = Var::from_tensor(&noise(&[2, 5, 64], 0.5, 9)).unwrap();
    let ids = Tensor::new(&[[1u32, 7, 9, 30], [2, 2, 49, 11]], &Device::Cpu).unwrap();
    let input = Tensor::cat(&[&visual.to_dtype(model.dtype()).unwrap(), &model.embed(&ids).unwrap()], 1).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let targets = vec![vec![0, 0, 0, 0, 1, 7, 9, 30, 3], vec![0, 0, 0, 0, 2, 2, 49, 11, 3]];
    let weights = vec![vec![0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], vec![0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 4.0, 1.0, 0.0]];
    let rng = dropout.then_some(&mut rng);
    let loss = if whole {
        let hidden = model.forward(&input, None, rng).unwrap();
        assert_eq!(hidden.dtype(), model.dtype());
        model.loss_sum(&hidden, &targets, &weights)
    } else {
        model.next_token_loss(&input, &targets, &weights, rng)
    };
    let loss = loss.unwrap();
    let mut store = loss.backward().unwrap();
    let vars = model.lora_vars().into_iter().chain([("visual".to_string(), visual)]);
    let gradients = vars.map(|(name, var)| {
        let gradient = store.remove(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
        (name, gradient)
    });
    let gradients = gradients.collect();
    (loss.to_dtype(DType::F32).unwrap().to_scalar().unwrap(), gradients)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// |a - b| / |b|.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let (a, b) = (values(a), values(b));
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// What gradients may be apart by. bf16 keeps 8 bits: every product, norm and sum on the way rounds by up to 2^-9 of its values, some forty of
/// them one after the other, forward and back.
fn bound(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 40.0 / 512.0 }
}

#[test]
fn a_model_in_a_devices_form_learns_what_the_processors_does() {
    for (dtype, dropout) in [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::BF16, true)] {
        let own = if dropout { 0.1 } else { 0.0 };
        let (expected_loss, expected) = learn(&adapted(dtype, own), dropout, false);
        for recompute in [false, true] {
            let mut model = away(adapted(dtype, own));
            assert_eq!(model.dtype(), dtype);
            model.set_recompute(recompute);
            let (loss, found) = learn(&model, dropout, false);
            assert!(
                f64::from((loss - expected_loss).abs()) < bound(dtype) * f64::from(expected_loss),
                "{dtype:?}: {loss} for {expected_loss}"
            );
            for (name, expected) in &expected {
                assert_eq!(found[name].dtype(), DType::F32, "{name}: trained tensors and their gradients are f32");
                let apart = apart(&found[name], expected);
                assert!(apart < bound(dtype), "{dtype:?}, dropout {dropout}, recompute {recompute}: {name} is {apart} apart");
            }
        }
    }
}

#[test]
fn a_base_of_16_bits_recomputed_gives_the_same_bits() {
    for dropout in [false, true] {
        let mut model = adapted(DType::BF16, if dropout { 0.1 } else { 0.0 });
        let (expected_loss, expected) = learn(&model, dropout, false);
        model.set_recompute(true);
        let (loss, found) = learn(&model, dropout, false);
        assert_eq!(loss.to_bits(), expected_loss.to_bits());
        for (name, expected) in &expected {
            assert_eq!(values(&found[name]), values(expected), "dropout {dropout}: {name}");
        }
    }
}

#[test]
fn what_stands_before_the_first_label_is_left_out_and_changes_nothing() {
    for (form, recompute) in [(away as fn(Llama) -> Llama, false), (away, true), (|model| model, false), (|model| model, true)] {
        let mut model = form(adapted(DType::F32, 0.0));
        model.set_recompute(recompute);
        let [(expected_loss, expected), (loss, found)] = [true, false].map(|whole| learn(&model, false, whole));
        assert!((loss - expected_loss).abs() < 1e-6 * expected_loss, "{loss} for {expected_loss}");
        for (name, expected) in &expected {
            assert!(apart(&found[name], expected) < 1e-5, "recompute {recompute}: {name}");
        }
    }
}

#[test]
fn a_model_in_a_devices_form_writes_from_the_same_logits() {
    for dtype in [DType::F32, DType::BF16] {
        let (host, device) = (adapted(dtype, 0.0), away(adapted(dtype, 0.0)));
        let prefixes = noise(&[2, 5, 64], 0.5, 9);
        let runs = [(0, vec![3u32]), (1, vec![4, 5, 6])];
        let texts = |model: &Llama| -> Vec<Vec<f32>> {
            let mut texts = LlamaTexts::new(model, &prefixes.to_dtype(model.dtype()).unwrap(), 20).unwrap();
            let mut logits: Vec<Vec<f32>> = (0..2).map(|text| texts.begin(text).unwrap()).collect();
            logits.extend(texts.read(&runs).unwrap());
            texts.forget(1, 2);
            logits.extend(texts.read(&[(1, vec![9])]).unwrap());
            logits
        };
        let prompt = |model: &Llama| -> Vec<Vec<f32>> {
            let prefix = prefixes.to_dtype(model.dtype()).unwrap();
            let mut prompt = LlamaPrompt::new(model, Some(prefix), 2, 20).unwrap();
            let mut logits = prompt.next(&[vec![], vec![]]).unwrap().to_dtype(DType::F32).unwrap().to_vec2().unwrap();
            prompt.reorder(&[1, 1, 0]).unwrap();
            logits.extend(prompt.next(&[vec![1], vec![2], vec![3]]).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap());
            logits
        };
        for (expected, found) in [(texts(&host), texts(&device)), (prompt(&host), prompt(&device))] {
            let tensor = |rows: &Vec<Vec<f32>>| Tensor::new(rows.clone(), &Device::Cpu).unwrap();
            let apart = apart(&tensor(&found), &tensor(&expected));
            assert!(apart < bound(dtype), "{dtype:?}: {apart} apart");
        }
    }
}
