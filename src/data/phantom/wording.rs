//! The reports' sentences. A normal one denies ("no", "not", "normal") or names no finding; an abnormal one holds no denial, since the
//! labeller takes a sentence with one as absent.

use super::{Lesion, Side};

pub(super) const TRACHEA: [&str; 4] = [
    "The trachea and the main bronchi are patent.",
    "Tracheal and main bronchial lumens are open.",
    "The trachea is midline and its lumen is open.",
    "Main bronchi and trachea show open lumens.",
];
pub(super) const VESSELS: [&str; 4] = [
    "The large mediastinal vessels have a normal calibre.",
    "The thoracic aorta is of normal diameter.",
    "Mediastinal vessels are normal.",
    "The aortic calibre is normal.",
];
pub(super) const NO_NODES: [&str; 4] = [
    "No enlarged mediastinal lymph nodes are seen.",
    "Mediastinal lymph nodes are not enlarged.",
    "No pathological lymph node is found in the mediastinum.",
    "There are no enlarged lymph nodes in the mediastinum.",
];
pub(super) const HEART: [&str; 4] =
    ["The heart has a normal size.", "Heart size is within normal limits.", "The size of the heart is normal.", "Cardiac size is normal."];
pub(super) const NO_PERICARDIAL_EFFUSION: [&str; 4] = [
    "No pericardial effusion is seen.",
    "There is no pericardial fluid.",
    "The pericardium shows no effusion.",
    "Pericardial effusion is not present.",
];
pub(super) const ESOPHAGUS: [&str; 4] = [
    "The esophagus has a normal calibre.",
    "The esophageal wall is normal.",
    "No hiatal hernia is seen.",
    "The esophagus is unremarkable.",
];
pub(super) const CLEAR_LUNGS: [&str; 4] = [
    "Both lungs are clear.",
    "The lungs are normally aerated, with no nodule or infiltration.",
    "No nodule, opacity or consolidation is seen in the lungs.",
    "The lung parenchyma is normal on both sides.",
];
pub(super) const NO_NODULE: [&str; 3] = ["No lung nodule is seen.", "There is no pulmonary nodule.", "A lung nodule is not found."];
pub(super) const NO_PLEURAL_EFFUSION: [&str; 4] = [
    "No pleural effusion is seen.",
    "There is no pleural fluid.",
    "The pleural spaces show no effusion.",
    "Pleural effusion is not present.",
];
pub(super) const THYROID: [&str; 3] = ["The thyroid is normal.", "The thyroid gland looks normal.", "Thyroid size is normal."];
pub(super) const BREAST: [&str; 3] = ["The breasts are normal.", "No mass is seen in the breasts.", "Breast tissue looks normal."];
pub(super) const ABDOMEN: [&str; 4] = [
    "The upper abdominal organs look normal.",
    "The liver is normal in the imaged part.",
    "Liver and spleen are unremarkable.",
    "No lesion is seen in the upper abdomen.",
];
pub(super) const BONE: [&str; 4] = [
    "The bones are normal.",
    "No bone lesion is seen.",
    "Vertebral bodies have a normal height.",
    "The ribs and the spine are unremarkable.",
];
pub(super) const NORMAL_IMPRESSION: [&str; 3] =
    ["Normal chest CT.", "No abnormality is seen in the chest.", "The chest shows no pathological change."];

/// The lung's findings in the order of the report.
pub(super) const LUNG: [usize; 10] = [7, 13, 10, 15, 8, 9, 11, 14, 16, 17];
/// All findings, those that an impression tells first.
pub(super) const WEIGHT: [usize; 18] = [9, 15, 6, 12, 3, 10, 2, 7, 8, 11, 5, 17, 16, 14, 13, 4, 1, 0];

/// How a finding is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wording {
    findings: &'static [&'static str],
    /// Of a lesion of the left side where the side decides what it is.
    left: &'static [&'static str],
    impressions: &'static [&'static str],
}

impl Wording {
    pub(super) fn sentences(&self, lesion: &Lesion) -> &'static [&'static str] {
        if lesion.side == Some(Side::Left) && !self.left.is_empty() { self.left } else { self.findings }
    }

    pub(super) fn impressions(&self, lesion: &Lesion) -> &'static [&'static str] {
        if self.impressions.is_empty() { self.sentences(lesion) } else { self.impressions }
    }
}

const fn told(findings: &'static [&'static str], impressions: &'static [&'static str]) -> Wording {
    Wording { findings, left: &[], impressions }
}

/// The wordings of a finding. {mm} size, {lobes} "right upper lobe", {lungs} "the right lung", {sides} "on the right", {side} "right".
pub(super) fn of(finding: usize) -> Wording {
    WORDINGS[finding]
}

const WORDINGS: [Wording; 18] = [
    Wording {
        findings: &[
            "A port catheter enters from the {side} chest wall and ends in the superior vena cava.",
            "There is a port chamber in the {side} chest wall with its catheter in the superior vena cava.",
            "On the {side}, a port catheter with its tip in the vena cava is seen.",
        ],
        left: &[
            "A pacemaker lies in the {side} chest wall with a lead in the right ventricle.",
            "There is a cardiac pacemaker in the {side} chest wall.",
            "On the {side}, a pacemaker with a ventricular lead is seen.",
        ],
        impressions: &[],
    },
    told(
        &[
            "Calcified plaques are seen in the wall of the aorta.",
            "There are calcific plaques in the arch and the descending aorta.",
            "The aortic wall shows calcification.",
            "Aortic calcifications are present.",
        ],
        &["Aortic calcification."],
    ),
    told(
        &[
            "The heart is enlarged.",
            "Heart size is increased.",
            "Cardiomegaly is seen.",
            "The heart shows an increased transverse diameter.",
        ],
        &["Cardiomegaly."],
    ),
    told(
        &[
            "A pericardial effusion of {mm} mm is seen.",
            "There is pericardial fluid with a thickness of {mm} mm.",
            "The pericardial space holds an effusion of {mm} mm.",
            "Pericardial effusion is present, {mm} mm thick.",
        ],
        &["Pericardial effusion."],
    ),
    told(
        &[
            "Calcified plaques are seen in the coronary arteries.",
            "There are coronary calcifications.",
            "The coronary arteries show calcific plaques.",
            "Coronary artery calcification is present.",
        ],
        &["Coronary artery calcification."],
    ),
    told(
        &[
            "A hiatal hernia of {mm} mm is seen.",
            "There is a hiatal hernia with a diameter of {mm} mm.",
            "Hiatal hernia is present, {mm} mm in size.",
            "The lower esophagus shows a hiatal hernia of {mm} mm.",
        ],
        &["Hiatal hernia."],
    ),
    told(
        &[
            "Enlarged mediastinal lymph nodes of up to {mm} mm are seen.",
            "There is mediastinal lymphadenopathy, the largest node being {mm} mm.",
            "The mediastinum holds enlarged lymph nodes with a short axis of {mm} mm.",
            "Mediastinal lymphadenopathy of up to {mm} mm is present.",
        ],
        &["Mediastinal lymphadenopathy."],
    ),
    told(
        &[
            "Emphysematous changes are seen in both lungs.",
            "There is emphysema in the upper lobes of both lungs.",
            "Both lungs show emphysema.",
            "Emphysematous areas are present, mostly in the upper lobes.",
        ],
        &["Emphysema."],
    ),
    told(
        &[
            "Band atelectasis is seen in the {lobes}.",
            "There is an atelectatic band in the {lobes}.",
            "The {lobes} shows linear atelectasis above the diaphragm.",
            "Atelectasis is present in the {lobes}.",
        ],
        &["Atelectasis in the {lobes}."],
    ),
    told(
        &[
            "A nodule of {mm} mm is seen in the {lobes}.",
            "There is a nodule measuring {mm} mm in the {lobes}.",
            "The {lobes} holds a solid nodule of {mm} mm.",
            "A {mm} mm nodule is present in the {lobes}.",
        ],
        &["Nodule in the {lobes}."],
    ),
    told(
        &[
            "Ground glass opacities are seen in the {lobes}.",
            "There is patchy ground glass opacity in the {lobes}.",
            "Areas of ground glass density are present in the {lobes}.",
            "Hazy ground glass areas are seen in the {lobes}.",
        ],
        &["Ground glass opacities in the {lobes}."],
    ),
    told(
        &[
            "Fibrotic bands are seen in the apical part of {lungs}.",
            "There are apical fibrotic sequelae in {lungs}.",
            "Apical sequela changes are present in {lungs}.",
            "The apical part of {lungs} shows fibrotic strands.",
        ],
        &["Apical fibrotic sequelae in {lungs}."],
    ),
    told(
        &[
            "A pleural effusion of {mm} mm is seen {sides}.",
            "There is pleural fluid {sides}, {mm} mm thick.",
            "Pleural effusion measuring {mm} mm is present {sides}.",
            "{sides}, a pleural effusion with a thickness of {mm} mm is seen.",
        ],
        &["Pleural effusion {sides}."],
    ),
    told(
        &[
            "A mosaic attenuation pattern is seen in both lungs.",
            "Both lungs show mosaic attenuation.",
            "There is mosaic attenuation in both lungs.",
        ],
        &["Mosaic attenuation."],
    ),
    told(
        &[
            "Peribronchial thickening is seen in both lungs.",
            "Both lungs show peribronchial thickening.",
            "There is peribronchial thickening in both lungs.",
        ],
        &["Peribronchial thickening."],
    ),
    told(
        &[
            "A consolidation with air bronchograms is seen in the {lobes}.",
            "There is consolidation in the {lobes}.",
            "The {lobes} shows a consolidated area.",
            "Consolidation is present in the {lobes}.",
        ],
        &["Consolidation in the {lobes}."],
    ),
    told(
        &["Bronchiectasis is seen in both lungs.", "Both lungs show bronchiectatic changes.", "There is bronchiectasis in both lungs."],
        &["Bronchiectasis."],
    ),
    told(
        &[
            "Interlobular septal thickening is seen in both lungs.",
            "Both lungs show thickened interlobular septa.",
            "There is interlobular septal thickening in both lungs.",
        ],
        &["Interlobular septal thickening."],
    ),
];
