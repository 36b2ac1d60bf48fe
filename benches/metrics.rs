//! All metrics over as many pairs as CT-RATE has validation volumes. The peers' twin: pycocoevalcap, 66 s for PTB words, BLEU, METEOR, ROUGE-L and
//! CIDEr alone (two cores of a shared Zen 5).

use criterion::{Criterion, criterion_group, criterion_main};
use ctscribe::evaluate::{Instruments, Pair, evaluate};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// CT-RATE's validation volumes, and the words of a report.
const PAIRS: usize = 3039;
const WORDS: usize = 200;

const SITES: [&str; 12] = [
    "right upper lobe",
    "left lower lobe",
    "lingula",
    "right middle lobe",
    "mediastinum",
    "left hilum",
    "aortic arch",
    "pericardium",
    "liver dome",
    "thoracic vertebrae",
    "trachea",
    "right pleural space",
];
const FINDINGS: [&str; 12] = [
    "ground glass opacity",
    "nodule",
    "consolidation",
    "linear atelectasis",
    "pleural effusion",
    "calcified plaque",
    "emphysematous change",
    "mosaic attenuation",
    "peribronchial thickening",
    "lymph node",
    "bronchiectasis",
    "interlobular septal thickening",
];
const KINDS: [&str; 10] = ["mild", "moderate", "severe", "subpleural", "diffuse", "focal", "stable", "millimetric", "irregular", "patchy"];

fn sentence(rng: &mut ChaCha8Rng) -> String {
    let mut one = |words: &[&'static str]| *words.choose(rng).expect("no list is empty");
    let (finding, other, site, place, kind) = (one(&FINDINGS), one(&FINDINGS), one(&SITES), one(&SITES), one(&KINDS));
    let mm: u32 = rng.random_range(2..45);
    match rng.random_range(0..5) {
        0 => format!("A {kind} {finding} measuring {mm} mm is observed in the {site}, accompanied by {other}."),
        1 => format!("No {finding} was detected in the {site}."),
        2 => format!("The {site} and the {place} appear normal, without {finding} or {other}."),
        3 => format!("In the {site}, there is a {finding} with a diameter of {mm} mm; {other} is also seen in the {place}."),
        _ => format!("Compared with the previous examination, the {kind} {finding} in the {site} has increased by {mm} percent."),
    }
}

fn report(rng: &mut ChaCha8Rng) -> String {
    let mut report = String::new();
    while report.split(' ').count() < WORDS {
        report.push_str(&sentence(rng));
        report.push(' ');
    }
    report
}

fn metrics(criterion: &mut Criterion) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let pair = |n: usize| Pair { study: n.to_string(), generated: report(&mut rng), reference: report(&mut rng), labels: None };
    let pairs: Vec<Pair> = (0..PAIRS).map(pair).collect();
    let instruments = Instruments::at_hand().expect("a dictionary that is there can be read");
    eprintln!("METEOR's synonyms: {:?}", instruments.names().get("wordnet"));
    let mut group = criterion.benchmark_group("metrics");
    group.sample_size(10);
    group.bench_function("all, 3039 pairs", |bencher| bencher.iter(|| evaluate("run", &pairs, &instruments).expect("pairs can be scored")));
    group.finish();
}

criterion_group!(benches, metrics);
criterion_main!(benches);
