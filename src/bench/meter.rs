//! Wall time of a piece of work, with how much of the machine others took meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Result;
use crate::train::peak_memory_mib;

/// Share of the machine that others may take in a run that counts.
const QUIET: f64 = 0.12;
/// How long a run waits for the machine to become quiet.
const PATIENCE: Duration = Duration::from_secs(20);

/// Times of repeated work.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Median of the quiet runs, of all if fewer than two were quiet.
    pub median_s: f64,
    /// The fastest run.
    pub min_s: f64,
    /// Every run.
    pub runs_s: Vec<f64>,
    /// Runs during which others took less than 12% of the machine.
    pub quiet_runs: usize,
    /// Mean share of the machine that others took.
    pub others: f64,
    /// Peak resident memory of the process so far, MiB.
    pub peak_mib: Option<u64>,
    /// Threads.
    pub threads: usize,
}

/// Runs `work` once to warm up and `runs` times on the clock, each when the machine is quiet or the patience is at its end.
pub fn measure(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Measured> {
    let [measured] = measure_in_turn(runs, [&mut work])?;
    Ok(measured)
}

/// As [`measure`], several works in turn, so that the machine's slow and fast minutes fall on all of them.
pub fn measure_in_turn<const N: usize>(runs: usize, mut works: [&mut dyn FnMut() -> Result<()>; N]) -> Result<[Measured; N]> {
    for work in &mut works {
        work()?;
    }
    let mut times = [const { Vec::new() }; N];
    for _ in 0..runs.max(1) {
        for (work, times) in works.iter_mut().zip(&mut times) {
            wait_for_quiet();
            let (before, start) = (Usage::now(), Instant::now());
            work()?;
            let seconds = start.elapsed().as_secs_f64();
            times.push((seconds, Usage::now().others_since(&before, seconds)));
        }
    }
    Ok(times.map(|times| measured(&times)))
}

/// Of the seconds of each run and the share that others took of it.
fn measured(times: &[(f64, f64)]) -> Measured {
    let quiet: Vec<f64> = times.iter().filter(|(_, others)| *others < QUIET).map(|(seconds, _)| *seconds).collect();
    let all: Vec<f64> = times.iter().map(|(seconds, _)| *seconds).collect();
    let counted = if quiet.len() >= 2.min(all.len()) { quiet.clone() } else { all.clone() };
    Measured {
        median_s: median(counted),
        min_s: all.iter().copied().fold(f64::INFINITY, f64::min),
        quiet_runs: quiet.len(),
        others: times.iter().map(|(_, others)| others).sum::<f64>() / times.len() as f64,
        runs_s: all,
        peak_mib: peak_memory_mib(),
        threads: rayon::current_num_threads(),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn wait_for_quiet() {
    const PROBE: Duration = Duration::from_millis(400);
    let start = Instant::now();
    loop {
        let before = Usage::now();
        std::thread::sleep(PROBE);
        if Usage::now().others_since(&before, PROBE.as_secs_f64()) < QUIET || start.elapsed() > PATIENCE {
            return;
        }
    }
}

/// Processor time so far, in clock ticks: of the machine, of this process.
struct Usage {
    machine: f64,
    own: f64,
    cores: f64,
}

/// Linux's clock ticks a second, as everywhere in `/proc`.
const TICKS: f64 = 100.0;

impl Usage {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<f64> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|v| v.parse().ok()).collect();
        // user, nice, system, irq and softirq of: user nice system idle iowait irq softirq steal
        let machine = [0, 1, 2, 5, 6].iter().filter_map(|&at| fields.get(at)).sum();
        let own = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // behind the parenthesised name: state is the first field, utime and stime the 12th and 13th
        let fields: Vec<&str> = own.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let own = [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<f64>().ok()).sum();
        let cores = stat.lines().filter(|line| line.starts_with("cpu")).count().saturating_sub(1).max(1) as f64;
        Usage { machine, own, cores }
    }

    /// Share of the machine that others took in `seconds` since `before`; 0 where there is no `/proc`.
    fn others_since(&self, before: &Usage, seconds: f64) -> f64 {
        let others = (self.machine - before.machine) - (self.own - before.own);
        (others / TICKS / seconds / self.cores).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn work_is_done_once_more_than_it_is_timed() {
        let mut calls = 0;
        let measured = measure(2, || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        });
        let measured = measured.unwrap();
        assert_eq!((calls, measured.runs_s.len()), (3, 2));
        assert!(measured.min_s >= 0.02 && measured.median_s >= measured.min_s);
    }
}
