//! Rows that LLaMA reads together have the bits that each has alone: what greedy decoding with guesses and batches rests on.

use std::path::Path;

use candle_core::{Device, Tensor};
use ctscribe::decoder::{
    DraftIndex, GenerationConfig, KvCache, Llama, LlamaConfig, LlamaPrompt, LlamaTexts, Run, Strategy, generate, write_greedily,
};
use ctscribe::generate::open_llama;
use ctscribe::text::Tokenizer;
use ctscribe::weights::{BasePrecision, Mix, Source, write_gguf, write_shards};
use ctscribe_lora::{LoraConfig, Targets};
use ctscribe_ops::{FEW_ROWS, Format};

use crate::fixtures::data;

/// Widths of whole blocks of 256, the head's product wide enough for several threads.
const SIZES: LlamaConfig = LlamaConfig {
    hidden_size: 256,
    intermediate_size: 768,
    num_hidden_layers: 3,
    num_attention_heads: 8,
    num_key_value_heads: Some(2),
    head_dim: None,
    vocab_size: 700,
    max_position_embeddings: 160,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    initializer_range: 0.6,
};

/// A model with random weights in each type that a base may have, with adapters on all projections.
fn models(folder: &Path, dora: bool) -> Vec<(String, Llama)> {
    let sources = || -> Vec<Source<'static>> {
        SIZES.tensors().into_iter().map(|(name, shape, std)| Source::random(name, shape, std, 3).unwrap()).collect()
    };
    let mut models = Vec::new();
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let folder = folder.join(format.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), SIZES.json(1, 2).to_string()).unwrap();
        write_shards(&folder, &sources(), format, 10_000_000).unwrap();
        models.push((format.to_string(), open_llama(&folder, BasePrecision::Auto, &Device::Cpu).unwrap()));
    }
    for mix in [Mix::Q8_0, Mix::Q4KM] {
        let path = folder.join(format!("{mix:?}.gguf"));
        write_gguf(&path, &sources(), &SIZES.gguf(), mix, (8, 2)).unwrap();
        models.push((format!("{mix:?}"), open_llama(&path, BasePrecision::Auto, &Device::Cpu).unwrap()));
    }
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).to_vec();
    let config = LoraConfig { dora, ..LoraConfig::plain(8, 16.0, Targets::Names(targets)) };
    for (_, model) in &mut models {
        model.attach_lora(&config, 5).unwrap();
        for (name, var) in model.lora_vars() {
            // fresh adapters add nothing
            if name.contains("lora_B") {
                let values: Vec<f32> = (0..var.elem_count()).map(|i| ((i * 7919) % 2003) as f32 / 20_000.0 - 0.05).collect();
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
            }
        }
    }
    models
}

fn embed(model: &Llama, ids: &[u32]) -> Tensor {
    model.embed(&Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap()).unwrap()
}

/// A cache that has read `length` ids, all at once.
fn begun(model: &Llama, seed: u32, length: usize) -> KvCache {
    let ids: Vec<u32> = (0..length as u32).map(|i| (i * 37 + seed * 101 + 5) % 700).collect();
    let mut cache = model.cache(1, 160);
    model.forward_cached(&embed(model, &ids), &mut cache).unwrap();
    cache
}

#[test]
fn rows_read_together_have_the_bits_of_rows_read_alone_whatever_the_weights_type() {
    for dora in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        for (name, model) in models(folder.path(), dora) {
            for lengths in [vec![8], vec![1, 1], vec![3, 1, 4], vec![1; FEW_ROWS]] {
                let texts: Vec<KvCache> = (0..lengths.len()).map(|text| begun(&model, text as u32, 20 + 17 * text)).collect();
                let ids: Vec<u32> = (0..lengths.iter().sum::<usize>() as u32).map(|i| (i * 53 + 11) % 700).collect();
                let (mut together, mut alone): (Vec<KvCache>, _) = (texts.iter().map(|text| text.copied().unwrap()).collect(), texts);
                let mut runs: Vec<Run> = together.iter_mut().zip(&lengths).map(|(cache, &rows)| Run { cache, rows }).collect();
                let hidden = model.forward_runs(&embed(&model, &ids).squeeze(0).unwrap(), &mut runs).unwrap();
                let found: Vec<Vec<f32>> = model.logits(&hidden).unwrap().to_vec2().unwrap();
                let owners = lengths.iter().enumerate().flat_map(|(text, &rows)| std::iter::repeat_n(text, rows));
                for ((text, id), found) in owners.zip(&ids).zip(&found) {
                    let hidden = model.forward_cached(&embed(&model, &[*id]), &mut alone[text]).unwrap();
                    let expected: Vec<f32> = model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                    assert!(*found == expected, "{name}, dora {dora}: {lengths:?}: a row of text {text} has other bits together");
                }
            }
        }
    }
}

#[test]
fn what_is_forgotten_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    for (name, model) in models(folder.path(), false) {
        let start = begun(&model, 1, 30);
        let next = |cache: &mut KvCache, ids: &[u32]| -> Vec<f32> {
            let hidden = model.forward_cached(&embed(&model, ids), cache).unwrap();
            model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (mut straight, mut astray) = (start.copied().unwrap(), start);
        next(&mut astray, &[5, 6, 7, 8]);
        astray.truncate(30);
        assert!(next(&mut straight, &[9, 10]) == next(&mut astray, &[9, 10]), "{name}");
    }
}

#[test]
fn the_last_position_read_alone_is_that_of_all_and_leaves_the_same_cache() {
    for dora in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        for (name, model) in models(folder.path(), dora) {
            for read in [0, 23] {
                let start = if read > 0 { begun(&model, 2, read) } else { model.cache(1, 160) };
                let ids: Vec<u32> = (0..19).map(|i| (i * 53 + 11) % 700).collect();
                let (mut all, mut last) = (start.copied().unwrap(), start);
                let of_all = model.forward_cached(&embed(&model, &ids), &mut all).unwrap().narrow(1, 18, 1).unwrap().squeeze(1).unwrap();
                let alone = model.read_to_last(&embed(&model, &ids), &mut last).unwrap();
                let largest = of_all.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let apart = (of_all - alone).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                // quantised matrices multiply many rows in integers, one in integers of other blocks; f16 sums as they come
                assert!(apart < 0.03 * largest, "{name}, dora {dora}, after {read}: {apart} of {largest}");
                let [next, other] = [&mut all, &mut last].map(|cache| -> Vec<f32> {
                    let hidden = model.forward_cached(&embed(&model, &[77]), cache).unwrap();
                    model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
                });
                assert!(next == other, "{name}, dora {dora}, after {read}: another cache");
            }
        }
    }
}

fn greedy(config: &GenerationConfig, model: &Llama, prefixes: &Tensor) -> Vec<Vec<u32>> {
    let one = |text: usize| {
        let prefix = prefixes.narrow(0, text, 1).unwrap();
        let mut prompt = LlamaPrompt::new(model, Some(prefix), 1, config.max_new_tokens).unwrap();
        generate(&mut prompt, &[vec![]], config, &mut |_, _| {}).unwrap().remove(0)
    };
    (0..prefixes.dim(0).unwrap()).map(one).collect()
}

fn config() -> GenerationConfig {
    GenerationConfig {
        strategy: Strategy::Greedy,
        max_new_tokens: 40,
        min_new_tokens: 3,
        repetition_penalty: 1.0,
        no_repeat_ngram: 0,
        eos: vec![2],
        batch: 1,
        drafts: 0,
        seed: 0,
    }
}

/// Texts of `model` token by token, one at a time, and with guesses from `index`, some at a time: the same; the share of guesses accepted.
fn same(model: &Llama, prefixes: &Tensor, own: &GenerationConfig, index: &DraftIndex) -> f64 {
    let expected = greedy(own, model, prefixes);
    let mut acceptance = 0.0;
    for (drafts, batch) in [(0, 3), (7, 1), (7, 3), (2, 32)] {
        let own = GenerationConfig { drafts, batch, ..own.clone() };
        let mut texts = LlamaTexts::new(model, prefixes, own.max_new_tokens).unwrap();
        let (found, effort) = write_greedily(&mut texts, expected.len(), Some(index), &own, &mut |_, _| {}).unwrap();
        assert_eq!(found, expected, "{own:?}");
        acceptance = f64::max(acceptance, effort.drafting(None).acceptance);
    }
    acceptance
}

#[test]
fn llama_writes_the_same_texts_with_guesses_and_in_batches_whatever_the_weights_type() {
    let folder = tempfile::tempdir().unwrap();
    for (name, model) in models(folder.path(), false) {
        let prefixes: Vec<Tensor> =
            (0..6u32).map(|text| embed(&model, &(0..12).map(|i| (i * 29 + text * 83) % 700).collect::<Vec<_>>())).collect();
        let prefixes = Tensor::cat(&prefixes, 0).unwrap();
        let known = greedy(&config(), &model, &prefixes);
        // half of what will be written, and half of each other text
        let index = DraftIndex::new(known.iter().map(|ids| &ids[..ids.len() / 2]));
        let processed = [config(), GenerationConfig { repetition_penalty: 1.2, no_repeat_ngram: 3, min_new_tokens: 20, ..config() }];
        let acceptance = processed.map(|own| same(&model, &prefixes, &own, &index));
        assert!(acceptance[0] > 0.0, "{name}: nothing was guessed right, so nothing is proven");
    }
}

#[test]
fn the_real_tiny_llama_tells_the_same_stories_with_guesses() {
    let Some(folder) = data("models/stories260k") else { return };
    let (model, tokenizer) = (open_llama(&folder, BasePrecision::Auto, &Device::Cpu).unwrap(), Tokenizer::read(&folder).unwrap());
    let beginnings =
        ["Once upon a time", "The dog was sad", "Lily had a big red", "Tom and his mom went", "One day, a little bird", "In the park"];
    let ids: Vec<Vec<u32>> = beginnings.iter().map(|text| [vec![tokenizer.begin], tokenizer.encode(text).unwrap()].concat()).collect();
    let shortest = ids.iter().map(Vec::len).min().unwrap();
    let prefixes = Tensor::cat(&ids.iter().map(|ids| embed(&model, &ids[..shortest])).collect::<Vec<_>>(), 0).unwrap();
    let own = GenerationConfig { max_new_tokens: 200, eos: vec![tokenizer.end], ..config() };
    let known = greedy(&own, &model, &prefixes);
    let index = DraftIndex::new(known[..3].iter().map(Vec::as_slice));
    for processed in
        [own.clone(), GenerationConfig { repetition_penalty: 1.1, ..own.clone() }, GenerationConfig { no_repeat_ngram: 4, ..own }]
    {
        assert!(same(&model, &prefixes, &processed, &index) > 0.1);
    }
}
