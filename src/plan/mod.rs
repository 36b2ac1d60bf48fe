//! What a run will need before it begins: disk, memory, operations, hours; computed from the configuration and from what this machine does in
//! two seconds of measuring.

mod machine;
mod models;
mod stages;
mod table;

use serde::Serialize;

use crate::Result;
use crate::config::Config;

pub use machine::{Accelerator, Machine};
pub use models::{Model, Pass};

/// How much there is of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Studies {
    /// Studies that are prepared and observed.
    pub all: usize,
    /// Of these, those whose reports are written and scored.
    pub test: usize,
    /// Tokens of a report, on average.
    pub report_tokens: usize,
    /// Voxels of a scan.
    pub voxels: f64,
}

/// Tokens of a CT-RATE report by LLaMA-2's tokenizer: the mean over 800 of them.
pub const REPORT_TOKENS: usize = 462;

impl Studies {
    /// CT-RATE's scans, one reconstruction each, as published.
    pub const CT_RATE: Studies = Studies { all: 25_692, test: 1_564, report_tokens: REPORT_TOKENS, voxels: 512.0 * 512.0 * 350.0 };

    /// Those that `config` draws itself, or CT-RATE's.
    pub fn of(config: &Config) -> Self {
        let Some(drawn) = &config.phantoms else { return Studies::CT_RATE };
        let voxels = (0..3).map(|axis| drawn.field_of_view_mm[axis] / drawn.spacing_mm[axis]).product();
        Studies { all: drawn.train + drawn.valid, test: drawn.valid, report_tokens: REPORT_TOKENS, voxels }
    }
}

/// What a stage needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// The command.
    pub name: String,
    /// Bytes that it leaves on disk.
    pub disk_bytes: u64,
    /// Bytes of memory at its peak, on the CPU; mapped weights are counted.
    pub memory_bytes: u64,
    /// Floating-point operations.
    pub operations: f64,
    /// Bytes that must be read from memory besides (weights, once a token written).
    pub reads: f64,
    /// Hours on this machine.
    pub hours: f64,
    /// Whether most of its products are in bf16, else in f32.
    pub bf16: bool,
    /// Bytes of device memory, were it on a GPU.
    pub device_bytes: u64,
}

/// A run, stage by stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What the figures rest on.
    pub assumptions: Vec<String>,
    /// This machine.
    pub machine: Machine,
    /// GPUs that hours are predicted for.
    pub accelerators: Vec<Accelerator>,
    /// The stages, in their order.
    pub stages: Vec<Stage>,
    /// What this machine lacks for it.
    pub shortages: Vec<String>,
}

/// Plans a run of `config` on `studies`.
pub fn plan(config: &Config, studies: Studies, machine: Machine) -> Result<Plan> {
    let (mut assumptions, base) = models::base(config)?;
    assumptions
        .push(format!("{} studies ({} of them written and scored), {} tokens a report", studies.all, studies.test, studies.report_tokens));
    let stages = stages::stages(config, &base, studies, &machine);
    let shortages = shortages(&stages, &machine);
    Ok(Plan { assumptions, machine, accelerators: Accelerator::ALL.to_vec(), stages, shortages })
}

fn shortages(stages: &[Stage], machine: &Machine) -> Vec<String> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let memory = stages.iter().filter(|stage| machine.memory_bytes.is_some_and(|have| stage.memory_bytes > have)).map(|stage| {
        format!(
            "{}: {:.1} GiB of memory are needed, the machine has {:.1}",
            stage.name,
            gib(stage.memory_bytes),
            gib(machine.memory_bytes.unwrap_or(0))
        )
    });
    let disk: u64 = stages.iter().map(|stage| stage.disk_bytes).sum();
    let short = machine.free_disk_bytes.filter(|free| *free < disk);
    memory.chain(short.map(|free| format!("{:.1} GiB of disk are needed, {:.1} are free here", gib(disk), gib(free)))).collect()
}
