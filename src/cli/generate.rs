//! `ctscribe generate`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::config::Config;
use crate::decoder::{GenerationConfig, Strategy};
use crate::document::{diagnostic_report, write_dicom_sr};
use crate::error::chain;
use crate::generate::{DRAFT, DecoderKind, Examined, Happening, Report, Reporter, report_scans, write_heatmaps};
use crate::ranks::Communicator;
use crate::viewer::{ONE_STUDY, Page, StudyView, write_panels};
use crate::volume::find_scans;
use crate::weights::write_aside;
use crate::{Error, Result};

use super::run::{DecoderArg, DeviceArg, json_line};

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NIfTI files, DICOM folders, or trees of them.
    #[arg(required = true, value_name = "SCAN")]
    scans: Vec<PathBuf>,
    /// A run whose stages are trained.
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// Which decoder.
    #[arg(long, default_value = "llama")]
    decoder: DecoderArg,
    /// An adapter in PEFT's format, in place of the run's own.
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// What is printed.
    #[arg(long, default_value = "text")]
    format: Format,
    /// Also writes NAME.txt, NAME.json, NAME.html, NAME.fhir.json and NAME.sr.dcm (DICOM SR) into this folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// A text file with the scan's report, shown beside the generated one on its page.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Writes each structure's attention into this folder: NAME.STRUCTURE.nii.gz, in the scan's own grid and place, and NAME.STRUCTURE.png.
    #[arg(long, value_name = "FOLDER")]
    heatmaps: Option<PathBuf>,
    /// Prints text as it comes.
    #[arg(long)]
    stream: bool,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    decoding: Decoding,
}

/// How text or JSON is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The report's text.
    Text,
    /// One JSON object a line: text, structures, patches with boxes and attention, timings (docs/report.schema.json).
    Json,
    /// One FHIR R4 DiagnosticReport a line.
    Fhir,
    /// One page with everything inside: views, attention, report; for a single scan (of several, see --out).
    Html,
}

/// In place of the run's own decoding keys.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Decoding (default: the run's own)")]
struct Decoding {
    /// The likeliest token each time.
    #[arg(long, conflicts_with_all = ["beams", "temperature"])]
    greedy: bool,
    /// Beam search with this many beams.
    #[arg(long, value_name = "N", conflicts_with = "temperature")]
    beams: Option<usize>,
    /// Samples at this temperature.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Samples among the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", requires = "temperature")]
    top_p: Option<f64>,
    /// Samples among this many of the likeliest tokens.
    #[arg(long, value_name = "K", requires = "temperature")]
    top_k: Option<usize>,
    /// Divides the logits of tokens seen before (1: none).
    #[arg(long, value_name = "F")]
    repetition_penalty: Option<f64>,
    /// No n-gram of this length twice (0: allowed).
    #[arg(long, value_name = "N")]
    no_repeat_ngram: Option<usize>,
    /// No end before so many tokens.
    #[arg(long, value_name = "N")]
    min_tokens: Option<usize>,
    /// Most tokens.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens guessed ahead at most and checked in one pass, up to 7 (0: none); the text is the same.
    #[arg(long, value_name = "N")]
    drafts: Option<usize>,
    /// Where sampling's random numbers come from.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Decoding {
    fn over(&self, own: &GenerationConfig) -> Result<GenerationConfig> {
        let strategy = match (self.greedy, self.beams, self.temperature) {
            (true, _, _) => Strategy::Greedy,
            (_, Some(width), _) => Strategy::Beam { width, length_penalty: 1.0 },
            (_, _, Some(temperature)) => Strategy::Sample { temperature, top_k: self.top_k, top_p: self.top_p.unwrap_or(1.0) },
            _ => own.strategy,
        };
        let generation = GenerationConfig {
            strategy,
            max_new_tokens: self.max_tokens.unwrap_or(own.max_new_tokens),
            min_new_tokens: self.min_tokens.unwrap_or(own.min_new_tokens),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            no_repeat_ngram: self.no_repeat_ngram.unwrap_or(own.no_repeat_ngram),
            drafts: self.drafts.unwrap_or(own.drafts),
            seed: self.seed.unwrap_or(own.seed),
            ..own.clone()
        };
        let faults = generation.faults("decoding");
        if faults.is_empty() { Ok(generation) } else { Err(Error::Config { source_name: "the command line".to_string(), faults }) }
    }
}

impl Args {
    pub(super) fn run(self, ranks: &dyn Communicator) -> Result<()> {
        if self.stream && ranks.size() > 1 {
            return Err(Error::Invalid("--stream is for a single process: several write at the same time".to_string()));
        }
        let kind: DecoderKind = self.decoder.into();
        let config = self.device.over(Config::of_run(&self.run)?)?;
        let generation = self.decoding.over(kind.generation(&config))?;
        let scans = find_scans(&self.scans)?;
        let reference = self.reference(scans.len())?;
        let reporter = Reporter::of(config, &self.run, kind, Some(generation), self.adapter.as_deref())?;
        for folder in self.out.iter().chain(&self.heatmaps) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let streams = self.stream && self.format == Format::Text;
        let mut begun = None;
        let page = |examined: &Examined| page(examined, &reporter, reference.as_deref());
        let mut hear = |scan: &Path, happening: Happening| -> Result<String> {
            match happening {
                Happening::Text(text) if streams => {
                    if begun.as_deref() != Some(scan) {
                        begun = Some(scan.to_path_buf());
                        print!("{}", heading(scan, scans.len()));
                    }
                    print!("{text}");
                    let _ = std::io::stdout().flush();
                }
                Happening::Text(_) => {}
                Happening::Report(examined) => return self.finish(&examined, &page, streams, scans.len()),
                Happening::Failure(error) => eprintln!("error: {}", chain(error)),
            }
            Ok(String::new())
        };
        report_scans(&reporter, ranks, &scans, &mut hear, &mut |text| print!("{text}"))
    }

    /// The reference report; what serves one scan only is refused for several, before any work.
    fn reference(&self, scans: usize) -> Result<Option<String>> {
        let single = [("--format html", self.format == Format::Html), ("--reference", self.reference.is_some())];
        if let Some((argument, _)) = single.into_iter().find(|(_, given)| *given && scans > 1) {
            return Err(Error::Invalid(format!("{argument} is for a single scan, not for {scans}; pages of several go to --out")));
        }
        self.reference.as_ref().map(|path| std::fs::read_to_string(path).map_err(|e| Error::io(path, e))).transpose()
    }

    /// Writes the scan's files; gives what is to be printed.
    fn finish(&self, examined: &Examined, page: &dyn Fn(&Examined) -> Result<String>, streamed: bool, scans: usize) -> Result<String> {
        let report = &examined.report;
        for warning in &report.warnings {
            eprintln!("warning: {}: {warning}", report.path.display());
        }
        if let Some(out) = &self.out {
            write_documents(report, out)?;
            write_aside(&out.join(format!("{}.html", report.study)), page(examined)?.as_bytes())?;
        }
        if let Some(folder) = &self.heatmaps {
            write_heatmaps(examined, folder)?;
            write_panels(examined, folder)?;
        }
        match self.format {
            Format::Json => json_line(report),
            Format::Fhir => json_line(&diagnostic_report(report)),
            Format::Html => page(examined),
            Format::Text if streamed => Ok("\n\n".to_string()),
            Format::Text => Ok(format!("{}{}\n\n", heading(&report.path, scans), report.text)),
        }
    }
}

/// The scan's page.
fn page(examined: &Examined, reporter: &Reporter, reference: Option<&str>) -> Result<String> {
    let study = StudyView::of_scan(examined, reporter.structures(), reference, ONE_STUDY)?;
    let title = format!("ctscribe {}", examined.report.study);
    Page { title, notice: DRAFT.to_string(), studies: vec![study], ..Page::default() }.render()
}

fn write_documents(report: &Report, out: &Path) -> Result<()> {
    let fault = |e: serde_json::Error| Error::file(out, e.to_string());
    let file = |ending: &str| out.join(format!("{}.{ending}", report.study));
    write_aside(&file("txt"), format!("{}\n\n{}\n", report.text, report.notice).as_bytes())?;
    write_aside(&file("json"), serde_json::to_string_pretty(report).map_err(fault)?.as_bytes())?;
    write_aside(&file("fhir.json"), serde_json::to_string_pretty(&diagnostic_report(report)).map_err(fault)?.as_bytes())?;
    write_dicom_sr(report, &file("sr.dcm"))
}

fn heading(scan: &Path, scans: usize) -> String {
    if scans > 1 { format!("# {}\n", scan.display()) } else { String::new() }
}
