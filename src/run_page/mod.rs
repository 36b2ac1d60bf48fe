//! The page of a run: scores with intervals, training curves, and a gallery of its studies by error.

mod bars;
mod files;

use std::path::Path;

use rayon::prelude::*;

use crate::config::Config;
use crate::data::{Cache, CachedStudy, Subset};
use crate::generate::{DRAFT, Observed, StructureEvidence, patch_evidence};
use crate::text::{Structures, label_report};
use crate::train::draw_curves;
use crate::viewer::{Curve, GalleryRow, Page, ReportView, Scores, Source, StudyView, Table, voxel_budget};
use crate::{Error, Result};

use files::{Scored, read_metrics, read_scored};

/// The stages whose curves are drawn, in their order.
const STAGES: [&str; 4] = ["structure", "language", "llama", "bert"];

/// Which studies of a split are put into the gallery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Those with the most label errors.
    Worst,
    /// Evenly from the fewest label errors to the most.
    Spread,
    /// The first by name.
    First,
}

/// What is shown.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The split whose reports were evaluated.
    pub split: Subset,
    /// At most so many studies.
    pub studies: usize,
    /// Which of them.
    pub pick: Pick,
}

/// The page of `run`, whose reports `evaluate` wrote. A study that cannot be read is left out and named: the second value.
pub fn run_page((config, cache, run): (&Config, &Cache, &Path), asked: Asked, title: &str) -> Result<(Page, Vec<(String, String)>)> {
    let scored = read_scored(run, asked.split)?;
    let chosen = choose(&scored, asked);
    let structures = Structures::load(&config.text.structures)?;
    let album = Album { config, cache, run, structures, scored: &scored, voxels: voxel_budget(chosen.len()) };
    let views: Vec<(String, Result<StudyView>)> = chosen.par_iter().map(|name| (name.clone(), album.study(name))).collect();
    let (mut studies, mut failed) = (Vec::new(), Vec::new());
    for (name, view) in views {
        match view {
            Ok(view) => studies.push(view),
            Err(error) => failed.push((name, crate::error::chain(&error))),
        }
    }
    let most = scored.iter().map(|decoder| decoder.pairs.len()).max().unwrap_or(0);
    let split = asked.split;
    let which = match asked.pick {
        Pick::Worst => "those with the most label errors",
        Pick::Spread => "evenly from the fewest label errors to the most",
        Pick::First => "the first by name",
    };
    let which = if studies.len() < most { format!(": {which}") } else { String::new() };
    let page = Page {
        title: title.to_string(),
        notice: DRAFT.to_string(),
        gallery: studies.iter().map(|study| gallery_row(study, &scored)).collect(),
        chosen: format!("{} of {most} studies of the {split} split{which}", studies.len()),
        scores: Some(scores(run, &scored, config.seed)?),
        studies,
    };
    Ok((page, failed))
}

/// Names of studies, by the label errors of all decoders together.
fn choose(scored: &[Scored], asked: Asked) -> Vec<String> {
    let own = scored.iter().filter(|decoder| !decoder.shuffled);
    let mut errors: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for pair in own.flat_map(|decoder| &decoder.pairs) {
        *errors.entry(&pair.study).or_default() += pair.errors();
    }
    let mut names: Vec<(&str, usize)> = errors.into_iter().collect();
    if asked.pick != Pick::First {
        names.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    }
    let (all, wanted) = (names.len(), asked.studies.min(names.len()));
    let place = |index: usize| match asked.pick {
        Pick::Spread => index * (all - 1) / (wanted - 1).max(1),
        Pick::Worst | Pick::First => index,
    };
    (0..wanted).map(|index| names[place(index)].0.to_string()).collect()
}

/// Where studies come from, and how finely they are shown.
struct Album<'a> {
    config: &'a Config,
    cache: &'a Cache,
    run: &'a Path,
    structures: Structures,
    scored: &'a [Scored],
    voxels: usize,
}

impl Album<'_> {
    /// A study with its reference and what each decoder wrote.
    fn study(&self, name: &str) -> Result<StudyView> {
        let known = |study: &&CachedStudy| study.name == name;
        let cached = self.cache.studies.iter().find(known).ok_or_else(|| Error::Study {
            study: name.to_string(),
            what: format!("it was evaluated and is not in the cache {}", self.cache.root().display()),
        })?;
        let observed = Observed::read(self.run, name)?;
        let evidence = evidence(self.config, &self.structures, &observed);
        let expected = cached.labels.unwrap_or_else(|| label_report(&cached.report));
        let mut reports = vec![ReportView::reference(&self.structures, &cached.report, &expected)];
        for decoder in self.scored.iter().filter(|decoder| !decoder.shuffled) {
            if let Some(pair) = decoder.pair(name) {
                reports.push(ReportView::new(&self.structures, &decoder.name, &pair.generated, Some(&expected)));
            }
        }
        let (prepared, range_hu) = (self.cache.volume(name)?, self.config.volume.range_hu());
        let source = Source { name, prepared: &prepared, geometry: &observed.geometry, range_hu, evidence: &evidence };
        StudyView::new(&source, self.voxels, reports)
    }
}

/// The patches that an observation selected.
fn evidence(config: &Config, structures: &Structures, observed: &Observed) -> Vec<StructureEvidence> {
    let names = structures.names().into_iter();
    let rows = names.zip(observed.indices.iter().zip(&observed.mass));
    let one = |(name, (indices, mass)): (&str, (&Vec<u32>, &Vec<f32>))| {
        let patch = |(index, mass): (&u32, &f32)| patch_evidence(config, &observed.geometry, *index as usize, *mass);
        let mut patches: Vec<_> = indices.iter().zip(mass).map(patch).collect();
        patches.sort_by(|a, b| b.attention_mass.total_cmp(&a.attention_mass));
        StructureEvidence { name: name.to_string(), text: None, attention_mass: mass.iter().sum(), patches }
    };
    rows.map(one).collect()
}

/// Label errors of what the page shows, and every number that the evaluation holds of the study.
fn gallery_row(study: &StudyView, scored: &[Scored]) -> GalleryRow {
    let row = |report: &ReportView| {
        let [missed, extra] = report.errors();
        let mut scores = vec![
            ("errors".to_string(), (missed + extra) as f64),
            ("missed".to_string(), missed as f64),
            ("extra".to_string(), extra as f64),
        ];
        let decoder = scored.iter().find(|decoder| decoder.name == report.source);
        scores.extend(decoder.into_iter().flat_map(|decoder| decoder.numbers(&study.name)));
        (report.source.clone(), scores)
    };
    GalleryRow { decoders: study.reports.iter().filter(|report| report.source != "reference").map(row).collect() }
}

fn scores(run: &Path, scored: &[Scored], seed: u64) -> Result<Scores> {
    let mut curves = Vec::new();
    for stage in STAGES {
        let lines = read_metrics(&run.join(stage).join("metrics.jsonl"))?;
        if !lines.is_empty() {
            curves.push(Curve { stage: stage.to_string(), svg: draw_curves(stage, &lines)? });
        }
    }
    let (bars, intervals) = bars::groups(scored, seed);
    Ok(Scores { bars, intervals, tables: tables(scored), curves })
}

/// All metrics, and F1 a finding, decoder beside decoder.
fn tables(scored: &[Scored]) -> Vec<Table> {
    let header = |first: &str| [vec![first.to_string()], scored.iter().map(|decoder| decoder.name.clone()).collect()].concat();
    let names: std::collections::BTreeSet<&String> = scored.iter().flat_map(|decoder| decoder.metrics.keys()).collect();
    let cell = |value: Option<&f64>| value.filter(|value| value.is_finite()).map_or("–".to_string(), |value| format!("{value:.4}"));
    let metric =
        |name: &&String| [vec![name.to_string()], scored.iter().map(|decoder| cell(decoder.metrics.get(*name))).collect()].concat();
    let findings = bars::findings(scored);
    let table = |caption: &str, header: Vec<String>, rows: Vec<Vec<String>>| Table { caption: caption.to_string(), header, rows };
    let all = [
        table("F1 a finding", header("finding (studies that have it)"), findings),
        table("All metrics", header("metric"), names.iter().map(metric).collect()),
    ];
    all.into_iter().filter(|table| !table.rows.is_empty()).collect()
}
