//! The main job on an embedded default: phantoms, both stages, both decoders, reports for held-out phantoms, scores, a page.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::assess::{Question, evaluate_run, retrieve};
use crate::compare::{Comparing, Comparison, compare};
use crate::config::Config;
use crate::data::phantom::write_dataset;
use crate::data::{Cache, Split, prepare, read_ct_rate};
use crate::device::DeviceName;
use crate::evaluate::{Evaluation, Instruments, RetrievalScores};
use crate::generate::{DRAFT, DecoderKind, Report, Reporter, Visual, observe};
use crate::run_page::{Asked, Pick, run_page};
use crate::train::{Progress, train_language, train_report, train_structure, write_manifest};
use crate::viewer::{Page, Table};
use crate::weights::write_aside;
use crate::{Error, Result};

/// What stands above phantoms' numbers.
pub const NOTICE: &str = "Synthetic chests (phantoms) and reports written for them: these numbers say nothing of patients.";

/// Studies on the page.
const SHOWN: usize = 24;

/// What `--quick` overrides: enough to show that everything runs, too little to learn well.
const QUICK: [&str; 8] = [
    "phantoms.train=400",
    "phantoms.valid=40",
    "train_structure.training.steps=120",
    "language.training.steps=40",
    "llama.training.steps=60",
    "bert.training.steps=60",
    "llama.generation.max_new_tokens=160",
    "bert.generation.max_new_tokens=160",
];

/// What the demo is asked.
#[derive(Debug, Clone)]
pub struct Demo {
    /// Where everything goes.
    pub out: PathBuf,
    /// A short run.
    pub quick: bool,
    /// Real scans to write reports for at the end.
    pub scans: Vec<PathBuf>,
    /// Overrides of the preset's keys.
    pub set: Vec<String>,
    /// Where models lie and are computed, if not where the preset says.
    pub device: Option<DeviceName>,
}

/// What came out.
#[derive(Debug)]
pub struct DemoOutcome {
    /// LLaMA with LoRA, BERT, and LLaMA with the visual tokens shuffled between patients.
    pub comparison: Comparison,
    /// Report-to-volume retrieval among held-out phantoms.
    pub retrieval: RetrievalScores,
    /// Reports for the given scans.
    pub reports: Vec<Report>,
    /// Seconds a step.
    pub seconds: Vec<(&'static str, f64)>,
    /// The page.
    pub page: PathBuf,
}

struct Clock {
    started: Instant,
    seconds: Vec<(&'static str, f64)>,
}

impl Clock {
    fn time<T>(&mut self, step: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.started = Instant::now();
        let result = work()?;
        self.seconds.push((step, self.started.elapsed().as_secs_f64()));
        Ok(result)
    }
}

impl Demo {
    /// Runs it; one that was interrupted goes on where it was.
    pub fn run(&self) -> Result<DemoOutcome> {
        let config = self.config()?;
        let (dataset, cache, run) = (self.out.join("phantoms"), self.out.join("cache"), self.out.join("run"));
        std::fs::create_dir_all(&run).map_err(|e| Error::io(&run, e))?;
        write_aside(&run.join("config.yaml"), config.to_yaml()?.as_bytes())?;
        let mut clock = Clock { started: Instant::now(), seconds: Vec::new() };
        clock.time("draw phantoms", || draw(&config, &dataset))?;
        let cache = clock.time("prepare volumes", || prepare_all(&config, &dataset, &cache))?;
        write_manifest(&config, &cache, &run)?;
        clock.time("train language model", || train_language(&config, &cache, &run, true))?;
        clock.time("train structure", || train_structure(&config, &cache, &run, true))?;
        clock.time("observe", || observe(&config, &cache, &run, |_| {}))?;
        clock.time("train LLaMA + LoRA", || train_report(&config, &cache, &run, DecoderKind::Llama, true))?;
        clock.time("train BERT", || train_report(&config, &cache, &run, DecoderKind::Bert, true))?;
        let evaluations = clock.time("write and score reports", || score(&config, &cache, &run))?;
        let retrieval = retrieve(&config, &cache, &run, Split::Test)?;
        let comparison = compare(&evaluations, &Comparing::seeded(config.seed))?;
        let reports = self.real_scans(&run)?;
        let page = self.out.join("report.html");
        write_aside(&page, self.page((&config, &cache, &run), &comparison, &retrieval)?.render()?.as_bytes())?;
        Ok(DemoOutcome { comparison, retrieval, reports, seconds: clock.seconds, page })
    }

    fn config(&self) -> Result<Config> {
        let quick: Vec<String> = if self.quick { QUICK.map(String::from).to_vec() } else { Vec::new() };
        let device = self.device.map(|device| format!("device={device}"));
        let config = Config::load("phantom", &[quick, self.set.clone(), device.into_iter().collect()].concat())?;
        config.device.open()?;
        Ok(config)
    }

    fn real_scans(&self, run: &Path) -> Result<Vec<Report>> {
        if self.scans.is_empty() {
            return Ok(Vec::new());
        }
        let reporter = Reporter::open(run, DecoderKind::Llama, None, None)?;
        self.scans.iter().map(|scan| reporter.report(scan, &mut |_| {})).collect()
    }

    /// The run's page, with the tables that only the demo has.
    fn page(&self, (config, cache, run): (&Config, &Cache, &Path), comparison: &Comparison, retrieval: &RetrievalScores) -> Result<Page> {
        let asked = Asked { split: Split::Test.into(), studies: SHOWN, pick: Pick::Spread };
        let (mut page, failed) = run_page((config, cache, run), asked, "ctscribe demo")?;
        if let Some((name, why)) = failed.into_iter().next() {
            return Err(Error::Study { study: name, what: format!("it cannot be shown: {why}") });
        }
        let table = |caption: &str, (header, rows): (Vec<String>, Vec<Vec<String>>)| Table { caption: caption.to_string(), header, rows };
        let recalls = retrieval
            .recall_at
            .iter()
            .map(|(k, recall)| vec![format!("R@{k}"), format!("{recall:.3}"), format!("{:.3}", retrieval.chance_at[k])]);
        let recalls = (["", "recall", "chance"].map(String::from).to_vec(), recalls.collect());
        let more = [
            table("Differences", comparison.difference_rows()),
            table("Runs", comparison.fact_rows()),
            table("Report-to-volume retrieval", recalls),
        ];
        page.scores.get_or_insert_default().tables.extend(more);
        page.notice = format!("{NOTICE} {DRAFT}");
        Ok(page)
    }
}

fn draw(config: &Config, dataset: &Path) -> Result<()> {
    let phantoms = config.phantoms.as_ref().ok_or_else(|| Error::Invalid("phantoms: null: the demo draws its own data".to_string()))?;
    let progress = Progress::new("phantoms", (phantoms.train + phantoms.valid) as u64);
    write_dataset(dataset, phantoms, |done| progress.at(done as u64, ""))?;
    progress.finish("");
    Ok(())
}

fn prepare_all(config: &Config, dataset: &Path, cache: &Path) -> Result<Cache> {
    let dataset = read_ct_rate(dataset, &config.data, config.seed)?;
    let report = prepare(&dataset, &config.volume, cache, |_| {})?;
    if let Some((name, why)) = report.failed.first() {
        return Err(Error::Study { study: name.clone(), what: format!("a phantom could not be prepared: {why}") });
    }
    Cache::open(cache)
}

/// Scores of LLaMA, BERT and shuffled LLaMA on held-out phantoms.
fn score(config: &Config, cache: &Cache, run: &Path) -> Result<Vec<Evaluation>> {
    let instruments = Instruments::at_hand()?;
    let ask = |kind: DecoderKind, visual: Visual| -> Result<Evaluation> {
        let question = Question { split: Split::Test.into(), visual, limit: None };
        Ok(evaluate_run((config, cache, run), kind, question, &instruments, &mut |_| {})?.0)
    };
    Ok(vec![ask(DecoderKind::Llama, Visual::Own)?, ask(DecoderKind::Bert, Visual::Own)?, ask(DecoderKind::Llama, Visual::Shuffled)?])
}
