//! Two studies can be learned by heart, at both stages and by both decoders.

use std::path::Path;

use ctscribe::data::Split;
use ctscribe::generate::{DecoderKind, SplitWriter, Visual, observe, open_decoder};
use ctscribe::ranks::Alone;
use ctscribe::train::{train_language, train_report, train_structure};

use crate::tiny;

#[test]
fn two_studies_are_learned_by_heart() {
    let sets = [
        "data.validation_share=0.0",
        "train_structure.training.batch=2",
        "train_structure.training.micro_batch=1",
        "train_structure.training.steps=40",
        "train_structure.training.schedule.warmup_steps=5",
        "train_structure.intensity_offset=0.0",
        "structure.head.centre_text=false",
        // a text that both studies share is no negative, and nothing but the own text counts: the loss can reach zero
        "structure.loss={kind: ours, alpha: 0.0, soft_temperature: 0.1, duplicate_cosine: 0.98}",
        "llama.lora.dropout=0.0",
        "llama.training.batch=2",
        "llama.training.micro_batch=1",
        "llama.training.steps=150",
        "llama.training.schedule.peak=2.0e-2",
        "bert.training.batch=2",
        "bert.training.micro_batch=1",
        "bert.training.steps=150",
        "bert.model.dropout=0.0",
        "bert.training.schedule.peak=5.0e-3",
        "llama.generation.max_new_tokens=240",
        "bert.generation.max_new_tokens=240",
    ];
    let (config, root) = (tiny::config(&sets), tempfile::tempdir().unwrap());
    let run = tiny::run(root.path(), &config);
    let cache = tiny::cache(root.path(), &config, 2, 1);
    let studies = cache.split(Split::Train);
    assert_eq!(studies.len(), 2);
    train_language(&config, &cache, &run, false).unwrap();
    train_structure(&config, &cache, &run, false).unwrap();
    let losses = losses_of(&run.join("structure"));
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.25 * first, "stage one: loss {first} at first, {last} at last");
    observe(&config, &cache, &run, |_| {}).unwrap();
    for kind in [DecoderKind::Llama, DecoderKind::Bert] {
        train_report(&config, &cache, &run, kind, false).unwrap();
        let losses = losses_of(&run.join(kind.name()));
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.05 * first, "{}: loss {first} at first, {last} at last", kind.name());
        let decoder = open_decoder(&config, &run, kind, None).unwrap();
        let writer = SplitWriter { decoder: &decoder, generation: kind.generation(&config), run: &run, ranks: &Alone };
        let (written, _) = writer.write(&studies, Visual::Own, &mut |_| {}).unwrap();
        for (study, written) in studies.iter().zip(written) {
            assert_eq!(written.text, study.report, "{}", kind.name());
        }
    }
}

/// The losses that a stage wrote to its `metrics.jsonl`.
fn losses_of(folder: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line.get("loss")?.as_f64()).collect()
}
