//! What a machine does a second: this one by measuring, GPUs by their makers' figures.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use ctscribe_ops::Matrix;
use rayon::prelude::*;
use serde::Serialize;

use crate::config::Config;
use crate::device::Memory;
use crate::volume::{self, HuPolicy, PreparationConfig};
use crate::{Error, Result};

/// A machine's rates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Threads.
    pub threads: usize,
    /// Memory in all.
    pub memory_bytes: Option<u64>,
    /// Room on the disk of the working folder.
    pub free_disk_bytes: Option<u64>,
    /// Operations a second of a product of 512 rows with a frozen bf16 weight of 2048 x 2048, measured.
    pub bf16_per_s: f64,
    /// The same in f32.
    pub f32_per_s: f64,
    /// Bytes read from memory a second, measured.
    pub read_per_s: f64,
    /// Voxels of a compressed scan read and prepared a second, measured.
    pub voxels_per_s: f64,
}

/// How long each rate is measured.
const MEASURED: Duration = Duration::from_millis(500);
/// Values of the array that is read: 256 MB, beyond every cache.
const READ: usize = 1 << 26;

impl Machine {
    /// Measures this machine; two seconds.
    pub fn measure() -> Result<Self> {
        Ok(Machine {
            threads: rayon::current_num_threads(),
            memory_bytes: Memory::now().map(|memory| memory.in_all),
            free_disk_bytes: fs4::available_space(".").ok(),
            bf16_per_s: product(DType::BF16)?,
            f32_per_s: product(DType::F32)?,
            read_per_s: reading(),
            voxels_per_s: preparing()?,
        })
    }
}

/// The best of many runs, as a rate.
fn best(work: f64, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let (begin, mut fastest) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < MEASURED {
        let start = Instant::now();
        run()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(work / fastest)
}

fn product(dtype: DType) -> Result<f64> {
    let (rows, width) = (512, 2048);
    let weight = Matrix::from_tensor(&Tensor::full(0.01f32, (width, width), &Device::Cpu)?.to_dtype(dtype)?)?;
    let x = Tensor::full(0.5f32, (rows, width), &Device::Cpu)?;
    best(2.0 * (rows * width * width) as f64, || Ok(weight.forward(&x).map(drop)?))
}

fn reading() -> f64 {
    let values = vec![1.0f32; READ];
    let run = || {
        let sum: f32 = values.par_chunks(1 << 16).map(sixteen).sum();
        std::hint::black_box(sum);
        Ok(())
    };
    best(4.0 * READ as f64, run).unwrap_or(f64::NAN)
}

/// A scan of noise, which no packing shortens: slower than a real one.
fn preparing() -> Result<f64> {
    const SHAPE: [usize; 3] = [96, 256, 256];
    let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let (path, count) = (folder.path().join("scan.nii.gz"), SHAPE.iter().product::<usize>());
    let values: Vec<i16> = (0..count as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as i16 - 1024).collect();
    let spacing = [3.0, 1.4, 1.4];
    let affine = [[spacing[2], 0.0, 0.0, 0.0], [0.0, spacing[1], 0.0, 0.0], [0.0, 0.0, spacing[0], 0.0]];
    volume::write_nifti(&path, &values, SHAPE, spacing, &affine)?;
    let config = PreparationConfig { hounsfield: HuPolicy::Header, ..Config::load("ct-rate-llama2-7b", &[])?.volume };
    best(count as f64, || volume::prepare(&volume::read(&path)?, &config, None).map(drop))
}

/// The sum in sixteen lanes, as fast as memory gives the values.
fn sixteen(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for chunk in values.chunks_exact(16) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().sum()
}

/// A GPU by its maker's figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accelerator {
    /// Its name.
    pub name: &'static str,
    /// Operations a second of its tensor cores in bf16.
    pub bf16_per_s: f64,
    /// Share of these that a step is guessed to reach (docs/cuda.md).
    pub share: f64,
    /// Operations a second in plain f32, of which half are guessed to be reached.
    pub f32_per_s: f64,
    /// Bytes read a second.
    pub read_per_s: f64,
    /// Its memory.
    pub memory_bytes: u64,
}

impl Accelerator {
    /// Those that docs/cuda.md predicts times for.
    pub const ALL: [Accelerator; 2] = [
        Accelerator { name: "A100", bf16_per_s: 312e12, share: 0.35, f32_per_s: 19.5e12, read_per_s: 2.04e12, memory_bytes: 80 << 30 },
        Accelerator { name: "H100", bf16_per_s: 989e12, share: 0.2, f32_per_s: 67e12, read_per_s: 3.35e12, memory_bytes: 80 << 30 },
    ];

    /// Predicted hours of so many operations, in bf16 or in f32, and reads.
    pub fn hours(&self, operations: f64, bf16: bool, reads: f64) -> f64 {
        let rate = if bf16 { self.bf16_per_s * self.share } else { 0.5 * self.f32_per_s };
        (operations / rate + reads / (0.8 * self.read_per_s)) / 3600.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_measured_and_more_work_takes_longer() {
        let machine = Machine::measure().unwrap();
        for rate in [machine.bf16_per_s, machine.f32_per_s, machine.read_per_s, 1e3 * machine.voxels_per_s] {
            assert!(rate.is_finite() && rate > 1e8, "{machine:?}");
        }
        let [a100, h100] = Accelerator::ALL;
        let hours = |gpu: &Accelerator, operations| gpu.hours(operations, true, 0.0);
        assert!(hours(&a100, 2e18) > hours(&a100, 1e18) && hours(&h100, 1e18) < hours(&a100, 1e18));
        assert!(a100.hours(1e18, false, 0.0) > 5.0 * hours(&a100, 1e18), "f32 does without the tensor cores");
        assert!((a100.hours(0.0, true, 3600.0 * 0.8 * a100.read_per_s) - 1.0).abs() < 1e-12);
    }
}
