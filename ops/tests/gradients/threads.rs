use candle_core::Tensor;
use ctscribe_ops::{self as ops, Attention, ConvPadding};

use crate::check::{Inputs, noise, run};

/// Output and gradients as bits, computed with this many threads.
fn bits(threads: usize, inputs: Inputs, f: &(dyn Fn(Inputs) -> candle_core::Result<Tensor> + Sync)) -> Vec<Vec<u32>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (y, grads) = pool.install(|| run(inputs, f));
    std::iter::once(y).chain(grads).map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
}

fn assert_same_bits(what: &str, inputs: Inputs, f: &(dyn Fn(Inputs) -> candle_core::Result<Tensor> + Sync)) {
    let one = bits(1, inputs, f);
    for threads in [2, 5] {
        assert!(bits(threads, inputs, f) == one, "{what}: {threads} threads differ from one");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let rows = [noise(&[1500, 70], 1), noise(&[70], 2), noise(&[70], 3)];
    assert_same_bits("layer norm", &rows, &|x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5));
    let heads = [noise(&[9, 4, 40, 32], 1), noise(&[9, 2, 40, 32], 2), noise(&[9, 2, 40, 32], 3), noise(&[4, 40, 40], 4)];
    let biased = |x: Inputs| {
        let options = Attention { scale: 0.2, causal: true, key_mask: None, bias: Some(&x[3]) };
        ops::attention(&x[0], &x[1], &x[2], &options)
    };
    assert_same_bits("attention", &heads, &biased);
    let volume = [noise(&[2, 20, 6, 6, 40], 1), noise(&[40, 1, 3, 3, 3], 2), noise(&[40], 3)];
    assert_same_bits("conv", &volume, &|x| ops::depthwise_conv3d(&x[0], &x[1], &x[2], ConvPadding::Same));
}
