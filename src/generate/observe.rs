//! `observe`: every study of a cache through a finished stage one, into files.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;
use ctscribe_ops::transfers;
use rayon::prelude::*;

use crate::config::Config;
use crate::data::Cache;
use crate::ranks::{Alone, Communicator};
use crate::volume::Geometry;
use crate::weights;
use crate::{Error, Result};

use super::observations::{Observed, folder};
use super::observer::{MODEL, Observer};

/// What became of a cache's studies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObserveReport {
    /// Observed now.
    pub observed: usize,
    /// Observed earlier by the same stage one.
    pub kept: usize,
    /// Name and reason.
    pub failed: Vec<(String, String)>,
}

/// One prepared volume (1, D, H, W), observed.
pub fn observe_volume(observer: &Observer, volume: &Tensor, geometry: Geometry) -> Result<Observed> {
    Ok(observe_whole(observer, volume, geometry)?.0)
}

/// The same, and how each structure's attention spreads over all patches: (S, N).
pub fn observe_whole(observer: &Observer, volume: &Tensor, geometry: Geometry) -> Result<(Observed, Vec<Vec<f32>>)> {
    let observation = observer.observe(&volume.unsqueeze(0)?, None)?;
    let contrast = observer.contrast(&observation.tokens)?.squeeze(0)?;
    let mut selection = observer.select(&observation)?;
    let observed = Observed {
        tokens: transfers::to_host(&selection.tokens.squeeze(0)?)?,
        indices: selection.indices.remove(0),
        mass: selection.mass.remove(0),
        contrast: transfers::to_host(&contrast)?,
        geometry,
    };
    Ok((observed, selection.attention.remove(0)))
}

/// Observes the studies of `cache` with the run's stage one. A study that fails is listed and passed over.
pub fn observe(config: &Config, cache: &Cache, run: &Path, done: impl Fn(usize) + Sync) -> Result<ObserveReport> {
    observe_shared(config, cache, run, &Alone, done)
}

/// What became of one study: its place in the cache; whether it was observed now, or why it failed.
type Outcome = (usize, std::result::Result<bool, String>);

/// As [`observe`], the studies shared among `ranks`: every size-th is this rank's. All get the whole report; `done` hears of all as far as
/// this rank can tell.
pub fn observe_shared(
    config: &Config,
    cache: &Cache,
    run: &Path,
    ranks: &dyn Communicator,
    done: impl Fn(usize) + Sync,
) -> Result<ObserveReport> {
    cache.check(&config.volume)?;
    let observer = Observer::of_run(config, run)?;
    let sha256 = weights::sha256(&run.join(MODEL))?;
    let path = folder(run);
    std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
    let count = AtomicUsize::new(0);
    let one = |name: &str| -> Result<bool> {
        if Observed::model_sha256(run, name).is_some_and(|seen| seen == sha256) {
            return Ok(false);
        }
        observe_volume(&observer, &cache.volume(name)?, cache.geometry(name)?)?.write(run, name, &sha256)?;
        Ok(true)
    };
    let own: Vec<usize> = (ranks.rank()..cache.studies.len()).step_by(ranks.size()).collect();
    let work = |&index: &usize| -> Outcome {
        let outcome = one(&cache.studies[index].name).map_err(|error| crate::error::chain(&error));
        done(((count.fetch_add(1, Ordering::Relaxed) + 1) * ranks.size()).min(cache.studies.len()));
        (index, outcome)
    };
    // on a device one after the other: each keeps it busy, and they share its memory
    let outcomes: Vec<Outcome> = if config.device.is_cpu() { own.par_iter().map(work).collect() } else { own.iter().map(work).collect() };
    Ok(report(cache, ranks.gather_values(&outcomes)?))
}

fn report(cache: &Cache, mut outcomes: Vec<Outcome>) -> ObserveReport {
    outcomes.sort_unstable_by_key(|(index, _)| *index);
    let mut report = ObserveReport::default();
    for (index, outcome) in outcomes {
        match outcome {
            Ok(true) => report.observed += 1,
            Ok(false) => report.kept += 1,
            Err(why) => report.failed.push((cache.studies[index].name.clone(), why)),
        }
    }
    report
}
