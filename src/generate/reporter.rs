//! One scan in, one report with its evidence out.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::DType;
use ctscribe_ops::awake;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::decoder::{Drafting, GenerationConfig, ReportDecoder};
use crate::ranks::Communicator;
use crate::text::FINDINGS;
use crate::text::{Structures, label_report};
use crate::volume::{self, Geometry, Grid, HuVerdict, Prepared, SpacingSource, apply_policy, looks_like_chest, orient};
use crate::weights;
use crate::{Error, Result};

use super::decoders::{DecoderKind, decoder_files, open_decoder};
use super::observations::Observed;
use super::observe::observe_whole;
use super::observer::{MODEL, Observer};

/// What stands in every report.
pub const DRAFT: &str = "Draft written by a program, not for diagnosis.";

/// The name of the published schema of a report's JSON (`docs/report.schema.json`).
pub const SCHEMA: &str = "urn:ctscribe:report:1";

/// A report and what it rests on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The scan's name.
    pub study: String,
    /// The scan's file or folder.
    pub path: PathBuf,
    /// [`DRAFT`].
    pub notice: String,
    /// The text.
    pub text: String,
    /// Findings that the rule labeller reads in the text.
    pub findings: Vec<String>,
    /// Each structure's sentences, and the patches that it looked at.
    pub structures: Vec<StructureEvidence>,
    /// How Hounsfield units were decided.
    pub hounsfield: HuVerdict,
    /// What deserves a word.
    pub warnings: Vec<String>,
    /// Which decoder.
    pub decoder: String,
    /// SHA-256 of the models' files.
    pub models: Vec<(String, String)>,
    /// How far guesses shortened the writing; null where nothing is guessed: BERT, sampling, beams.
    pub drafting: Option<Drafting>,
    /// Seconds for reading, preparing, observing, writing.
    pub seconds: Timings,
}

/// Seconds a step.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Reading the scan.
    pub read: f64,
    /// Hounsfield units, resampling, windowing.
    pub prepare: f64,
    /// CT-ViT and structure queries.
    pub observe: f64,
    /// The decoder.
    pub write: f64,
}

/// What one structure looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StructureEvidence {
    /// The structure.
    pub name: String,
    /// What the report says of it.
    pub text: Option<String>,
    /// Share of the structure's attention on the selected patches together.
    pub attention_mass: f32,
    /// The selected patches, strongest first.
    pub patches: Vec<PatchEvidence>,
}

/// A patch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PatchEvidence {
    /// Its place (z, row, column) in the grid of patches.
    pub grid: [usize; 3],
    /// Prepared voxels: first (d, h, w), one past the last (d, h, w).
    pub voxels: [[usize; 3]; 2],
    /// Lower and upper corner in scanner millimetres (right, anterior, superior).
    pub box_mm: [[f64; 3]; 2],
    /// Share of the structure's attention.
    pub attention_mass: f32,
}

/// A report with what it was written from: enough to show, in the scan's own place, what each structure looked at.
#[derive(Debug)]
pub struct Examined {
    /// The report.
    pub report: Report,
    /// What the model saw.
    pub prepared: Prepared,
    /// How each structure's attention spreads over all patches: (S, N), each row's sum 1.
    pub attention: Vec<Vec<f32>>,
    /// Patches (d, h, w).
    pub patches: [usize; 3],
    /// Prepared voxels a patch (d, h, w).
    pub patch_size: [usize; 3],
    /// The range of Hounsfield units that became [-1, 1].
    pub range_hu: [f64; 2],
    /// The scan's own grid.
    pub grid: Grid,
}

/// A run, ready to write reports.
#[derive(Debug)]
pub struct Reporter {
    config: Config,
    observer: Observer,
    decoder: ReportDecoder,
    kind: DecoderKind,
    generation: GenerationConfig,
    structures: Structures,
    models: Vec<(String, String)>,
}

impl Reporter {
    /// Opens a run's models. `generation`: in place of the run's own decoding keys; `adapter`: in place of the run's own.
    pub fn open(run: &Path, kind: DecoderKind, generation: Option<GenerationConfig>, adapter: Option<&Path>) -> Result<Self> {
        Reporter::of(Config::of_run(run)?, run, kind, generation, adapter)
    }

    /// As [`Reporter::open`], with the run's configuration already read (and its device chosen).
    pub fn of(config: Config, run: &Path, kind: DecoderKind, generation: Option<GenerationConfig>, adapter: Option<&Path>) -> Result<Self> {
        let observer = Observer::of_run(&config, run)?;
        let decoder = open_decoder(&config, run, kind, adapter)?;
        let hash = |path: PathBuf| -> Result<(String, String)> {
            Ok((path.strip_prefix(run).unwrap_or(&path).display().to_string(), weights::sha256(&path)?))
        };
        let files = std::iter::once(run.join(MODEL)).chain(decoder_files(run, kind, adapter)?);
        let models = files.map(hash).collect::<Result<_>>()?;
        Ok(Reporter {
            generation: generation.unwrap_or_else(|| kind.generation(&config).clone()),
            structures: Structures::load(&config.text.structures)?,
            config,
            observer,
            decoder,
            kind,
            models,
        })
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The decoder.
    pub fn decoder(&self) -> &ReportDecoder {
        &self.decoder
    }

    /// Reads a scan and writes its report; `on_text` hears the text as it comes.
    pub fn report(&self, path: &Path, on_text: &mut (dyn FnMut(&str) + Send)) -> Result<Report> {
        Ok(self.examine(path, on_text)?.report)
    }

    /// The structures that the run tells apart.
    pub fn structures(&self) -> &Structures {
        &self.structures
    }

    /// Reads a scan, writes its report and keeps what it was written from.
    pub fn examine(&self, path: &Path, on_text: &mut (dyn FnMut(&str) + Send)) -> Result<Examined> {
        let mut seconds = Timings::default();
        let clock = Instant::now();
        let mut scan = volume::read(path)?;
        seconds.read = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let mut warnings = std::mem::take(&mut scan.notices);
        let hounsfield = apply_policy(&mut scan, None, self.config.volume.hounsfield)?;
        let chest = looks_like_chest(&scan);
        if !chest.is_chest {
            warnings.push(format!("does not look like a chest: {:.1}% of the body has lung's density", 100.0 * chest.lung_share));
        }
        let grid = scan.grid();
        let scan = orient(scan, self.config.volume.orientation);
        // a lone scan has no metadata row: its header is all there is
        let csv_spacing = (self.config.volume.spacing == SpacingSource::Csv).then_some([scan.spacing_mm[0], scan.spacing_mm[2]]);
        let prepared = volume::prepare(&scan, &self.config.volume, csv_spacing)?;
        seconds.prepare = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let (observed, attention) = awake(|| observe_whole(&self.observer, &prepared.tensor, prepared.geometry.clone()))?;
        seconds.observe = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let (text, drafting) = self.write(&observed, on_text)?;
        seconds.write = clock.elapsed().as_secs_f64();
        let report = Report {
            schema: SCHEMA.to_string(),
            study: volume::scan_name(path),
            path: path.to_path_buf(),
            notice: DRAFT.to_string(),
            findings: FINDINGS.iter().zip(label_report(&text)).filter(|(_, found)| *found).map(|(name, _)| name.to_string()).collect(),
            structures: self.evidence(&observed, &text),
            text,
            hounsfield,
            warnings,
            decoder: self.kind.name().to_string(),
            models: self.models.clone(),
            drafting,
            seconds,
        };
        let vit = &self.config.vision.ct_vit;
        let (patches, range_hu) = (vit.grid(self.config.volume.shape()[0]), self.config.volume.range_hu());
        Ok(Examined { report, prepared, attention, patches, patch_size: vit.patch_shape(), range_hu, grid })
    }

    /// The report of an observed study, and how far guesses shortened its writing.
    pub fn write(&self, observed: &Observed, on_text: &mut (dyn FnMut(&str) + Send)) -> Result<(String, Option<Drafting>)> {
        let tokens = observed.tokens.to_dtype(DType::F32)?.unsqueeze(0)?;
        let tokenizer = self.decoder.tokenizer();
        let (mut ids, mut said) = (Vec::new(), String::new());
        let mut fault = None;
        let (written, effort) = self.decoder.write(&tokens, &self.generation, &mut |_, id| {
            ids.push(id);
            match tokenizer.decode(&ids) {
                // an unfinished character waits for its other bytes
                Ok(text) if text.starts_with(&said) && !text.ends_with('\u{FFFD}') => {
                    on_text(&text[said.len()..]);
                    said = text;
                }
                Ok(_) => {}
                Err(error) => fault = Some(error),
            }
        })?;
        match fault {
            Some(error) => Err(error),
            None => {
                let drafting = effort.map(|effort| effort.drafting(self.decoder.draft_index_sha256()));
                Ok((tokenizer.decode(&written[0])?.trim().to_string(), drafting))
            }
        }
    }

    fn evidence(&self, observed: &Observed, text: &str) -> Vec<StructureEvidence> {
        let assigned = self.structures.assign(text).texts;
        let mut evidence = Vec::new();
        for (s, (name, text)) in self.structures.names().into_iter().zip(assigned).enumerate() {
            let (indices, mass) = (&observed.indices[s], &observed.mass[s]);
            let patch = |(index, mass): (&u32, &f32)| patch_evidence(&self.config, &observed.geometry, *index as usize, *mass);
            let mut patches: Vec<PatchEvidence> = indices.iter().zip(mass).map(patch).collect();
            patches.sort_by(|a, b| b.attention_mass.total_cmp(&a.attention_mass));
            evidence.push(StructureEvidence { name: name.to_string(), text, attention_mass: mass.iter().sum(), patches });
        }
        evidence
    }
}

/// Where patch `index` of a prepared volume lies.
pub fn patch_evidence(config: &Config, geometry: &Geometry, index: usize, mass: f32) -> PatchEvidence {
    let vit = &config.vision.ct_vit;
    let [_, gh, gw] = vit.grid(config.volume.shape()[0]);
    let grid = [index / (gh * gw), index / gw % gh, index % gw];
    let size = vit.patch_shape();
    let first = [0, 1, 2].map(|axis| grid[axis] * size[axis]);
    let end = [0, 1, 2].map(|axis| first[axis] + size[axis]);
    PatchEvidence { grid, voxels: [first, end], box_mm: geometry.box_mm(first, end), attention_mass: mass }
}

/// What happens to a scan.
#[derive(Debug)]
pub enum Happening<'a> {
    /// A piece of its report was written.
    Text(&'a str),
    /// Its report is whole.
    Report(Box<Examined>),
    /// It has no report.
    Failure(&'a Error),
}

/// What one rank tells of its scan: what is to be printed, or that it failed.
#[derive(Serialize, Deserialize)]
enum Told {
    Print(String),
    Failed(PathBuf),
}

/// Writes reports for scans, one after the other on each of `ranks`; one that fails is told and passed over. `hear` hears on a scan's own rank
/// what happens to it and says what is to be printed of it; `print` prints that, on the leader, in the scans' order.
///
/// # Errors
/// [`Error::SomeFailed`] on the leader alone.
pub fn report_scans(
    reporter: &Reporter,
    ranks: &dyn Communicator,
    scans: &[PathBuf],
    hear: &mut (dyn FnMut(&Path, Happening) -> Result<String> + Send),
    print: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut failed = Vec::new();
    for round in scans.chunks(ranks.size()) {
        let told = round.get(ranks.rank()).map(|scan| report_scan(reporter, scan, hear)).transpose()?;
        for told in ranks.gather_values(&told.into_iter().collect::<Vec<_>>())? {
            match told {
                Told::Print(text) if ranks.leads() => print(&text),
                Told::Print(_) => {}
                Told::Failed(scan) => failed.push(scan.display().to_string()),
            }
        }
    }
    match failed.len() {
        count if count > 0 && ranks.leads() => Err(Error::SomeFailed { failed: count, total: scans.len(), list: failed.join(", ") }),
        _ => Ok(()),
    }
}

fn report_scan(reporter: &Reporter, scan: &Path, hear: &mut (dyn FnMut(&Path, Happening) -> Result<String> + Send)) -> Result<Told> {
    let mut fault = None;
    let examined = reporter.examine(scan, &mut |text| fault = hear(scan, Happening::Text(text)).err().or(fault.take()));
    if let Some(fault) = fault {
        return Err(fault);
    }
    match examined {
        Ok(examined) => Ok(Told::Print(hear(scan, Happening::Report(Box::new(examined)))?)),
        Err(error) => {
            hear(scan, Happening::Failure(&error))?;
            Ok(Told::Failed(scan.to_path_buf()))
        }
    }
}
