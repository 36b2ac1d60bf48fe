//! Large pages: a hundred studies open at once, a whole scan takes a few megabytes.

use ctscribe::config::Config;
use ctscribe::data::phantom::draw;
use ctscribe::generate::{PatchEvidence, StructureEvidence};
use ctscribe::text::{Structures, label_report};
use ctscribe::viewer::{GalleryRow, ONE_STUDY, Page, ReportView, Source, StudyView, voxel_budget};
use ctscribe::volume::{self, Volume, orient};

use crate::browser::Browser;

/// A hundred studies as coarse as a page of a hundred makes them: one phantom, drawn finely enough to need it.
fn hundred() -> Page {
    let mut config = Config::load("phantom", &[]).unwrap();
    (config.volume.target_spacing_mm, config.volume.target_shape) = ([2.5, 3.0, 3.0], [112, 112, 88]);
    let mut drawn = config.phantoms.clone().unwrap();
    drawn.spacing_mm = [2.5, 3.0, 3.0];
    let phantom = draw(3, 8, &drawn);
    let values = phantom.values.iter().map(|value| f32::from(*value)).collect();
    let (spacing_mm, affine, shape) = (phantom.spacing_mm, phantom.affine, phantom.shape);
    let volume = Volume { values, shape, spacing_mm, affine, path: Default::default(), format: String::new(), notices: vec![] };
    let prepared = volume::prepare(&orient(volume, config.volume.orientation), &config.volume, None).unwrap();
    let structures = Structures::load("ours").unwrap();
    let patch = |index: usize| {
        let voxels = [[8 * index, 8 * index, 4 * index], [8 * index + 8, 8 * index + 8, 4 * index + 8]];
        PatchEvidence { grid: [index; 3], voxels, box_mm: [[0.0; 3]; 2], attention_mass: 0.2 / (1 + index) as f32 }
    };
    let structure =
        |name: &&str| StructureEvidence { name: name.to_string(), text: None, attention_mass: 0.5, patches: (0..10).map(patch).collect() };
    let evidence: Vec<StructureEvidence> = structures.names().iter().map(structure).collect();
    let expected = label_report(&phantom.findings);
    let reports = [
        ReportView::reference(&structures, &phantom.findings, &expected),
        ReportView::new(&structures, "llama", &phantom.findings, Some(&expected)),
        ReportView::new(&structures, "bert", "Heart size is increased. The lungs are clear.", Some(&expected)),
    ];
    let source = Source {
        name: "study",
        prepared: &prepared.tensor,
        geometry: &prepared.geometry,
        range_hu: config.volume.range_hu(),
        evidence: &evidence,
    };
    let one = StudyView::new(&source, voxel_budget(100), reports.to_vec()).unwrap();
    eprintln!("a study of a hundred: {:?} voxels (z, y, x)", one.volume.shape);
    assert!(one.volume.shape.iter().product::<usize>() > voxel_budget(100) / 3, "{:?}", one.volume.shape);
    let errors = |index: usize| vec![("errors".to_string(), (index * 7 % 10) as f64), ("rouge_l".to_string(), index as f64 / 100.0)];
    Page {
        title: "a hundred".to_string(),
        studies: (0..100).map(|index| StudyView { name: format!("study {index}"), ..one.clone() }).collect(),
        gallery: (0..100).map(|index| GalleryRow { decoders: vec![("llama".to_string(), errors(index))] }).collect(),
        chosen: "100 of 100".to_string(),
        ..Page::default()
    }
}

#[test]
fn a_hundred_studies_open_in_under_two_seconds() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let html = hundred().render().unwrap();
    std::fs::write(&path, &html).unwrap();
    // the best of three: other programs' share of the machine is not the page's
    let mut milliseconds = f64::INFINITY;
    for _ in 0..3 {
        browser.open_study(&path);
        // from the navigation's beginning to the first study on the canvas
        milliseconds = milliseconds.min(browser.number("return Number(document.body.dataset.milliseconds)"));
    }
    eprintln!("100 studies, {:.1} MB, open in {milliseconds:.0} ms", html.len() as f64 / 1e6);
    assert!(milliseconds < 2000.0, "{milliseconds} ms");
    assert!(html.len() < 60_000_000, "{}", html.len());
    assert_eq!(browser.number("return document.querySelectorAll('#gallery tbody tr').length"), 100.0);
    // the next study is unpacked when it is asked for
    let begun = std::time::Instant::now();
    browser.keys("n");
    browser.wait("return document.body.dataset.study !== undefined && document.querySelector('#gallery tr.open').rowIndex === 2");
    eprintln!("the next study is there after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    browser.assert_quiet();
}

#[test]
fn a_whole_scan_takes_a_few_megabytes_and_says_how_it_was_averaged() {
    let scan = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/ct/lung1_image.nii.gz");
    if !scan.exists() {
        eprintln!("skipped: {} is absent", scan.display());
        return;
    }
    let mut config = Config::load("ct-rate-llama2-7b", &[]).unwrap();
    // CT-CLIP's own size
    (config.volume.target_spacing_mm, config.volume.target_shape) = ([1.5, 0.75, 0.75], [240, 480, 480]);
    let volume = orient(volume::read(&scan).unwrap(), config.volume.orientation);
    let spacing = [volume.spacing_mm[0], volume.spacing_mm[2]];
    let prepared = volume::prepare(&volume, &config.volume, Some(spacing)).unwrap();
    let source = Source {
        name: "scan",
        prepared: &prepared.tensor,
        geometry: &prepared.geometry,
        range_hu: config.volume.range_hu(),
        evidence: &[],
    };
    let study = StudyView::new(&source, ONE_STUDY, Vec::new()).unwrap();
    assert_eq!((study.volume.shape, study.volume.factor), ([120, 240, 240], [2, 2, 2]));
    let page = Page { title: "scan".to_string(), studies: vec![study], ..Page::default() }.render().unwrap();
    eprintln!("480 x 480 x 240 voxels: {:.1} MB", page.len() as f64 / 1e6);
    assert!(page.len() < 6_000_000, "{}", page.len());
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    std::fs::write(&path, page).unwrap();
    browser.open_study(&path);
    assert!(
        browser.text("return document.getElementById('facts').textContent").ends_with("each the mean of 2 × 2 × 2 of what the model saw")
    );
    browser.assert_quiet();
}
