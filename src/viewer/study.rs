//! What a page holds of a study: its volume, its structures' patches and attention, its reports sentence by sentence.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_core::Tensor;
use serde::Serialize;

use crate::Result;
use crate::generate::{Examined, StructureEvidence};
use crate::text::{FINDINGS, Structures, label_report};
use crate::volume::{Geometry, orientation_code};

use super::shades::{pack, shade, shades};
use super::shown::{Shown, turn_patches};

/// One study.
#[derive(Debug, Clone, Serialize)]
pub struct StudyView {
    /// The study's name.
    pub name: String,
    /// Its volume, without the voxels.
    pub volume: VolumeView,
    /// The voxels, packed (see `shades`); written beside the rest, so that a page of many studies opens at once.
    #[serde(skip)]
    pub voxels: String,
    /// The structures with their selected patches.
    pub structures: Vec<StructureView>,
    /// Reference and generated reports.
    pub reports: Vec<ReportView>,
    /// What deserves a word.
    pub warnings: Vec<String>,
}

/// A volume as it is shown: x toward the patient's left, y toward the back, z toward the head.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeView {
    /// Voxels (z, y, x).
    pub shape: [usize; 3],
    /// Distance of their centres in mm (z, y, x).
    pub spacing_mm: [f64; 3],
    /// Voxel (x, y, z) to scanner millimetres (right, anterior, superior).
    pub affine: [[f64; 4]; 3],
    /// Prepared voxels that were averaged into one (z, y, x).
    pub factor: [usize; 3],
    /// Hounsfield units of each shade.
    pub levels: Vec<f32>,
    /// How the prepared axes lay.
    pub prepared: String,
}

/// A structure: what it looked at.
#[derive(Debug, Clone, Serialize)]
pub struct StructureView {
    /// The structure's name.
    pub name: String,
    /// The selected patches, strongest first.
    pub patches: Vec<PatchView>,
    /// Attention on every patch, where it is known.
    pub attention: Option<AttentionView>,
}

/// A selected patch.
#[derive(Debug, Clone, Serialize)]
pub struct PatchView {
    /// Lower and upper edge in shown voxels (z, y, x).
    pub edges: [[f64; 3]; 2],
    /// Share of the structure's attention.
    pub mass: f32,
}

/// Attention over the grid of patches.
#[derive(Debug, Clone, Serialize)]
pub struct AttentionView {
    /// Patches (z, y, x).
    pub shape: [usize; 3],
    /// A byte a patch, 255 the most, as base64.
    pub values: String,
    /// The most, over an even spread.
    pub most: f32,
}

/// A report, and how its findings compare with the reference's.
#[derive(Debug, Clone, Serialize)]
pub struct ReportView {
    /// `reference` or the decoder's name.
    pub source: String,
    /// Its sentences in their order.
    pub sentences: Vec<SentenceView>,
    /// Findings that it or the reference affirms, by their index.
    pub findings: Vec<(usize, FindingState)>,
}

/// A sentence.
#[derive(Debug, Clone, Serialize)]
pub struct SentenceView {
    /// The text.
    pub text: String,
    /// The structures that it speaks of.
    pub structures: Vec<usize>,
    /// The findings that it affirms.
    pub findings: Vec<usize>,
}

/// A finding of a report beside its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    /// Affirmed, and there is nothing to compare with.
    Present,
    /// Affirmed by both.
    Matched,
    /// Affirmed by the reference only.
    Missed,
    /// Affirmed by the report only.
    Extra,
}

/// What a study is made of, before it is put into a page.
#[derive(Debug)]
pub struct Source<'a> {
    /// The study's name.
    pub name: &'a str,
    /// The prepared volume (1, D, H, W).
    pub prepared: &'a Tensor,
    /// Where it lies in the scan.
    pub geometry: &'a Geometry,
    /// The Hounsfield units of -1 and 1.
    pub range_hu: [f64; 2],
    /// Each structure with its selected patches.
    pub evidence: &'a [StructureEvidence],
}

impl StudyView {
    /// A study whose volume is averaged down to at most `voxels`.
    pub fn new(source: &Source, voxels: usize, reports: Vec<ReportView>) -> Result<Self> {
        let shown = Shown::new(source.prepared, source.geometry, source.range_hu)?.reduced(voxels);
        let levels = shades(source.range_hu);
        let packed = pack(&shade(&shown.values, &levels), shown.shape);
        let structure = |evidence: &StructureEvidence| StructureView {
            name: evidence.name.clone(),
            patches: evidence
                .patches
                .iter()
                .map(|patch| PatchView { edges: shown.place(patch.voxels[0], patch.voxels[1]), mass: patch.attention_mass })
                .collect(),
            attention: None,
        };
        Ok(StudyView {
            name: source.name.to_string(),
            structures: source.evidence.iter().map(structure).collect(),
            volume: VolumeView {
                prepared: orientation_code(&source.geometry.affine),
                shape: shown.shape,
                spacing_mm: shown.spacing_mm,
                affine: shown.affine,
                factor: shown.factor,
                levels,
            },
            voxels: packed,
            reports,
            warnings: Vec::new(),
        })
    }

    /// A scan's study, its whole attention included; beside a reference report where there is one.
    pub fn of_scan(examined: &Examined, structures: &Structures, reference: Option<&str>, voxels: usize) -> Result<Self> {
        let report = &examined.report;
        let geometry = &examined.prepared.geometry;
        let source = Source {
            name: &report.study,
            prepared: &examined.prepared.tensor,
            geometry,
            range_hu: examined.range_hu,
            evidence: &report.structures,
        };
        let expected = reference.map(label_report);
        let own = reference.map(|text| ReportView::reference(structures, text, &label_report(text)));
        let written = ReportView::new(structures, &report.decoder, &report.text, expected.as_ref());
        let mut study = StudyView::new(&source, voxels, own.into_iter().chain([written]).collect())?;
        for (structure, attention) in study.structures.iter_mut().zip(&examined.attention) {
            let (values, shape) = turn_patches(attention, examined.patches, geometry);
            structure.attention = Some(AttentionView::new(&values, shape));
        }
        study.warnings = report.warnings.clone();
        Ok(study)
    }
}

impl AttentionView {
    fn new(values: &[f32], shape: [usize; 3]) -> Self {
        let most = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let bytes: Vec<u8> = values.iter().map(|value| (value / most * 255.0).round() as u8).collect();
        AttentionView { shape, values: STANDARD.encode(bytes), most: most * values.len() as f32 }
    }
}

impl ReportView {
    /// A written report; `expected`: what its reference affirms.
    pub fn new(structures: &Structures, source: &str, text: &str, expected: Option<&[bool; 18]>) -> Self {
        let found = label_report(text);
        let state = |finding: usize| match (expected.map(|expected| expected[finding]), found[finding]) {
            (None, true) => Some(FindingState::Present),
            (Some(true), true) => Some(FindingState::Matched),
            (Some(true), false) => Some(FindingState::Missed),
            (Some(false), true) => Some(FindingState::Extra),
            (_, false) => None,
        };
        ReportView::with_states(structures, source, text, state)
    }

    /// The reference, which affirms `expected`: known labels, or what the labeller reads in it.
    pub fn reference(structures: &Structures, text: &str, expected: &[bool; 18]) -> Self {
        ReportView::with_states(structures, "reference", text, |finding| expected[finding].then_some(FindingState::Present))
    }

    fn with_states(structures: &Structures, source: &str, text: &str, state: impl Fn(usize) -> Option<FindingState>) -> Self {
        let sentence = |(text, structures): (String, Vec<usize>)| {
            let labels = label_report(&text);
            SentenceView { findings: (0..FINDINGS.len()).filter(|finding| labels[*finding]).collect(), text, structures }
        };
        ReportView {
            source: source.to_string(),
            sentences: structures.labelled(text).into_iter().map(sentence).collect(),
            findings: (0..FINDINGS.len()).filter_map(|finding| Some((finding, state(finding)?))).collect(),
        }
    }

    /// Findings missed and findings too many.
    pub fn errors(&self) -> [usize; 2] {
        [FindingState::Missed, FindingState::Extra].map(|wrong| self.findings.iter().filter(|(_, state)| *state == wrong).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_compared_finding_by_finding_and_read_sentence_by_sentence() {
        let structures = Structures::load("ours").unwrap();
        let expected = label_report("Heart size is increased. Pleural effusion is seen on the left.");
        let report = ReportView::new(&structures, "llama", "Heart size is increased. Emphysema is seen in both lungs.", Some(&expected));
        let named: Vec<(&str, FindingState)> = report.findings.iter().map(|(finding, state)| (FINDINGS[*finding], *state)).collect();
        use FindingState::{Extra, Matched, Missed};
        assert_eq!(named, [("Cardiomegaly", Matched), ("Emphysema", Extra), ("Pleural effusion", Missed)]);
        assert_eq!(report.errors(), [1, 1]);
        let names = structures.names();
        let read: Vec<(Vec<&str>, Vec<&str>)> = report
            .sentences
            .iter()
            .map(|sentence| {
                (sentence.structures.iter().map(|&s| names[s]).collect(), sentence.findings.iter().map(|&f| FINDINGS[f]).collect())
            })
            .collect();
        assert_eq!(read, [(vec!["heart"], vec!["Cardiomegaly"]), (vec!["lung"], vec!["Emphysema"])]);
    }
}
