use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, Result, Tensor, Var};
use ctscribe_ops::{self as ops, Attention};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::check::{flat, noise};

const SHAPES: [[usize; 3]; 4] = [[1, 2, 8], [2, 5, 16], [1, 33, 24], [3, 17, 64]];

/// Pre-norm attention over x and a context, then a feed-forward; dropout after each.
#[derive(Clone)]
struct Layer {
    norm: Var,
    q: Var,
    kv: Var,
    up: Var,
    /// No variable: frozen.
    down: Tensor,
}

impl Layer {
    fn new(width: usize, seed: u64) -> Self {
        let var = |shape: &[usize], seed: u64| Var::from_tensor(&(noise(shape, seed) * 0.2).unwrap()).unwrap();
        let (q, kv) = (var(&[width, width], seed + 1), var(&[width, width], seed + 2));
        let up = var(&[2 * width, width], seed + 3);
        Layer { norm: var(&[width], seed), q, kv, up, down: (noise(&[width, 2 * width], seed + 4) * 0.2).unwrap() }
    }

    fn vars(&self) -> [&Var; 4] {
        [&self.norm, &self.q, &self.kv, &self.up]
    }

    /// x: (B, L, C), context: (B, M, C) -> (B, L, C).
    fn forward(&self, x: &Tensor, context: &Tensor, mut rng: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let mut drop = |x: Tensor| if let Some(rng) = rng.as_deref_mut() { ops::dropout(&x, 0.3, rng) } else { Ok(x) };
        let q = ops::linear(&ops::rms_norm(x, &self.norm, 1e-6)?, &self.q, None)?.unsqueeze(1)?;
        let (k, v) = (ops::linear(context, &self.kv, None)?.unsqueeze(1)?, ops::linear(context, &self.q, None)?.unsqueeze(1)?);
        let x = (x + drop(ops::attention(&q, &k, &v, &Attention::full(0.3))?.squeeze(1)?)?)?;
        let hidden = ops::gelu(&ops::linear(&ops::rms_norm(&x, &self.norm, 1e-6)?, &self.up, None)?)?;
        &x + drop(ops::frozen_linear(&hidden, &self.down, None)?)?
    }
}

/// How the layers enter the graph.
#[derive(Clone, Copy, Debug)]
enum Way {
    Graph,
    /// Each as a block of its own.
    Checkpoints,
    /// As one operation.
    Layers,
}

const RUN_AGAIN: [Way; 2] = [Way::Checkpoints, Way::Layers];

struct Stack {
    layers: Vec<Layer>,
    x: Var,
    context: Var,
}

impl Stack {
    fn new([b, l, c]: [usize; 3]) -> Self {
        let layers = (0..3).map(|index| Layer::new(c, 10 * index)).collect();
        let var = |seed| Var::from_tensor(&noise(&[b, l, c], seed)).unwrap();
        Stack { layers, x: var(100), context: var(101) }
    }

    fn vars(&self) -> Vec<&Var> {
        self.layers.iter().flat_map(Layer::vars).chain([&self.x, &self.context]).collect()
    }

    /// The output, and the draw that comes next.
    fn forward(&self, way: Way, dropout: bool) -> Result<(Tensor, u64)> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut x = self.x.as_tensor().clone();
        if matches!(way, Way::Layers) {
            let again = |layer: Layer| move |x: &[Tensor], rng: Option<&mut ChaCha8Rng>| layer.forward(&x[0], &x[1], rng);
            let layers = self.layers.iter().cloned().map(again).collect();
            x = ops::checkpoint_layers(&[&x, &self.context], dropout.then_some(&mut rng), layers)?;
            return Ok((x, rng.random()));
        }
        for layer in &self.layers {
            // a view of its own: the gradients of a layer's two uses of the context are added before those of other layers
            let context = self.context.reshape(self.context.shape())?;
            let rng = dropout.then_some(&mut rng);
            x = if matches!(way, Way::Checkpoints) {
                let layer = layer.clone();
                ops::checkpoint(&[&x, &context], rng, move |x, rng| layer.forward(&x[0], &x[1], rng))?
            } else {
                layer.forward(&x, &context, rng)?
            };
        }
        Ok((x, rng.random()))
    }

    fn gradients(&self, way: Way, dropout: bool) -> (Vec<f32>, u64, GradStore) {
        let (y, draw) = self.forward(way, dropout).unwrap();
        let loss = (&y * noise(y.dims(), 99)).unwrap().sum_all().unwrap();
        (flat(&y), draw, loss.backward().unwrap())
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[track_caller]
fn assert_same(vars: &[&Var], kept: &GradStore, recomputed: &GradStore) {
    for (index, var) in vars.iter().enumerate() {
        let [kept, recomputed] = [kept, recomputed].map(|store| flat(store.get(var).unwrap_or_else(|| panic!("no gradient of {index}"))));
        assert!(kept.iter().any(|gradient| *gradient != 0.0), "the gradient of {index} is zero");
        assert_eq!(bits(&kept), bits(&recomputed), "gradient of variable {index}");
    }
}

#[test]
fn recomputed_layers_give_the_same_output_gradients_and_draws_to_the_bit() {
    for (shape, dropout) in SHAPES.iter().flat_map(|shape| [(*shape, false), (*shape, true)]) {
        let stack = Stack::new(shape);
        let kept = stack.gradients(Way::Graph, dropout);
        for way in RUN_AGAIN {
            let recomputed = stack.gradients(way, dropout);
            assert_eq!(bits(&kept.0), bits(&recomputed.0), "{shape:?}, {way:?}");
            assert_eq!(kept.1, recomputed.1, "{shape:?}, {way:?}: the generator is left elsewhere");
            assert_same(&stack.vars(), &kept.2, &recomputed.2);
        }
    }
}

#[test]
fn worker_threads_and_a_second_backward_pass_give_the_same_bits() {
    let stack = Stack::new(SHAPES[2]);
    let (_, _, expected) = stack.gradients(Way::Graph, true);
    for way in RUN_AGAIN {
        std::thread::scope(|scope| {
            for worker in (0..3).map(|_| scope.spawn(|| stack.gradients(way, true).2)).collect::<Vec<_>>() {
                assert_same(&stack.vars(), &expected, &worker.join().unwrap());
            }
        });
        let (y, _) = stack.forward(way, true).unwrap();
        let loss = (&y * noise(y.dims(), 99)).unwrap().sum_all().unwrap();
        loss.backward().unwrap();
        assert_same(&stack.vars(), &expected, &loss.backward().unwrap());
    }
}

#[test]
fn the_graph_holds_no_node_of_the_inside() {
    let stack = Stack::new(SHAPES[1]);
    let values = |way: Way| -> usize {
        let (y, _) = stack.forward(way, true).unwrap();
        y.sorted_nodes().iter().filter(|node| !node.is_variable()).map(|node| node.elem_count()).sum()
    };
    let width = SHAPES[1].iter().product::<usize>();
    // a layer: its output, its view of the context, six knots of one value
    assert_eq!(values(Way::Checkpoints), 3 * (2 * width + 6));
    // the output, two knots of inputs, four of each layer's variables
    assert_eq!(values(Way::Layers), width + 2 + 3 * 4);
    assert!(values(Way::Graph) > 3 * 10 * width);
}

#[test]
fn without_anything_to_train_the_block_runs_once_and_leaves_no_graph() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let x = noise(&[2, 3], 1);
    let y = ops::checkpoint(&[&x], None::<&mut ChaCha8Rng>, move |x, _| {
        count.fetch_add(1, Ordering::Relaxed);
        x[0].sqr()
    });
    let y: Tensor = y.unwrap();
    assert!(!y.track_op());
    y.sum_all().unwrap().backward().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(flat(&y), flat(&x.sqr().unwrap()));
}

#[test]
fn variables_alone_inputs_alone_and_unused_inputs_get_their_gradients() {
    let (x, w) = (noise(&[3, 4], 1), Var::from_tensor(&noise(&[4], 2)).unwrap());
    let weight = w.clone();
    let scaled = ops::checkpoint(&[&x], None::<&mut ChaCha8Rng>, move |x, _| x[0].broadcast_mul(&weight)).unwrap();
    let grads = scaled.sum_all().unwrap().backward().unwrap();
    assert_eq!(flat(grads.get(&w).unwrap()), flat(&x.sum(0).unwrap()));
    let (a, b) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&x).unwrap());
    let unused = (b.as_tensor() * 2.0).unwrap();
    let y = ops::checkpoint(&[a.as_tensor(), &unused], None::<&mut ChaCha8Rng>, |x, _| x[0].sqr()).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(flat(grads.get(&a).unwrap()), flat(&(&x * 2.0).unwrap()));
    assert!(flat(grads.get(&b).unwrap()).iter().all(|gradient| *gradient == 0.0));
}

#[test]
fn views_other_types_and_a_block_that_hands_its_input_on_are_taken() {
    let x = Var::from_tensor(&noise(&[4, 6], 1).to_dtype(DType::F64).unwrap()).unwrap();
    let f = |x: &Tensor| x.t()?.narrow(0, 1, 2)?.sqr();
    let y = ops::checkpoint(&[&x.t().unwrap().narrow(1, 1, 3).unwrap()], None::<&mut ChaCha8Rng>, move |x, _| f(&x[0])).unwrap();
    let expected = f(&x.t().unwrap().narrow(1, 1, 3).unwrap()).unwrap();
    assert_eq!(y.to_vec2::<f64>().unwrap(), expected.to_vec2::<f64>().unwrap());
    let gradient = |y: &Tensor| y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(gradient(&y), gradient(&expected));
    let same = ops::checkpoint(&[x.as_tensor()], None::<&mut ChaCha8Rng>, |x, _| x[0].narrow(0, 2, 2)).unwrap();
    assert_eq!(same.to_vec2::<f64>().unwrap(), x.narrow(0, 2, 2).unwrap().to_vec2::<f64>().unwrap());
}

#[test]
fn a_block_that_fails_in_the_backward_pass_says_why() {
    let x = Var::from_tensor(&Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()).unwrap();
    let runs = AtomicUsize::new(0);
    let y = ops::checkpoint(&[x.as_tensor()], None::<&mut ChaCha8Rng>, move |x, _| match runs.fetch_add(1, Ordering::Relaxed) {
        0 => x[0].sqr(),
        _ => Err(Error::Msg("the second run".into())),
    });
    assert!(y.unwrap().sum_all().unwrap().backward().unwrap_err().to_string().contains("the second run"));
}
