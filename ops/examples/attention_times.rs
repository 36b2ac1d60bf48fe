//! Times attention, forward alone and with its gradients: `attention_times cpu|cuda:N f32|bf16|f16 RUNS BATCHxTOKENS...`.
//!
//! Causal, 32 heads of 128 (LLaMA2-7B's), or `ATTENTION_HEADS`. A line of JSON for each shape. A run is ten calls between two waits for the
//! device (one call on the CPU); the time is a call's, the median of all runs after three that are not counted.

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use ctscribe_ops::{Attention, attention};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTH: usize = 128;
const UNCOUNTED: usize = 3;

fn device(name: &str) -> Result<Device, Box<dyn Error>> {
    match name.strip_prefix("cuda:") {
        Some(number) => Ok(Device::new_cuda(number.parse()?)?),
        None if name == "cpu" => Ok(Device::Cpu),
        None => Err(format!("{name}: expected cpu or cuda:N").into()),
    }
}

fn dtype(name: &str) -> Result<DType, Box<dyn Error>> {
    Ok(name.parse::<DType>()?)
}

/// Values within (-1, 1): (B, H, L, D).
fn random(shape: [usize; 4], seed: u64, dtype: DType, device: &Device) -> candle_core::Result<Var> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Var::from_tensor(&Tensor::from_vec(values, &shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

/// Milliseconds of one call, each run's.
fn times(device: &Device, runs: usize, work: impl Fn() -> candle_core::Result<()>) -> candle_core::Result<Vec<f64>> {
    let calls = if device.is_cpu() { 1 } else { 10 };
    let mut times = Vec::new();
    for _ in 0..UNCOUNTED + runs {
        device.synchronize()?;
        let start = Instant::now();
        (0..calls).try_for_each(|_| work())?;
        device.synchronize()?;
        times.push(1000.0 * start.elapsed().as_secs_f64() / calls as f64);
    }
    Ok(times.split_off(UNCOUNTED))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [place, kind, runs, shapes @ ..] = &arguments[..] else {
        return Err("expected: cpu|cuda:N f32|bf16|f16 RUNS BATCHxTOKENS...".into());
    };
    let (device, dtype, runs) = (device(place)?, dtype(kind)?, runs.parse::<usize>()?.max(1));
    let heads = std::env::var("ATTENTION_HEADS").map_or(Ok(32), |heads| heads.parse())?;
    let options = Attention { causal: true, ..Attention::full(1.0 / (WIDTH as f64).sqrt()) };
    for shape in shapes {
        let (batch, tokens) = shape.split_once('x').ok_or_else(|| format!("{shape}: expected BATCHxTOKENS"))?;
        let sizes = [batch.parse()?, heads, tokens.parse()?, WIDTH];
        let [q, k, v] = [random(sizes, 0, dtype, &device)?, random(sizes, 1, dtype, &device)?, random(sizes, 2, dtype, &device)?];
        let [q0, k0, v0] = [&q, &k, &v].map(|var| var.as_tensor().detach());
        let forward = median(times(&device, runs, || attention(&q0, &k0, &v0, &options).map(drop))?);
        let both = median(times(&device, runs, || attention(&q, &k, &v, &options)?.backward().map(drop))?);
        println!(r#"{{"shape": "{shape}", "heads": {heads}, "dtype": "{kind}", "forward_ms": {forward}, "both_ms": {both}}}"#);
    }
    Ok(())
}
