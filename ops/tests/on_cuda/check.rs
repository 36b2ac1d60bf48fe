//! Inputs on both devices, and comparison of what comes of them.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The first CUDA device, or None and a word on stderr.
pub fn device() -> Option<Device> {
    match Device::new_cuda_with_stream(0) {
        Ok(device) => Some(device),
        Err(e) => {
            eprintln!("no CUDA device, nothing was compared: {e}");
            None
        }
    }
}

/// Values within (-1, 1), the same for the same seed.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Largest difference as a share of the largest value: what rounding to the type allows over the sums of these sizes.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 2e-2,
        DType::F16 => 3e-3,
        _ => 2e-5,
    }
}

/// The value of `operation` and the gradients of `inputs`, all as f32 on the CPU. The output's gradient is fixed by its shape.
fn run(inputs: &[Tensor], operation: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = operation(&tensors)?;
    let upstream = random(y.dims(), 99).to_dtype(y.dtype())?.to_device(y.device())?;
    let store = (&y * upstream)?.sum_all()?.backward()?;
    let gradients = vars.iter().filter_map(|var| store.get(var).cloned());
    std::iter::once(y.clone()).chain(gradients).map(|x| x.to_dtype(DType::F32)?.to_device(&Device::Cpu)).collect()
}

/// Runs `operation` on the CPU in f32 and on the device in `dtype`, on the same rounded inputs; values and gradients agree.
pub fn agrees(name: &str, device: &Device, dtype: DType, inputs: &[Tensor], operation: &dyn Fn(&[Tensor]) -> Result<Tensor>) {
    let rounded: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    let on_cpu: Vec<Tensor> = rounded.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let on_device: Vec<Tensor> = rounded.iter().map(|x| x.to_device(device).unwrap()).collect();
    let (expected, found) = (run(&on_cpu, operation).unwrap(), run(&on_device, operation).unwrap());
    assert_eq!(expected.len(), found.len(), "{name}: as many gradients on both devices");
    for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (expected, found) = (values(expected), values(found));
        let size = expected.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
        let worst = expected.iter().zip(&found).map(|(e, f)| if f.is_finite() { (e - f).abs() } else { f32::INFINITY }).fold(0.0, f32::max);
        assert!(worst <= tolerance(dtype) * size, "{name} {dtype:?}, output {i}: off by {worst} of {size}");
    }
}
