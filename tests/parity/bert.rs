//! BERT encoder, decoder and RadBERT against transformers, BLIP's decoder against the authors' code.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use ctscribe::decoder::bert::{BertDecoder, BertDecoderConfig, BertPrompt};
use ctscribe::decoder::{GenerationConfig, Strategy, generate};
use ctscribe::evaluate::{Instruments, Pair, evaluate};
use ctscribe::text::bert::{BertConfig, BertEncoder, NormPlace, Precision, RadBert};
use ctscribe::text::{LABELLER, Labeller, Tokenizer};
use ctscribe::weights::{self, Params};

use crate::fixtures::{assert_close, folder, max_difference, tensors};

fn u32s(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

/// The rows of a (B, L, ...) tensor where the mask is 1, others zeroed.
fn masked(x: &Tensor, mask: &Tensor) -> Tensor {
    x.broadcast_mul(&mask.to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap()).unwrap()
}

#[test]
fn the_encoder_gives_the_peers_states_and_pooled_output() {
    let Some(folder) = folder("bert_encoder") else { return };
    let f = tensors(folder.join("expected.safetensors"));
    let params = Params::loaded("model", weights::open(&folder.join("model.safetensors")).unwrap(), &Device::Cpu).frozen();
    let encoder = BertEncoder::new(&BertConfig::read(&folder.join("config.json")).unwrap(), Precision::F32, &params).unwrap();
    params.finish().unwrap();
    let mask = &f["attention_mask"];
    let hidden = encoder.forward(&u32s(&f["input_ids"]), mask).unwrap();
    assert_close("last_hidden_state", &masked(&hidden, mask), &masked(&f["last_hidden_state"], mask), 1e-5);
    assert_close("pooler_output", &encoder.pool(&hidden).unwrap().unwrap(), &f["pooler_output"], 1e-5);
}

#[test]
fn the_tokenizer_gives_the_peers_ids_from_either_file() {
    for name in ["bert_encoder", "bert_decoder"] {
        let Some(folder) = folder(name) else { return };
        let text = std::fs::read_to_string(folder.join("tokenizer_cases.json")).unwrap();
        let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
        let limit = cases["max_length"].as_u64().unwrap() as usize;
        for file in ["tokenizer.json", "vocab.txt"] {
            let tokenizer = Tokenizer::read(&folder.join(file)).unwrap();
            for case in cases["cases"].as_array().unwrap() {
                let (ids, _) = tokenizer.encode_whole(case["text"].as_str().unwrap(), limit).unwrap();
                let list = |key: &str| -> Vec<u64> { case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect() };
                let real = list("attention_mask").iter().sum::<u64>() as usize;
                let expected: Vec<u32> = list("input_ids")[..real].iter().map(|id| *id as u32).collect();
                assert_eq!(ids, expected, "{file}: {}", case["text"]);
                assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"].as_str().unwrap(), "{file}");
            }
        }
    }
}

#[test]
fn radbert_gives_the_peers_logits_and_labels_from_either_file() {
    let Some(folder) = folder("radbert") else { return };
    let f = tensors(folder.join("expected.safetensors"));
    for file in ["model.safetensors", "RadBertClassifier.pth"] {
        let params = Params::loaded(file, weights::open(&folder.join(file)).unwrap(), &Device::Cpu).frozen();
        let model = RadBert::new(&BertConfig::read(&folder.join("config.json")).unwrap(), 18, &params).unwrap();
        params.at("model.embeddings").unused("position_ids");
        params.finish().unwrap();
        let (ids, mask) = (u32s(&f["input_ids"]), &f["attention_mask"]);
        assert_close("logits", &model.logits(&ids, mask).unwrap(), &f["logits"], 1e-5);
        assert_eq!(max_difference(&model.labels(&ids, mask).unwrap(), &f["labels"]), 0.0);
    }
}

/// RadBERT's folder as it is fetched, with a vocabulary of letters in place of its own.
fn radbert_folder(fixture: &Path, checkpoint: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", checkpoint] {
        std::fs::copy(fixture.join(name), folder.path().join(name)).unwrap();
    }
    let letters = ('a'..='z').map(String::from).chain(["\u{120}", ".", "lu", "\u{120}lu", "<mask>"].map(String::from));
    let tokens = ["<s>", "<pad>", "</s>", "<unk>"].map(String::from).into_iter().chain(letters);
    let vocabulary: HashMap<String, usize> = tokens.enumerate().map(|(id, token)| (token, id)).collect();
    std::fs::write(folder.path().join("vocab.json"), serde_json::to_string(&vocabulary).unwrap()).unwrap();
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\nl u\n\u{120} lu\n").unwrap();
    folder
}

#[test]
fn the_radbert_labeller_tokenizes_as_roberta_labels_as_the_model_and_names_its_weights() {
    let Some(fixture) = folder("radbert") else { return };
    let folder = radbert_folder(&fixture, "RadBertClassifier.pth");
    // by hand: <s>, "lu" merged, its letters, a blank merged with "lu", an unknown capital, </s>
    let (text, ids) = ("lung lub. X", vec![0u32, 32, 17, 10, 33, 5, 31, 30, 3, 2]);
    assert_eq!(Tokenizer::read(folder.path()).unwrap().encode_whole(text, 512).unwrap().0, ids);
    let labeller = Labeller::radbert(folder.path()).unwrap();
    let long = "heart lung vessel bone ".repeat(20);
    let texts = ["a", text, &long, "pleura", "heart size is normal."];
    let together = labeller.label(&texts).unwrap();
    let params = Params::loaded("model", weights::open(&fixture.join("RadBertClassifier.pth")).unwrap(), &Device::Cpu).frozen();
    let model = RadBert::new(&BertConfig::read(&fixture.join("config.json")).unwrap(), 18, &params).unwrap();
    for (text, found) in texts.iter().zip(&together) {
        // 34 positions hold 32 tokens: longer reports lose their end, as the peers' do
        let ids = Tokenizer::read(folder.path()).unwrap().encode_whole(text, 32).unwrap().0;
        let (ids, mask) = ctscribe::text::padded(&[ids], 1).unwrap();
        let alone: Vec<u8> = model.labels(&ids, &mask).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
        assert_eq!(found.map(u8::from).to_vec(), alone, "{text}");
    }
    assert!(together.iter().flatten().any(|label| *label) && !together.iter().flatten().all(|label| *label));
    assert_eq!(labeller.name(), format!("RadBERT classifier {}", &weights::sha256(&fixture.join("RadBertClassifier.pth")).unwrap()[..12]));
}

#[test]
fn scores_say_who_labelled_the_reports_and_who_the_references() {
    let Some(fixture) = folder("radbert") else { return };
    let folder = radbert_folder(&fixture, "model.safetensors");
    let pair = |study: &str, labels| Pair { study: study.into(), generated: "lung lu.".into(), reference: "bone.".into(), labels };
    let given = [pair("a", Some([true; 18])), pair("b", None)];
    let instruments = Instruments { labeller: Labeller::radbert(folder.path()).unwrap(), ..Instruments::default() };
    let (by_radbert, labeller) = (evaluate("run", &given, &instruments).unwrap(), &instruments.labeller);
    assert!(by_radbert.labeller.starts_with("RadBERT classifier "));
    assert_eq!(by_radbert.reference_labeller, format!("given for 1, {} for 1", labeller.name()));
    assert_eq!(by_radbert.per_study[0].expected, [true; 18]);
    assert_eq!(vec![by_radbert.per_study[1].found], labeller.label(&["lung lu."]).unwrap());
    let by_rules = evaluate("run", &given[..1], &Instruments::default()).unwrap();
    assert_eq!((by_rules.labeller.as_str(), by_rules.reference_labeller.as_str()), (LABELLER, "given"));
}

#[test]
fn a_folder_without_radbert_s_weights_says_how_to_get_them() {
    let empty = tempfile::tempdir().unwrap();
    let message = Labeller::radbert(empty.path()).unwrap_err().to_string();
    assert!(message.contains("ctscribe weights fetch radbert-classifier"), "{message}");
}

fn decoder_config(folder: &Path) -> BertDecoderConfig {
    let config = BertConfig::read(&folder.join("config.json")).unwrap();
    BertDecoderConfig {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        max_position_embeddings: config.max_position_embeddings,
        type_vocab_size: config.type_vocab_size,
        layer_norm_eps: config.layer_norm_eps,
        dropout: 0.1,
        norm: NormPlace::Post,
    }
}

/// Targets and weights of the shifted loss; `ignored` labels do not count.
fn shifted(labels: &Tensor, ignored: i64) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
    let labels: Vec<Vec<i64>> = labels.to_vec2().unwrap();
    let next = |row: &Vec<i64>, at: usize| row.get(at + 1).copied().unwrap_or(ignored);
    let targets = labels.iter().map(|row| (0..row.len()).map(|at| next(row, at).max(0) as u32).collect()).collect();
    let weights = labels.iter().map(|row| (0..row.len()).map(|at| if next(row, at) == ignored { 0.0 } else { 1.0 }).collect()).collect();
    (targets, weights)
}

#[test]
fn the_decoder_gives_the_peers_logits_loss_gradients_and_greedy_ids() {
    let Some(folder) = folder("bert_decoder") else { return };
    let f = tensors(folder.join("expected.safetensors"));
    let params = Params::loaded("model", weights::open(&folder.join("model.safetensors")).unwrap(), &Device::Cpu);
    let model = BertDecoder::new(&decoder_config(&folder), &params).unwrap();
    params.finish().unwrap();
    let visual = Var::from_tensor(&f["encoder_hidden_states"]).unwrap();
    let (ids, mask, visual_mask) = (u32s(&f["input_ids"]), &f["attention_mask"], &f["encoder_attention_mask"]);
    let hidden = model.forward(&ids, Some(mask), (visual.as_tensor(), Some(visual_mask)), None).unwrap();
    assert_close("logits", &masked(&model.logits(&hidden).unwrap(), mask), &masked(&f["logits"], mask), 1e-5);
    let (targets, weights) = shifted(&f["labels"], -100);
    let count: f32 = weights.iter().flatten().sum();
    let loss = (model.loss_sum(&hidden, &targets, &weights).unwrap() / f64::from(count)).unwrap();
    assert_close("loss", &loss.reshape(1).unwrap(), &f["loss"], 1e-5);
    let store = loss.backward().unwrap();
    assert_close("grad_encoder_hidden_states", store.get(&visual).unwrap(), &f["grad_encoder_hidden_states"], 1e-5);
    let vars: HashMap<String, Var> = params.trainable().into_iter().collect();
    for (name, expected) in f.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?, tensor))) {
        assert_close(name, store.get(&vars[name]).unwrap(), expected, 1e-5);
    }
    let expected: Vec<Vec<u32>> = u32s(&f["greedy_no_stop"]).to_vec2().unwrap();
    let first: Vec<Vec<u32>> = expected.iter().map(|row| row[..1].to_vec()).collect();
    let config = GenerationConfig {
        strategy: Strategy::Greedy,
        max_new_tokens: expected[0].len() - 1,
        min_new_tokens: 0,
        repetition_penalty: 1.0,
        no_repeat_ngram: 0,
        eos: vec![],
        batch: 8,
        drafts: 0,
        seed: 0,
    };
    let mut prompt = BertPrompt::new(&model, &visual, Some(visual_mask), 64).unwrap();
    let found = generate(&mut prompt, &first, &config, &mut |_, _| {}).unwrap();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found[..], expected[1..]);
    }
}

#[test]
fn the_authors_decoder_gives_its_logits_loss_and_gradients() {
    let Some(folder) = folder("method") else { return };
    let f = tensors(folder.join("bert_decoder.safetensors"));
    let named: HashMap<String, Tensor> =
        f.iter().filter_map(|(name, t)| Some((name.strip_prefix("param.")?.to_string(), t.clone()))).collect();
    let shape = |name: &str| named[name].dims().to_vec();
    let layers = (0..).take_while(|l| named.contains_key(&format!("bert.encoder.layer.{l}.output.dense.weight"))).count();
    let words = shape("bert.embeddings.word_embeddings.weight");
    let config = BertDecoderConfig {
        vocab_size: words[0],
        hidden_size: words[1],
        num_hidden_layers: layers,
        num_attention_heads: 4,
        intermediate_size: shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings: shape("bert.embeddings.position_embeddings.weight")[0],
        type_vocab_size: 0,
        layer_norm_eps: 1e-12,
        dropout: 0.0,
        norm: NormPlace::Post,
    };
    let params = Params::loaded("fixture", named, &Device::Cpu);
    let model = BertDecoder::new(&config, &params).unwrap();
    params.finish().unwrap();
    let visual = Var::from_tensor(&f["in.visual"]).unwrap();
    let hidden = model.forward(&u32s(&f["in.ids"]), Some(&f["in.mask"]), (visual.as_tensor(), None), None).unwrap();
    let mask = &f["in.mask"];
    assert_close("logits", &masked(&model.logits(&hidden).unwrap(), mask), &masked(&f["out.logits"], mask), 1e-4);
    let (targets, weights) = shifted(&f["in.ids"], 0);
    let count: f32 = weights.iter().flatten().sum();
    let loss = (model.loss_sum(&hidden, &targets, &weights).unwrap() / f64::from(count)).unwrap();
    assert_close("loss", &loss.reshape(1).unwrap(), &f["out.loss"], 1e-4);
    let store = loss.backward().unwrap();
    assert_close("grad.visual", store.get(&visual).unwrap(), &f["grad.visual"], 1e-4);
    let vars: HashMap<String, Var> = params.trainable().into_iter().collect();
    let words = &vars["bert.embeddings.word_embeddings.weight"];
    assert_close("grad.word_embeddings", store.get(words).unwrap(), &f["grad.word_embeddings"], 1e-4);
}
