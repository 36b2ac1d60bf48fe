//! Query module, selection, losses and queue against the authors' code.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use ctscribe::structure::*;
use ctscribe::weights::Params;

use crate::fixtures::{assert_close, folder, max_difference, tensors};

const LOSS: ReferenceLossConfig = ReferenceLossConfig { alpha: 0.2, temperature: 0.07, other_structure_weight: 0.1 };

fn parameters(tensors: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("param.")?.to_string(), tensor.clone()))).collect()
}

fn module(tensors: &HashMap<String, Tensor>) -> (ReferenceQueries, Tensor, Params) {
    let named = parameters(tensors);
    let (structures, width) = named["queries"].dims2().unwrap();
    let depth = (0..).take_while(|l| named.contains_key(&format!("layer.{l}.ffn.up.weight"))).count();
    let config = ReferenceQueriesConfig {
        structures,
        patch_width: named["token_proj.weight"].dims()[1],
        width,
        heads: 4,
        depth,
        ffn_width: named["layer.0.ffn.up.weight"].dims()[0],
        eps: 1e-12,
        dropout: 0.0,
    };
    let shape = named["visual_proj.weight"].dims().to_vec();
    let params = Params::loaded("fixture", named, &Device::Cpu);
    params.unused("text_proj.weight");
    let queries = ReferenceQueries::new(&config, &params).unwrap();
    let visual_proj = params.at("visual_proj").get("weight", &shape, ctscribe::weights::Init::Zeros).unwrap();
    params.finish().unwrap();
    (queries, visual_proj, params)
}

#[track_caller]
fn close(what: &str, found: &Tensor, expected: &Tensor, absolute: f64, relative: f64) {
    let largest = f64::from(expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
    assert_close(what, found, expected, absolute + relative * largest);
}

fn check_gradients(store: &candle_core::backprop::GradStore, params: &Params, expected: &HashMap<String, Tensor>) {
    let vars: HashMap<String, Var> = params.trainable().into_iter().collect();
    let mut checked = 0;
    for (name, gradient) in expected.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?, tensor))) {
        if let Some(var) = vars.get(name) {
            let found = store.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            close(name, found, gradient, 1e-4, 1e-3);
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} gradients were compared");
}

#[test]
fn the_query_module_equals_the_reference_in_every_stage_and_gradient() {
    let Some(folder) = folder("method") else { return };
    let f = tensors(folder.join("query_module.safetensors"));
    let (queries, visual_proj, params) = module(&f);
    let tokens = Var::from_tensor(&f["in.tokens"]).unwrap();
    let (b, t, h, w, c) = tokens.dims5().unwrap();
    let (observation, maps) = queries.observe(&tokens.reshape((b, t * h * w, c)).unwrap(), None).unwrap();
    for (l, [x, y]) in maps.iter().enumerate() {
        for (side, maps) in [("x", x), ("y", y)] {
            let expected = |name: &str| &f[&format!("layer{l}.{side}.{name}")];
            close("self_attn", &maps.self_attention, expected("self_attn"), 1e-4, 1e-4);
            close("cross_attn", &maps.cross_attention, expected("cross_attn"), 1e-4, 1e-4);
            close("out", &maps.out, expected("out"), 1e-4, 1e-4);
        }
    }
    close("attn_max", &observation.attention, &f["out.attn_max"], 1e-4, 1e-4);
    close("attn_mean", &maps.last().unwrap()[0].cross_attention.mean(1).unwrap(), &f["out.attn_mean"], 1e-4, 1e-4);
    close("observation", &observation.tokens, &f["out.observation"], 1e-4, 1e-4);
    let raw = ctscribe_ops::linear(&observation.tokens, &visual_proj, None).unwrap();
    let raw = raw.reshape(f["out.local_image_raw"].shape()).unwrap();
    close("local_image_raw", &raw, &f["out.local_image_raw"], 1e-4, 1e-4);
    let selection = select(&observation, &SelectionConfig { layout: SelectionLayout::Reference, patches: 9 }).unwrap();
    let indices: Vec<i64> = selection.indices.iter().flatten().flatten().map(|&index| i64::from(index)).collect();
    assert_eq!(indices, f["out.selected_index_ascending"].flatten_all().unwrap().to_vec1::<i64>().unwrap());
    close("selected_patch", &selection.tokens, &f["out.selected_patch"], 1e-4, 1e-4);
    let store = (raw * &f["in.grad_local"]).unwrap().sum_all().unwrap().backward().unwrap();
    close("grad.tokens", store.get(&tokens).unwrap(), &f["grad.tokens"], 1e-4, 1e-3);
    check_gradients(&store, &params, &f);
}

#[test]
fn the_loss_equals_the_reference_with_a_queue_of_noise_and_with_a_filled_one() {
    let Some(folder) = folder("method") else { return };
    for name in ["loss_initial_queue", "loss_filled_queue"] {
        let f = tensors(folder.join(format!("{name}.safetensors")));
        let visual = Var::from_tensor(&f["in.visual_raw"]).unwrap();
        let found = reference_contrast(&visual, &f["in.text_raw"], &f["in.queue"], 10, &LOSS).unwrap();
        close("logits_image_text", &found.image_text, &f["out.logits_image_text"], 1e-3, 0.0);
        close("logits_text_text", &found.text_text, &f["out.logits_text_text"], 1e-3, 0.0);
        close("soft_part", &found.soft, &f["out.soft_part"], 1e-4, 1e-4);
        close("targets", &found.targets, &f["out.targets"], 1e-4, 1e-4);
        close("mask", &found.mask, &f["out.mask"], 1e-7, 0.0);
        close("row_loss", &found.row_loss, &f["out.row_loss"], 0.0, 1e-4);
        close("loss", &found.loss.reshape(1).unwrap(), &f["out.loss"], 0.0, 1e-4);
        let store = found.loss.backward().unwrap();
        close("grad.visual_raw", store.get(&visual).unwrap(), &f["grad.visual_raw"], 1e-4, 1e-3);
        let mut queue = ReferenceQueue::from_tensors(&f["in.queue"], &f["in.queue_scores"], 10).unwrap();
        let rows = f["out.text_norm"].dims2().unwrap();
        let scores = queue.update(&f["out.text_norm"].reshape((rows.0 / 10, 10, rows.1)).unwrap(), LOSS.temperature).unwrap();
        close("new_scores", &Tensor::new(scores, &Device::Cpu).unwrap(), &f["out.new_scores"], 1e-3, 1e-4);
        close("after.queue", &queue.tensor().unwrap(), &f["after.queue"], 1e-6, 0.0);
        close("after.queue_scores", &queue.scores().unwrap(), &f["after.queue_scores"], 1e-3, 1e-4);
    }
}

#[test]
fn six_queue_updates_keep_the_references_entries_in_its_order() {
    let Some(folder) = folder("method") else { return };
    let f = tensors(folder.join("queue_updates.safetensors"));
    let mut queue = ReferenceQueue::from_tensors(&f["init.queue"], &f["init.scores"], 10).unwrap();
    let steps = (0..).take_while(|k| f.contains_key(&format!("step{k}.text"))).count();
    assert!(steps > 0);
    for k in 0..steps {
        let expected = |name: &str| &f[&format!("step{k}.{name}")];
        let scores = queue.update(expected("text"), LOSS.temperature).unwrap();
        close("scores_new", &Tensor::new(scores, &Device::Cpu).unwrap(), expected("scores_new"), 1e-3, 1e-4);
        assert!(max_difference(&queue.tensor().unwrap(), expected("queue")) < 1e-6, "the order of step {k} differs");
        close("scores", &queue.scores().unwrap(), expected("scores"), 1e-3, 1e-4);
    }
}

#[test]
fn tokens_and_sentences_to_loss_gradients_and_queue_equal_the_reference() {
    let Some(folder) = folder("method") else { return };
    check_end_to_end(&folder);
}

fn check_end_to_end(folder: &Path) {
    let f = tensors(folder.join("end_to_end.safetensors"));
    let (queries, visual_proj, params) = module(&f);
    let (b, t, h, w, c) = f["in.tokens"].dims5().unwrap();
    let (observation, _) = queries.observe(&f["in.tokens"].reshape((b, t * h * w, c)).unwrap(), None).unwrap();
    let raw = ctscribe_ops::linear(&observation.tokens, &visual_proj, None).unwrap().flatten(0, 1).unwrap();
    let text = ctscribe_ops::linear(&f["in.text_cls"], &f["param.text_proj.weight"], None).unwrap();
    let found = reference_contrast(&raw, &text, &f["in.queue"], 10, &LOSS).unwrap();
    close("targets", &found.targets, &f["out.targets"], 1e-4, 1e-4);
    close("loss", &found.loss.reshape(1).unwrap(), &f["out.loss"], 0.0, 1e-4);
    let selection = select(&observation, &SelectionConfig { layout: SelectionLayout::Reference, patches: 9 }).unwrap();
    close("selected_patch", &selection.tokens, &f["out.selected_patch"], 1e-4, 1e-4);
    check_gradients(&found.loss.backward().unwrap(), &params, &f);
    let unit = ctscribe_ops::l2_normalize(&text, 1e-12).unwrap();
    close("local_text", &unit, &f["out.local_text"], 1e-4, 1e-4);
    let mut queue = ReferenceQueue::from_tensors(&f["in.queue"], &f["in.queue_scores"], 10).unwrap();
    queue.update(&unit.reshape((b, 10, unit.dim(1).unwrap())).unwrap(), LOSS.temperature).unwrap();
    close("after.queue", &queue.tensor().unwrap(), &f["after.queue"], 1e-4, 1e-4);
    close("after.queue_scores", &queue.scores().unwrap(), &f["after.queue_scores"], 1e-3, 1e-3);
}
