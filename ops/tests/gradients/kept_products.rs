use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Attention, Bytes, Format, Held, Matrix};
use rand_chacha::ChaCha8Rng;

use crate::check::{flat, noise};

/// A weight's bytes, and how often a product has asked for them.
struct Counted {
    bytes: Vec<u8>,
    reads: AtomicUsize,
}

impl Held for Counted {}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        self.reads.fetch_add(1, Ordering::Relaxed);
        &self.bytes
    }
}

/// Attention with an adapted query, then a gated feed-forward, both residual; all but the adapter is frozen.
#[derive(Clone)]
struct Block {
    mix: Matrix,
    gate: Matrix,
    down: Matrix,
    norm: Tensor,
    adapter: Var,
}

const WIDTH: usize = 24;
const INNER: usize = 40;

impl Block {
    fn new(dtype: DType) -> Self {
        let weight = |shape: (usize, usize), seed| (noise(&[shape.0, shape.1], seed) * 0.2).unwrap().to_dtype(dtype).unwrap();
        let matrix = |shape, seed| Matrix::from_tensor(&weight(shape, seed)).unwrap();
        let adapter = Var::from_tensor(&(noise(&[WIDTH, WIDTH], 4) * 0.1).unwrap()).unwrap();
        let (mix, gate, down) = (matrix((WIDTH, WIDTH), 1), matrix((INNER, WIDTH), 2), matrix((WIDTH, INNER), 3));
        Block { mix, gate, down, norm: noise(&[WIDTH], 5), adapter }
    }

    /// x: (B, L, C) -> (B, L, C).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = ops::rms_norm(x, &self.norm, 1e-6)?;
        let mixed = self.mix.forward(&normed)?;
        let q = (&mixed + ops::linear(&normed, &self.adapter, None)?)?.unsqueeze(1)?;
        let k = mixed.unsqueeze(1)?;
        let x = (x + ops::attention(&q, &k, &k, &Attention { causal: true, ..Attention::full(0.3) })?.squeeze(1)?)?;
        let normed = ops::rms_norm(&x, &self.norm, 1e-6)?;
        let gate = self.gate.forward(&normed)?;
        &x + self.down.forward(&ops::swiglu(&gate, &gate)?)?
    }
}

/// How a layer enters the graph.
#[derive(Clone, Copy)]
enum Way {
    Graph,
    Recomputed,
    KeepingProducts,
}

/// The output of two layers, its loss, and the variables.
fn run(block: &Block, x: &Var, way: Way) -> (Tensor, Tensor) {
    let mut y = x.as_tensor().clone();
    for _ in 0..2 {
        let inner = block.clone();
        let inside = move |x: &[Tensor], _: Option<&mut ChaCha8Rng>| inner.forward(&x[0]);
        y = match way {
            Way::Graph => block.forward(&y),
            Way::Recomputed => ops::checkpoint(&[&y], None, inside),
            Way::KeepingProducts => ops::checkpoint_keeping_products(&[&y], None, inside),
        }
        .unwrap();
    }
    let loss = (&y * noise(y.dims(), 9)).unwrap().sum_all().unwrap();
    (y, loss)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn gradients(store: &GradStore, vars: [&Var; 2]) -> [Vec<f32>; 2] {
    vars.map(|var| flat(store.get(var).expect("every variable has a gradient")))
}

const LENGTHS: [usize; 3] = [1, 7, 45];

#[test]
fn products_kept_in_f32_give_the_graphs_output_and_gradients_to_the_bit() {
    for length in LENGTHS {
        let (block, x) = (Block::new(DType::F32), Var::from_tensor(&noise(&[2, length, WIDTH], 8)).unwrap());
        let (y, loss) = run(&block, &x, Way::Graph);
        let expected = gradients(&loss.backward().unwrap(), [&x, &block.adapter]).map(|values| bits(&values));
        for way in [Way::Recomputed, Way::KeepingProducts] {
            let (found, loss) = run(&block, &x, way);
            assert_eq!(bits(&flat(&found)), bits(&flat(&y)));
            // the second time nothing is kept any more
            for _ in 0..2 {
                assert_eq!(gradients(&loss.backward().unwrap(), [&x, &block.adapter]).map(|values| bits(&values)), expected);
            }
        }
    }
}

#[test]
fn products_kept_in_bf16_give_what_recomputed_ones_give_to_the_bit_and_what_the_graph_gives_nearly() {
    for length in LENGTHS {
        let (block, x) = (Block::new(DType::BF16), Var::from_tensor(&noise(&[2, length, WIDTH], 8)).unwrap());
        let (y, loss) = run(&block, &x, Way::Graph);
        let [input, adapter] = gradients(&loss.backward().unwrap(), [&x, &block.adapter]);
        let exact = [flat(&y), input, adapter];
        let [recomputed, kept] = [Way::Recomputed, Way::KeepingProducts].map(|way| {
            let (y, loss) = run(&block, &x, way);
            let [input, adapter] = gradients(&loss.backward().unwrap(), [&x, &block.adapter]);
            [flat(&y), input, adapter]
        });
        let norm = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        for ((kept, recomputed), exact) in kept.iter().zip(&recomputed).zip(&exact) {
            assert_eq!(bits(kept), bits(recomputed));
            let off: Vec<f32> = kept.iter().zip(exact).map(|(kept, exact)| kept - exact).collect();
            // bf16 has 8 bits: each of the eight results in a row, and a gate twice, is off by up to 0.2%
            assert!(norm(&off) <= 2e-2 * norm(exact), "{length}: off by {}", norm(&off) / norm(exact));
        }
    }
}

#[test]
fn a_kept_product_is_not_computed_again() {
    for (way, products) in [(Way::Graph, 2), (Way::KeepingProducts, 2), (Way::Recomputed, 3)] {
        let bytes: Vec<u8> = flat(&noise(&[INNER, WIDTH], 2)).iter().flat_map(|v| v.to_le_bytes()).collect();
        let counted = Arc::new(Counted { bytes, reads: AtomicUsize::new(0) });
        let shared: Bytes = counted.clone();
        let gate = Matrix::new(shared, 0..INNER * WIDTH * 4, Format::F32, (INNER, WIDTH)).unwrap();
        let (block, x) = (Block { gate, ..Block::new(DType::F32) }, Var::from_tensor(&noise(&[1, 30, WIDTH], 8)).unwrap());
        let before = counted.reads.load(Ordering::Relaxed);
        run(&block, &x, way).1.backward().unwrap();
        // two layers: forward, forward again where it is, and the gradient
        assert_eq!(counted.reads.load(Ordering::Relaxed) - before, 2 * products);
    }
}
