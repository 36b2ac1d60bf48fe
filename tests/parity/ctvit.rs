//! CT-ViT against CT-CLIP's own code.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use ctscribe::train::{AdamW, Gradients};
use ctscribe::vision::{CtVit, CtVitConfig};
use ctscribe::weights::{self, Params, WeightPrecision};

use crate::fixtures::{assert_close, folder, max_difference, tensors};

fn config(folder: &Path) -> CtVitConfig {
    serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

fn model(folder: &Path) -> (CtVit, Params) {
    let params = Params::loaded("weights.safetensors", weights::open(&folder.join("weights.safetensors")).unwrap(), &Device::Cpu);
    let model = CtVit::new(&config(folder), &params).unwrap();
    params.finish().unwrap();
    (model, params)
}

#[test]
fn every_stage_and_every_code_equals_the_peers() {
    let Some(folder) = folder("ctvit") else { return };
    let (model, _) = model(&folder);
    let io = tensors(folder.join("io.safetensors"));
    let stages = model.stages(&io["input"]).unwrap();
    assert_close("patch_emb", &stages.patch_embedding, &io["patch_emb"], 1e-5);
    let (_, _, gh, gw, _) = stages.tokens.dims5().unwrap();
    assert_close("spatial_attn_bias", &model.spatial_bias(gh, gw).unwrap(), &io["spatial_attn_bias"], 2e-5);
    assert_close("spatial_out", &stages.spatial, &io["spatial_out"], 2e-5);
    assert_close("tokens_pre_vq", &stages.tokens, &io["tokens_pre_vq"], 2e-5);
    let quantized = model.quantize(&stages.tokens).unwrap();
    assert_eq!(max_difference(&quantized.indices.reshape(io["vq_indices"].shape()).unwrap(), &io["vq_indices"]), 0.0);
    assert_eq!(max_difference(&quantized.codes, &io["tokens_post_vq"]), 0.0);
}

#[test]
fn a_frozen_encoder_gives_the_peers_tokens_and_in_integers_nearly_them() {
    let Some(folder) = folder("ctvit") else { return };
    let tensors_of_weights = weights::open(&folder.join("weights.safetensors")).unwrap();
    let params = Params::loaded("weights.safetensors", tensors_of_weights, &Device::Cpu).frozen();
    let mut model = CtVit::new(&config(&folder), &params).unwrap();
    let io = tensors(folder.join("io.safetensors"));
    for (precision, tolerance) in [(WeightPrecision::F32, 2e-5), (WeightPrecision::Int16, 1e-3)] {
        model.set_precision(precision);
        let stages = model.stages(&io["input"]).unwrap();
        assert_close("patch_emb", &stages.patch_embedding, &io["patch_emb"], 1e-5);
        assert_close("spatial_out", &stages.spatial, &io["spatial_out"], tolerance);
        assert_close("tokens_pre_vq", &stages.tokens, &io["tokens_pre_vq"], tolerance);
    }
}

#[test]
fn a_training_step_gives_the_peers_loss_gradients_and_codebook() {
    let Some(folder) = folder("ctvit") else { return };
    let (model, params) = model(&folder);
    let expected = tensors(folder.join("train.safetensors"));
    let input = &tensors(folder.join("io.safetensors"))["input"];
    let tokens = model.encode(input).unwrap();
    let quantized = model.quantize(&tokens).unwrap();
    assert_close("tokens_post_vq_train_mode", &quantized.straight_through, &expected["tokens_post_vq_train_mode"], 1e-5);
    let scalar = |name: &str| expected[name].flatten_all().unwrap();
    assert_close("commit_loss", &quantized.commitment.reshape(1).unwrap(), &scalar("commit_loss"), 1e-5);
    let loss = (&quantized.straight_through * &expected["loss_weights_R"]).unwrap().mean_all().unwrap();
    assert_close("loss", &loss.reshape(1).unwrap(), &scalar("loss"), 1e-5);
    let gradients = loss.backward().unwrap();
    let vars: HashMap<String, Var> = params.trainable().into_iter().collect();
    for (name, expected) in expected.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?, tensor))) {
        let found = gradients.get(&vars[name]).unwrap_or_else(|| panic!("{name} has no gradient"));
        let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_close(name, found, expected, 1e-6f64.max(1e-4 * f64::from(largest)));
    }
    let update = model.quantizer().update(&tokens, &quantized.indices).unwrap();
    assert_close("vq_embed_after", &update.embed, &expected["vq_embed_after"], 1e-5);
    assert_close("vq_cluster_size_after", &update.cluster_size, &expected["vq_cluster_size_after"], 1e-5);
}

#[test]
fn a_clip_checkpoint_in_pytorchs_archive_gives_the_same_encoder() {
    let Some(folder) = folder("ctvit") else { return };
    let archive = weights::open(&folder.parent().unwrap().join("clip_mini.pt")).unwrap();
    assert_eq!(archive["temperature"].dims(), [0usize; 0]);
    assert_eq!(archive["temperature"].to_scalar::<f32>().unwrap(), 4.25);
    assert_eq!(archive["text_transformer.embeddings.position_ids"].dtype(), candle_core::DType::I64);
    let visual = weights::part(archive, "visual_transformer.");
    let expected = weights::open(&folder.join("weights.safetensors")).unwrap();
    assert_eq!(visual.len(), expected.len());
    for (name, tensor) in &expected {
        assert_eq!(visual[name].dims(), tensor.dims(), "{name}");
        if tensor.elem_count() > 0 {
            assert_eq!(max_difference(&visual[name], tensor), 0.0, "{name}");
        }
    }
    let params = Params::loaded("clip_mini.pt", visual, &Device::Cpu).frozen();
    CtVit::new(&config(&folder), &params).unwrap();
    params.finish().unwrap();
}

fn small() -> CtVitConfig {
    let text = r#"{"dim": 16, "codebook_size": 8, "image_size": [8, 8], "patch_size": [4, 4], "temporal_patch_size": 2, "spatial_depth": 1,
        "temporal_depth": 1, "dim_head": 8, "heads": 2, "codebook_decay": 0.8, "patch_embedding": "mlp",
        "position_embedding": {"learned": {"frames": 3, "std": 0.5}}}"#;
    serde_json::from_str(text).unwrap()
}

fn volumes() -> Tensor {
    let values: Vec<f32> = (0..2 * 6 * 64).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
    Tensor::from_vec(values, (2, 1, 6, 8, 8), &Device::Cpu).unwrap()
}

#[test]
fn every_trainable_tensor_has_a_gradient_by_the_second_step_and_no_frozen_one_has() {
    let layer_norm = CtVitConfig { patch_embedding: Default::default(), position_embedding: Default::default(), ..small() };
    for config in [small(), layer_norm] {
        let params = Params::fresh(3, &Device::Cpu);
        let model = CtVit::new(&config, &params).unwrap();
        let optimizer = ctscribe::config::OptimizerConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, no_decay: vec![] };
        let mut adamw = AdamW::new(params.trainable(), optimizer);
        let mut gradients = Gradients::new();
        for _ in 0..2 {
            let tokens = model.encode(&volumes()).unwrap();
            let weights = tokens.detach().cos().unwrap();
            let loss = (tokens * weights).unwrap().sum_all().unwrap();
            gradients = adamw.gradients(&mut loss.backward().unwrap());
            adamw.step(&gradients, 1e-3).unwrap();
        }
        for (name, _) in params.trainable() {
            let gradient = gradients.get(&name).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "{name}: zero gradient");
        }
        let frozen = Params::loaded("trained", params.tensors().into_iter().collect(), &Device::Cpu).frozen();
        let model = CtVit::new(&config, &frozen).unwrap();
        assert!(frozen.trainable().is_empty());
        assert_eq!(model.encode(&volumes()).unwrap().sum_all().unwrap().backward().unwrap().get_ids().count(), 1, "only the loss itself");
    }
}
