//! Layers that are run again in the backward pass: the same gradients, to the bit, of every trained tensor.

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use ctscribe::decoder::bert::BertDecoder;
use ctscribe::decoder::{Llama, LlamaConfig};
use ctscribe::text::bert::NormPlace;
use ctscribe::train::step_rng;
use ctscribe::vision::{CtVit, CtVitConfig, PatchEmbedding};
use ctscribe::weights::{BasePrecision, Params};
use ctscribe_lora::{LoraConfig, Targets};
use rand::Rng;

use crate::tiny;

pub fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = step_rng(seed, 0, 0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn ids(rows: usize, length: usize) -> Vec<Vec<u32>> {
    (0..rows).map(|row| (0..length).map(|at| ((7 * row + 3 * at) % 40) as u32).collect()).collect()
}

pub fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|value| value.to_bits()).collect()
}

/// Fails unless every tensor of `vars` has a gradient, some of it not zero, and the same bits in both.
#[track_caller]
fn assert_same(what: &str, vars: &[(String, Var)], kept: &GradStore, recomputed: &GradStore) {
    for (name, var) in vars {
        let [kept, recomputed] =
            [kept, recomputed].map(|store| bits(store.get(var).unwrap_or_else(|| panic!("{what}: {name} has no gradient"))));
        assert!(kept.iter().any(|bits| *bits << 1 != 0), "{what}: the gradient of {name} is zero");
        assert!(kept == recomputed, "{what}: the gradient of {name} differs");
    }
}

/// A model's variables and the gradients of a loss to them.
type Gradients = (Vec<(String, Var)>, GradStore);

/// Fails unless products in integers move every gradient by less than a thousandth of its size, and some of them where they are `used`.
#[track_caller]
fn assert_near(what: &str, (vars, exact): &Gradients, (others, integers): &Gradients, used: bool) {
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let mut moved = false;
    assert_eq!(vars.len(), others.len());
    for ((name, var), (other_name, other)) in vars.iter().zip(others) {
        assert_eq!(name, other_name);
        let (exact, integers) = (exact.get(var).unwrap(), integers.get(other).unwrap());
        let share = norm(&(exact - integers).unwrap()) / norm(exact);
        assert!(share < 1e-3, "{what}: in integers the gradient of {name} moves by {share}");
        moved |= share > 0.0;
    }
    assert!(!moved || used, "{what}: no frozen weight is multiplied in integers");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512vnni") && std::arch::is_x86_feature_detected!("avx512bw") {
        assert!(moved || !used, "{what}: nothing is multiplied in integers");
    }
}

const EVERYTHING: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// The feed-forward block stays as it is: one operation.
const ATTENTION_ALONE: [&str; 2] = ["q_proj", "v_proj"];

/// Adapters on `modules`, B not zero.
fn adapted(model: &mut Llama, modules: &[&str]) -> Vec<(String, Var)> {
    let target_modules = modules.iter().map(|module| module.to_string()).collect();
    model.attach_lora(&LoraConfig { dropout: 0.2, ..LoraConfig::plain(4, 8.0, Targets::Names(target_modules)) }, 3).unwrap();
    let vars = model.lora_vars();
    for (index, (_, var)) in vars.iter().enumerate() {
        var.set(&(noise(var.dims(), 50 + index as u64) * 0.2).unwrap()).unwrap();
    }
    vars
}

fn llama_sizes() -> LlamaConfig {
    let language = tiny::config(&[]).language.unwrap();
    LlamaConfig { vocab_size: 40, num_hidden_layers: 3, tie_word_embeddings: false, ..language.model }
}

#[test]
fn llama_recomputed_gives_the_same_bits_to_adapters_and_to_a_whole_fresh_model_and_in_integers_nearly_them() {
    for (rows, length, masked) in [(1, 5, false), (2, 17, true), (3, 40, false)] {
        for modules in [Some(&EVERYTHING[..]), Some(&ATTENTION_ALONE), None] {
            let visual = Var::from_tensor(&noise(&[rows, 4, 32], 9)).unwrap();
            let mask = masked.then(|| {
                Tensor::from_vec((0..rows * (length + 4)).map(|i| u8::from(i % 9 != 0)).collect(), (rows, length + 4), &Device::Cpu)
                    .unwrap()
            });
            let gradients = |model: &mut Llama, recompute: bool| {
                model.set_recompute(recompute);
                let text = model.embed(&Tensor::new(ids(rows, length), &Device::Cpu).unwrap()).unwrap();
                let input = Tensor::cat(&[visual.as_tensor(), &text], 1).unwrap();
                let hidden = model.forward(&input, mask.as_ref(), Some(&mut step_rng(4, 0, 0))).unwrap();
                let weights = vec![(0..length + 4).map(|at| if at < 3 { 0.0 } else { 1.0 }).collect(); rows];
                model.loss_sum(&hidden, &ids(rows, length + 4), &weights).unwrap().backward().unwrap()
            };
            let what = format!("LLaMA, {rows} x {length}, adapters on {modules:?}");
            let [exact, integers] = [BasePrecision::Auto, BasePrecision::Int16].map(|precision| {
                let params = Params::fresh(1, &Device::Cpu).with_precision(precision);
                let params = if modules.is_some() { params.frozen() } else { params };
                let mut model = Llama::new(&llama_sizes(), &params).unwrap();
                let mut vars = modules.map_or_else(|| params.trainable(), |modules| adapted(&mut model, modules));
                vars.push(("visual".to_string(), visual.clone()));
                let [kept, recomputed] = [false, true].map(|recompute| gradients(&mut model, recompute));
                assert_same(&format!("{what}, {precision:?}"), &vars, &kept, &recomputed);
                (vars, kept)
            });
            assert_near(&what, &exact, &integers, modules.is_some());
        }
    }
}

#[test]
fn the_bert_decoder_recomputed_gives_the_same_bits() {
    let base = tiny::config(&[]).bert.model;
    for (rows, length, norm) in [(1, 4, NormPlace::Post), (2, 13, NormPlace::Pre), (3, 31, NormPlace::Post)] {
        let sizes = ctscribe::decoder::bert::BertDecoderConfig { vocab_size: 40, num_hidden_layers: 3, dropout: 0.2, norm, ..base.clone() };
        let params = Params::fresh(1, &Device::Cpu);
        let mut model = BertDecoder::new(&sizes, &params).unwrap();
        let visual = Var::from_tensor(&noise(&[rows, 6, 32], 9)).unwrap();
        let vars: Vec<_> = params.trainable().into_iter().chain([("visual".to_string(), visual.clone())]).collect();
        let mut gradients = |recompute: bool| {
            model.set_recompute(recompute);
            let inputs = Tensor::new(ids(rows, length), &Device::Cpu).unwrap();
            let hidden = model.forward(&inputs, None, (visual.as_tensor(), None), Some(&mut step_rng(4, 0, 0))).unwrap();
            model.loss_sum(&hidden, &ids(rows, length), &vec![vec![1.0; length]; rows]).unwrap().backward().unwrap()
        };
        let (kept, recomputed) = (gradients(false), gradients(true));
        // keys' biases move no attention: their gradient is rounding around zero
        assert_same(&format!("BERT, {rows} x {length}"), &vars, &kept, &recomputed);
    }
}

#[test]
fn ct_vit_recomputed_gives_the_same_bits_in_both_transformers() {
    let base = tiny::config(&[]).vision.ct_vit;
    for (rows, frames, embedding) in [(1, 16, PatchEmbedding::Mlp), (2, 24, PatchEmbedding::LayerNormLinear), (3, 48, PatchEmbedding::Mlp)]
    {
        let sizes = CtVitConfig {
            spatial_depth: 2,
            temporal_depth: 2,
            patch_embedding: embedding,
            position_embedding: Default::default(),
            ..base.clone()
        };
        let params = Params::fresh(1, &Device::Cpu);
        let mut model = CtVit::new(&sizes, &params).unwrap();
        let volumes = noise(&[rows, 1, frames, 64, 48], 2);
        let mut gradients = |recompute: bool| {
            model.set_recompute(recompute);
            let tokens = model.encode(&volumes).unwrap();
            (&tokens * noise(tokens.dims(), 3)).unwrap().sum_all().unwrap().backward().unwrap()
        };
        let (kept, recomputed) = (gradients(false), gradients(true));
        assert_same(&format!("CT-ViT, {rows} x {frames}"), &params.trainable(), &kept, &recomputed);
    }
}

/// Values that the nodes of a step's graph hold, variables left out.
fn values_held(model: &mut Llama, recompute: bool) -> usize {
    model.set_recompute(recompute);
    let hidden = model.forward(&noise(&[2, 30, 32], 1), None, Some(&mut step_rng(4, 0, 0))).unwrap();
    hidden.sorted_nodes().iter().filter(|node| !node.is_variable()).map(|node| node.elem_count()).sum()
}

#[test]
fn recomputed_layers_leave_one_output_in_the_graph_and_a_frozen_one_its_blocks_outputs() {
    let sizes = LlamaConfig { num_hidden_layers: 12, ..llama_sizes() };
    let mut model = Llama::new(&sizes, &Params::fresh(1, &Device::Cpu).frozen()).unwrap();
    adapted(&mut model, &EVERYTHING);
    let (kept, recomputed) = (values_held(&mut model, false), values_held(&mut model, true));
    // the layers are one operation with one output, 2 x 30 x 32 values, and a knot for each layer's 14 adapter tensors; beside it the last norm's output
    assert_eq!(recomputed, 2 * (2 * 30 * 32) + 12 * 14);
    // two blocks' outputs, and a knot for each adapter tensor
    assert_eq!(kept, 12 * (2 * 2 * 30 * 32 + 14) + 2 * 30 * 32, "products are kept beside the graph");
    let whole = values_held(&mut Llama::new(&sizes, &Params::fresh(1, &Device::Cpu)).unwrap(), false);
    assert!(whole > 15 * recomputed, "{whole} values in a trained model's graph, {recomputed} with recomputation");
}
