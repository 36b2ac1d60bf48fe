//! A phantom's report in CT-RATE's manner: short sentences by structure, each normal or naming what was drawn.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::wording::{self, Wording};
use super::{Lesion, Side};

/// A report's two sections.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) findings: String,
    pub(super) impression: String,
}

struct Writer<'a> {
    labels: &'a [bool; 18],
    lesions: &'a [Lesion],
    rng: &'a mut ChaCha8Rng,
    sentences: Vec<String>,
}

/// Writes the report of these lesions.
pub(super) fn write(labels: &[bool; 18], lesions: &[Lesion], female: bool, rng: &mut ChaCha8Rng) -> Report {
    let mut writer = Writer { labels, lesions, rng, sentences: Vec::new() };
    writer.normal(0.55, &wording::TRACHEA);
    if writer.rng.random_bool(0.7) {
        writer.mediastinum();
        writer.heart();
    } else {
        writer.heart();
        writer.mediastinum();
    }
    writer.finding_or(5, 0.5, &wording::ESOPHAGUS);
    writer.lung();
    writer.finding_or(12, 0.7, &wording::NO_PLEURAL_EFFUSION);
    writer.normal(0.1, &wording::THYROID);
    writer.normal(if female { 0.2 } else { 0.0 }, &wording::BREAST);
    writer.normal(0.4, &wording::ABDOMEN);
    writer.normal(0.4, &wording::BONE);
    let impression = writer.impression();
    Report { findings: writer.sentences.join(" "), impression }
}

impl Writer<'_> {
    fn choose<'w>(&mut self, wordings: &[&'w str]) -> &'w str {
        wordings.choose(self.rng).expect("each list of wordings has some")
    }

    /// A normal sentence, in this share of the reports.
    fn normal(&mut self, share: f64, wordings: &[&str]) {
        if self.rng.random_bool(share) {
            let text = self.choose(wordings).to_string();
            self.sentences.push(text);
        }
    }

    /// The finding if it was drawn; else, in this share, that all is well.
    fn finding_or(&mut self, finding: usize, share: f64, normal: &[&str]) {
        if self.labels[finding] { self.finding(finding) } else { self.normal(share, normal) }
    }

    fn finding(&mut self, finding: usize) {
        let text = self.fill(wording::of(finding), finding, Wording::sentences);
        self.sentences.push(text);
    }

    fn mediastinum(&mut self) {
        if self.labels[0] && self.lesion(0).structure == "mediastinum" {
            self.finding(0);
        }
        self.finding_or(1, 0.35, &wording::VESSELS);
        self.finding_or(6, 0.6, &wording::NO_NODES);
    }

    fn heart(&mut self) {
        self.finding_or(2, 0.65, &wording::HEART);
        if self.labels[0] && self.lesion(0).structure == "heart" {
            self.finding(0);
        }
        if self.labels[4] {
            self.finding(4);
        }
        self.finding_or(3, 0.5, &wording::NO_PERICARDIAL_EFFUSION);
    }

    fn lung(&mut self) {
        let mut drawn: Vec<usize> = wording::LUNG.iter().copied().filter(|finding| self.labels[*finding]).collect();
        if drawn.is_empty() {
            return self.normal(1.0, &wording::CLEAR_LUNGS);
        }
        // Two neighbours change places at times.
        if drawn.len() > 1 && self.rng.random_bool(0.3) {
            drawn.swap(0, 1);
        }
        drawn.iter().for_each(|finding| self.finding(*finding));
        if !self.labels[9] {
            self.normal(0.3, &wording::NO_NODULE);
        }
    }

    fn lesion(&self, finding: usize) -> &Lesion {
        self.lesions.iter().find(|lesion| lesion.finding == finding).expect("a finding that was drawn has a lesion")
    }

    /// A wording with size and place of the finding's lesions.
    fn fill(&mut self, wording: Wording, finding: usize, which: fn(&Wording, &Lesion) -> &'static [&'static str]) -> String {
        let lesions: Vec<&Lesion> = self.lesions.iter().filter(|lesion| lesion.finding == finding).collect();
        let first = lesions[0].clone();
        let largest = lesions.iter().map(|lesion| lesion.size_mm).fold(0.0, f64::max);
        let (lobes, lungs, sides) = (lobes(&lesions), lungs(&lesions), sides(&lesions));
        let text = self.choose(which(&wording, &first));
        let side = first.side.map_or("", Side::name);
        let text = text.replace("{mm}", &format!("{largest:.0}")).replace("{lobes}", &lobes);
        capitalised(&text.replace("{lungs}", lungs).replace("{sides}", sides).replace("{side}", side))
    }

    /// One to three of the findings, the weightiest first.
    fn impression(&mut self) -> String {
        let drawn: Vec<usize> = wording::WEIGHT.iter().copied().filter(|finding| self.labels[*finding]).take(3).collect();
        if drawn.is_empty() {
            return self.choose(&wording::NORMAL_IMPRESSION).to_string();
        }
        let texts: Vec<String> = drawn.iter().map(|finding| self.fill(wording::of(*finding), *finding, Wording::impressions)).collect();
        texts.join(" ")
    }
}

/// "right upper lobe", or two of them.
fn lobes(lesions: &[&Lesion]) -> String {
    let mut names: Vec<String> = Vec::new();
    for lesion in lesions {
        if let (Some(side), Some(lobe)) = (lesion.side, lesion.lobe) {
            names.push(format!("{} {} lobe", side.name(), lobe.name()));
        }
    }
    names.join(" and ")
}

fn both(lesions: &[&Lesion]) -> bool {
    [Side::Right, Side::Left].iter().all(|side| lesions.iter().any(|lesion| lesion.side == Some(*side)))
}

fn lungs(lesions: &[&Lesion]) -> &'static str {
    match lesions[0].side {
        _ if both(lesions) => "both lungs",
        Some(Side::Right) => "the right lung",
        Some(Side::Left) => "the left lung",
        None => "both lungs",
    }
}

fn sides(lesions: &[&Lesion]) -> &'static str {
    match lesions[0].side {
        _ if both(lesions) => "on both sides",
        Some(Side::Right) => "on the right",
        _ => "on the left",
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
