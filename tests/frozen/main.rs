//! A frozen LLaMA costs no gradients: a step of its adapters takes no memory for one, so that none is computed.

#[path = "../../ops/tests/frozen/allocations.rs"]
mod allocations;

use candle_core::{Device, Tensor, Var};
use ctscribe::decoder::{Llama, LlamaConfig};
use ctscribe::train::step_rng;
use ctscribe::weights::Params;
use ctscribe_lora::{LoraConfig, Targets};

use allocations::tensors_allocated;

/// Sizes of which no product occurs elsewhere in a step.
const SIZES: LlamaConfig = LlamaConfig {
    hidden_size: 46,
    intermediate_size: 58,
    num_hidden_layers: 3,
    num_attention_heads: 7,
    num_key_value_heads: Some(1),
    head_dim: Some(6),
    vocab_size: 101,
    max_position_embeddings: 40,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    initializer_range: 0.02,
};

/// Q and O, K and V, gate, up and down, embedding and head; the norms.
const WEIGHTS: [usize; 5] = [42 * 46, 6 * 46, 58 * 46, 101 * 46, 46];
const SHAPES: [[usize; 2]; 6] = [[42, 46], [46, 42], [6, 46], [58, 46], [46, 58], [101, 46]];

fn noise(shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|i: usize| ((i * 7) % 23) as f32 * 0.1 - 1.1).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A projector before the model, adapters in it where it is frozen.
fn model(frozen: bool, recompute: bool) -> (Llama, Vec<Var>) {
    let params = Params::fresh(1, &Device::Cpu);
    let params = if frozen { params.frozen() } else { params };
    let mut model = Llama::new(&SIZES, &params).unwrap();
    let mut vars: Vec<Var> = params.trainable().into_iter().map(|(_, var)| var).collect();
    if frozen {
        let target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).to_vec();
        model.attach_lora(&LoraConfig { dropout: 0.1, ..LoraConfig::plain(3, 6.0, Targets::Names(target_modules)) }, 3).unwrap();
        vars.extend(model.lora_vars().into_iter().map(|(_, var)| var));
    }
    model.set_recompute(recompute);
    vars.push(Var::from_tensor(&noise(&[46, 11])).unwrap());
    (model, vars)
}

/// A step's forward and backward pass; what is left in the store.
fn step(model: &Llama, projector: &Var) -> candle_core::backprop::GradStore {
    let visual = ctscribe_ops::linear(&noise(&[2, 4, 11]), projector, None).unwrap();
    let text = model.embed(&Tensor::new(&[[1u32, 5, 6, 7, 9], [2, 3, 100, 8, 4]], &Device::Cpu).unwrap()).unwrap();
    let input = Tensor::cat(&[&visual, &text], 1).unwrap();
    let hidden = model.forward(&input, None, Some(&mut step_rng(4, 0, 0))).unwrap();
    let targets = [vec![7u32; 9], vec![100; 9]];
    model.loss_sum(&hidden, &targets, &[vec![1.0; 9], vec![0.5; 9]]).unwrap().backward().unwrap()
}

#[test]
fn a_step_takes_no_memory_of_a_frozen_weights_size() {
    for recompute in [false, true] {
        for frozen in [true, false] {
            let (model, vars) = model(frozen, recompute);
            let seen = tensors_allocated(&WEIGHTS, || drop(step(&model, vars.last().unwrap())));
            assert!(seen.iter().all(|&seen| (seen == 0) == frozen), "frozen {frozen}, recompute {recompute}: {seen:?}");
        }
    }
}

#[test]
fn the_store_holds_adapters_projector_and_the_texts_embedding_only() {
    for recompute in [false, true] {
        let (model, vars) = model(true, recompute);
        let store = step(&model, vars.last().unwrap());
        assert_eq!(vars.len(), 3 * 7 * 2 + 1);
        assert!(vars.iter().all(|var| store.get(var).is_some()));
        let trained = |id: &candle_core::TensorId| vars.iter().any(|var| var.id() == *id);
        let rest: Vec<&[usize]> = store.get_ids().filter(|id| !trained(id)).map(|id| store.get_id(*id).unwrap().dims()).collect();
        // candle hands every part of a concatenation its share: (B, L, D) of the text, not the embedding's
        assert_eq!(rest, [[2, 5, 46]]);
        assert!(store.get_ids().all(|id| !SHAPES.iter().any(|shape| store.get_id(*id).unwrap().dims() == shape)));
    }
}
