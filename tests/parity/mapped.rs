//! LLaMA read where it lies: shards, half precision, GGUF; adapters on a quantised base.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use ctscribe::config::OptimizerConfig;
use ctscribe::decoder::{Llama, LlamaConfig};
use ctscribe::generate::open_llama;
use ctscribe::train::AdamW;
use ctscribe::weights::{self, BasePrecision, Mapped, Mix, Params, Source, write_gguf, write_shards};
use ctscribe_lora::{LoraConfig, Targets};
use ctscribe_ops::Format;

use crate::fixtures::{assert_close, max_difference};

/// Widths of whole blocks of 256.
const SIZES: LlamaConfig = LlamaConfig {
    hidden_size: 256,
    intermediate_size: 512,
    num_hidden_layers: 3,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: None,
    vocab_size: 300,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    initializer_range: 0.02,
};

fn sources() -> Vec<Source<'static>> {
    SIZES.tensors().into_iter().map(|(name, shape, std)| Source::random(name, shape, std, 3).unwrap()).collect()
}

fn write_config(folder: &Path) {
    std::fs::write(folder.join("config.json"), SIZES.json(1, 2).to_string()).unwrap();
}

fn ids() -> Tensor {
    let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 300).collect();
    Tensor::from_vec(ids, (1, 20), &Device::Cpu).unwrap()
}

fn logits(model: &Llama) -> Tensor {
    let hidden = model.forward(&model.embed(&ids()).unwrap(), None, None).unwrap();
    model.logits(&hidden).unwrap()
}

/// Of the loss, to what goes in.
fn gradient(model: &Llama) -> Tensor {
    let input = Var::from_tensor(&model.embed(&ids()).unwrap()).unwrap();
    let hidden = model.forward(input.as_tensor(), None, None).unwrap();
    let loss = model.loss_sum(&hidden, &[(0..20).collect()], &[vec![1.0; 20]]).unwrap();
    loss.backward().unwrap().remove(&input).unwrap()
}

/// The model that computes in f32 with the values that `folder`'s tensors have.
fn read(path: &Path) -> Llama {
    let mapped = Mapped::open(path).unwrap();
    let tensors = mapped.names().map(|name| (name.clone(), mapped.tensor(name).unwrap())).collect();
    let params = Params::loaded("read", tensors, &Device::Cpu).frozen();
    let model = Llama::new(&SIZES, &params).unwrap();
    params.finish().unwrap();
    model
}

fn largest(tensor: &Tensor) -> f64 {
    max_difference(tensor, &tensor.zeros_like().unwrap())
}

#[test]
fn shards_in_any_type_give_the_logits_of_their_values() {
    // of 16 bits: products of pairs against f32's
    let auto = [(Format::F32, 0.0), (Format::F16, 2e-2), (Format::Bf16, 2e-2)].map(|(format, bound)| (format, BasePrecision::Auto, bound));
    let exact = [Format::F16, Format::Bf16].map(|format| (format, BasePrecision::F32, 0.0));
    for (format, precision, tolerance) in auto.into_iter().chain(exact) {
        let folder = tempfile::tempdir().unwrap();
        write_config(folder.path());
        let files = write_shards(folder.path(), &sources(), format, 1_000_000).unwrap();
        assert!(files.len() > 3, "several shards and an index: {files:?}");
        let (found, expected) = (open_llama(folder.path(), precision, &Device::Cpu).unwrap(), read(folder.path()));
        let name = format!("{format}, {precision:?}");
        assert_close(&name, &logits(&found), &logits(&expected), tolerance * largest(&logits(&expected)));
        let expected = gradient(&expected);
        assert_close(&format!("{name}, gradient"), &gradient(&found), &expected, tolerance * largest(&expected));
    }
}

#[test]
fn a_missing_shard_and_a_cut_one_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let files = write_shards(folder.path(), &sources(), Format::Bf16, 1_000_000).unwrap();
    let bytes = std::fs::read(&files[1]).unwrap();
    std::fs::write(&files[1], &bytes[..bytes.len() - 10]).unwrap();
    let message = open_llama(folder.path(), BasePrecision::Auto, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("model-00002-of") && message.contains("not a whole safetensors file"), "{message}");
    std::fs::remove_file(&files[1]).unwrap();
    assert!(open_llama(folder.path(), BasePrecision::Auto, &Device::Cpu).unwrap_err().to_string().contains("model-00002-of"));
}

#[test]
fn gguf_files_hold_the_projections_in_hugging_faces_order_and_the_sizes() {
    let folder = tempfile::tempdir().unwrap();
    for (mix, bits) in [(Mix::Q8_0, 7.0f64), (Mix::Q4KM, 3.0)] {
        let path = folder.path().join(format!("{mix:?}.gguf"));
        write_gguf(&path, &sources(), &SIZES.gguf(), mix, (8, 4)).unwrap();
        let model = open_llama(&path, BasePrecision::Auto, &Device::Cpu).unwrap();
        assert_eq!(model.config(), &SIZES);
        let found = model.projection_weights().unwrap();
        assert_eq!(found.len(), 21);
        for source in sources().iter().filter(|source| found.contains_key(&source.name)) {
            let original = Tensor::from_vec((source.values)().unwrap(), source.shape.as_slice(), &Device::Cpu).unwrap();
            // half a step of a block's range, and the scales' own rounding
            let tolerance = 0.75 * largest(&original) / 2f64.powf(bits);
            assert_close(&source.name, &found[&source.name], &original, tolerance);
        }
    }
}

#[test]
fn a_quantised_base_gives_the_logits_and_the_gradient_of_its_values() {
    let folder = tempfile::tempdir().unwrap();
    for mix in [Mix::Q8_0, Mix::Q4KM] {
        let path = folder.path().join(format!("{mix:?}.gguf"));
        write_gguf(&path, &sources(), &SIZES.gguf(), mix, (8, 4)).unwrap();
        let (quantised, exact) = (open_llama(&path, BasePrecision::Auto, &Device::Cpu).unwrap(), read(&path));
        for (what, found, expected) in
            [("logits", logits(&quantised), logits(&exact)), ("gradient", gradient(&quantised), gradient(&exact))]
        {
            // products of bf16 pairs against f32's
            assert_close(&format!("{mix:?} {what}"), &found, &expected, 3e-2 * largest(&expected));
        }
        // token by token and all at once: activations of 8 bits
        let embedded = quantised.embed(&ids()).unwrap();
        let prompt = quantised.logits(&quantised.forward_cached(&embedded, &mut quantised.cache(1, 20)).unwrap()).unwrap();
        let mut cache = quantised.cache(1, 20);
        let steps: Vec<Tensor> = (0..20)
            .map(|at| quantised.forward_cached(&embedded.narrow(1, at, 1).unwrap(), &mut cache).unwrap())
            .map(|hidden| quantised.logits(&hidden).unwrap())
            .collect();
        let expected = logits(&exact);
        for (what, found) in [("cached", Tensor::cat(&steps, 1).unwrap()), ("prompt", prompt)] {
            assert_close(&format!("{mix:?} {what}"), &found, &expected, 6e-2 * largest(&expected));
        }
    }
}

fn narrow_sources() -> Vec<Source<'static>> {
    sources().into_iter().map(Source::bf16_in_f16).collect()
}

#[test]
fn a_file_of_f16_that_holds_bf16s_values_gives_what_one_of_bf16_gives() {
    let models = [Format::Bf16, Format::F16].map(|format| {
        let folder = tempfile::tempdir().unwrap();
        write_config(folder.path());
        write_shards(folder.path(), &narrow_sources(), format, 1_000_000).unwrap();
        (open_llama(folder.path(), BasePrecision::Auto, &Device::Cpu).unwrap(), folder)
    });
    let [(of_bf16, _), (of_f16, _)] = &models;
    assert_close("logits", &logits(of_f16), &logits(of_bf16), 0.0);
    assert_close("gradient", &gradient(of_f16), &gradient(of_bf16), 0.0);
}

#[test]
fn a_base_of_16_bits_that_only_writes_gives_what_it_gives_where_it_lies() {
    for (format, sources) in [(Format::Bf16, sources()), (Format::F16, narrow_sources()), (Format::F16, sources())] {
        writes_what_it_gives_where_it_lies(format, &sources);
    }
}

fn writes_what_it_gives_where_it_lies(format: Format, sources: &[Source]) {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    write_shards(folder.path(), sources, format, 1_000_000).unwrap();
    let plain = open_llama(folder.path(), BasePrecision::Auto, &Device::Cpu).unwrap();
    let mut writing = open_llama(folder.path(), BasePrecision::Auto, &Device::Cpu).unwrap();
    writing.set_writing(u64::MAX);
    let embedded = plain.embed(&ids()).unwrap();
    // a prompt of twelve, then token by token: packed at the first; then another prompt, and guesses
    let run = |model: &Llama| {
        let mut cache = model.cache(1, 20);
        let parts = [12, 1, 1, 1, 5].into_iter().scan(0, |from, count| {
            *from += count;
            Some((*from - count, count))
        });
        let hidden: Vec<Tensor> =
            parts.map(|(from, count)| model.forward_cached(&embedded.narrow(1, from, count).unwrap(), &mut cache).unwrap()).collect();
        let again = model.forward_cached(&embedded, &mut model.cache(1, 20)).unwrap();
        [model.logits(&Tensor::cat(&hidden, 1).unwrap()).unwrap(), model.logits(&again).unwrap()]
    };
    let mut crowded = open_llama(folder.path(), BasePrecision::Auto, &Device::Cpu).unwrap();
    crowded.set_writing(1 << 10);
    let [found, again] = run(&writing);
    let [expected, expected_again] = run(&plain);
    assert_close("without room", &run(&crowded)[0], &expected, 0.0);
    // the same weights, a token's sums in another order, after which some of what is kept in bf16 is rounded to its other side
    assert_close("token by token", &found, &expected, 1e-3 * largest(&expected));
    assert_close("a prompt", &again, &expected_again, 0.0);
}

#[test]
fn adapters_on_a_quantised_base_learn_two_texts_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.gguf");
    write_gguf(&path, &sources(), &SIZES.gguf(), Mix::Q4KM, (8, 4)).unwrap();
    let before = weights::sha256(&path).unwrap();
    let mut model = open_llama(&path, BasePrecision::Auto, &Device::Cpu).unwrap();
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).to_vec();
    model.attach_lora(&LoraConfig::plain(8, 16.0, Targets::Names(targets)), 5).unwrap();
    let config = OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, no_decay: vec![] };
    let mut optimizer = AdamW::new(model.lora_vars(), config);
    let texts: Vec<Vec<u32>> = vec![(0..20).map(|i| (i * 37 + 5) % 300).collect(), (0..20).map(|i| (i * 53 + 11) % 300).collect()];
    let loss = |model: &Llama| {
        let input = Tensor::new(texts.clone(), &Device::Cpu).unwrap();
        let hidden = model.forward(&model.embed(&input).unwrap(), None, None).unwrap();
        let targets: Vec<Vec<u32>> = texts.iter().map(|text| text[1..].iter().copied().chain([0]).collect()).collect();
        let weights = vec![(0..20).map(|at| f32::from(u8::from(at < 19))).collect(); 2];
        model.loss_sum(&hidden, &targets, &weights).unwrap()
    };
    for _ in 0..40 {
        let gradients = optimizer.gradients(&mut loss(&model).backward().unwrap());
        optimizer.step(&gradients, 1e-2).unwrap();
    }
    let mean = loss(&model).to_scalar::<f32>().unwrap() / 38.0;
    assert!(mean < 0.1, "loss a token {mean} after 40 steps");
    drop(model);
    assert_eq!(weights::sha256(&path).unwrap(), before);
}
