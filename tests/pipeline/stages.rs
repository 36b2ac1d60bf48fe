//! Stage after stage, and what the last ones give.

use ctscribe::assess::{Question, evaluate_run, read_evaluation, retrieve};
use ctscribe::data::Split;
use ctscribe::evaluate::Instruments;
use ctscribe::generate::{DecoderKind, Observed, Reporter, Visual, observe};
use ctscribe::train::{train_language, train_report, train_structure};

use crate::tiny;

#[test]
fn every_stage_feeds_the_next_and_reports_carry_their_evidence() {
    let (config, cache, root) = (tiny::config(&[]), tiny::shared(), tempfile::tempdir().unwrap());
    let run = tiny::run(root.path(), &config);
    train_language(&config, cache, &run, false).unwrap();
    let outcome = train_structure(&config, cache, &run, false).unwrap();
    assert_eq!((outcome.ended.steps, outcome.ended.finished), (6, true));
    assert!(outcome.queue.iter().any(|length| *length > 0), "no text entered the queue");
    let observed = observe(&config, cache, &run, |_| {}).unwrap();
    assert_eq!((observed.observed, observed.kept), (cache.studies.len(), 0));
    assert_eq!(observe(&config, cache, &run, |_| {}).unwrap().kept, cache.studies.len());
    check_observation(&Observed::read(&run, &cache.studies[0].name).unwrap());
    for kind in [DecoderKind::Llama, DecoderKind::Bert] {
        train_report(&config, cache, &run, kind, false).unwrap();
        let question = Question { split: Split::Test.into(), visual: Visual::Own, limit: None };
        let (evaluation, pairs) = evaluate_run((&config, cache, &run), kind, question, &Instruments::default(), &mut |_| {}).unwrap();
        assert_eq!((evaluation.studies, pairs.len()), (cache.split(Split::Test).len(), cache.split(Split::Test).len()));
        assert_eq!(read_evaluation(&run.join(kind.name()).join("reports/test.json")).unwrap(), evaluation);
        check_report(&run, kind, root.path());
    }
    let scores = retrieve(&config, cache, &run, Split::Test).unwrap();
    assert_eq!(scores.volumes, cache.split(Split::Test).len());
}

fn check_observation(observed: &Observed) {
    assert_eq!(observed.tokens.dims(), [110, 32]);
    assert!(observed.indices.iter().all(|row| row.len() == 10 && row.iter().all(|index| *index < 288)));
    for mass in &observed.mass {
        assert!(mass.windows(2).all(|pair| pair[0] >= pair[1]), "the strongest patch comes first: {mass:?}");
        assert!(mass.iter().sum::<f32>() <= 1.0 + 1e-4);
    }
}

/// A report for a scan read from its file: text streams as it is written, boxes lie where the patches are.
fn check_report(run: &std::path::Path, kind: DecoderKind, root: &std::path::Path) {
    let reporter = Reporter::open(run, kind, None, None).unwrap();
    let scan = walkdir::WalkDir::new(tiny::shared().root().parent().unwrap().join("dataset/dataset/valid_fixed"))
        .into_iter()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().ends_with("_1.nii.gz"))
        .unwrap();
    let mut streamed = String::new();
    let report = reporter.report(scan.path(), &mut |text| streamed += text).unwrap();
    assert_eq!(streamed.trim(), report.text);
    assert_eq!(report.structures.len(), 10);
    let patch = &report.structures[0].patches[0];
    let size: Vec<f64> = (0..3).map(|axis| patch.box_mm[1][axis] - patch.box_mm[0][axis]).collect();
    // 8 voxels of 5.5 mm along x and y, of 6 mm along z; resampling rounds the whole to voxels
    for (found, expected) in size.iter().zip([44.0, 44.0, 48.0]) {
        assert!((found - expected).abs() < 2.0, "{size:?}");
    }
    let _ = root;
}
