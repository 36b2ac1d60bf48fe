use candle_core::{DType, Device, Result, Tensor, Var};
use ctscribe_ops::{self as ops, AdaptedMatrix, Attention, AttentionBlock, DropoutMask, LowRank, Matrix, composed};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::check::{check, flat, noise};

fn weight(rows: usize, columns: usize, seed: u64) -> Tensor {
    (noise(&[rows, columns], seed) * (0.5 / (columns as f64).sqrt())).unwrap()
}

/// The adapter of one of a block's matrices: rank and seed of the dropout's mask.
type Low = Option<(usize, Option<u64>)>;
type Adapters<'a> = &'a [Low];

const SCALE: f64 = 0.7;
const DROPPED: f64 = 0.3;

/// Input values of a block, its frozen weights, A and B of its adapters after x.
fn inputs(x: &[usize], weights: &[Tensor], adapters: Adapters) -> Vec<Tensor> {
    let of = |(place, (matrix, adapter)): (usize, (&Tensor, &Low))| {
        let ((outputs, inputs), seed) = (matrix.dims2().unwrap(), 50 + 2 * place as u64);
        adapter.map(|(rank, _)| [weight(rank, inputs, seed), weight(outputs, rank, seed + 1)])
    };
    std::iter::once(noise(x, 1)).chain(weights.iter().zip(adapters).enumerate().filter_map(of).flatten()).collect()
}

fn mask(seed: u64, x: &Tensor) -> DropoutMask {
    DropoutMask::draw(x.elem_count(), DROPPED, &mut ChaCha8Rng::seed_from_u64(seed))
}

/// The weights with the adapters whose tensors follow x in `inputs`; `rows`: what stands for the inputs of each matrix.
fn adapted<const N: usize>(matrices: &[Matrix; N], adapters: Adapters, inputs: &[Tensor], of_input: [&Tensor; N]) -> [AdaptedMatrix; N] {
    let mut tensors = inputs[1..].iter().cloned();
    std::array::from_fn(|place| {
        let low_rank = adapters[place].map(|(_, seed)| LowRank {
            a: tensors.next().unwrap(),
            b: tensors.next().unwrap(),
            scale: SCALE,
            dropout: seed.map(|seed| mask(seed, of_input[place])),
        });
        AdaptedMatrix { matrix: matrices[place].clone(), low_rank }
    })
}

/// x W^T + scale drop(x) A^T B^T of matrix `place`.
fn project(x: &Tensor, weights: &[Tensor], adapters: Adapters, inputs: &[Tensor], place: usize) -> Result<Tensor> {
    let y = composed::linear(x, &weights[place], None)?;
    let Some((_, seed)) = adapters[place] else { return Ok(y) };
    let first = 1 + 2 * adapters[..place].iter().flatten().count();
    let x = match seed {
        Some(seed) => ops::dropout(x, DROPPED, &mut ChaCha8Rng::seed_from_u64(seed))?,
        None => x.clone(),
    };
    y + (composed::linear(&composed::linear(&x, &inputs[first], None)?, &inputs[first + 1], None)? * SCALE)?
}

fn feed_forward(x: &[Tensor], norm: &Tensor, weights: &[Tensor], adapters: Adapters) -> Result<Tensor> {
    let normed = composed::rms_norm(&x[0], norm, 1e-5)?;
    let hidden = composed::swiglu(&project(&normed, weights, adapters, x, 0)?, &project(&normed, weights, adapters, x, 1)?)?;
    &x[0] + project(&hidden, weights, adapters, x, 2)?
}

fn matrices<const N: usize>(weights: &[Tensor]) -> [Matrix; N] {
    std::array::from_fn(|place| Matrix::from_tensor(&weights[place]).unwrap())
}

const PLAIN: Low = None;

#[test]
fn a_frozen_feed_forward_with_and_without_adapters_equals_its_composed_form() {
    let of_three: [[Low; 3]; 5] = [
        [PLAIN; 3],
        [Some((2, None)), Some((3, None)), Some((1, None))],
        [PLAIN, Some((3, None)), PLAIN],
        [Some((2, Some(5))), Some((3, None)), Some((4, Some(6)))],
        [Some((2, None)), Some((3, Some(5))), Some((2, None))],
    ];
    for (shape, inner) in [(vec![1, 6], 9), (vec![2, 5, 16], 40), (vec![70, 24], 33)] {
        let width = shape[shape.len() - 1];
        let (norm, weights) = (noise(&[width], 2), [weight(inner, width, 3), weight(inner, width, 4), weight(width, inner, 5)]);
        let matrices = matrices::<3>(&weights);
        for adapters in of_three {
            let rows = shape.iter().product::<usize>() / width;
            let hidden = noise(&[rows, inner], 9);
            let fused = |x: &[Tensor]| {
                let adapted = adapted(&matrices, &adapters, x, [&x[0], &x[0], &hidden]);
                ops::gated_feed_forward(&x[0], &norm, 1e-5, adapted)
            };
            check(&format!("feed-forward {shape:?} {adapters:?}"), &inputs(&shape, &weights, &adapters), &fused, &|x| {
                feed_forward(x, &norm, &weights, &adapters)
            });
        }
    }
}

#[test]
fn a_feed_forward_that_does_not_fit_is_refused_with_all_sizes() {
    let matrix = |rows, columns| Matrix::from_tensor(&weight(rows, columns, 3)).unwrap();
    let (gate, up, down) = (matrix(5, 4), matrix(6, 4), matrix(4, 5));
    let refused = |adapted| ops::gated_feed_forward(&noise(&[2, 4], 1), &noise(&[4], 2), 1e-5, adapted).unwrap_err().to_string();
    let message = refused([(&gate).into(), (&up).into(), (&down).into()]);
    assert!(message.contains("(5, 4), (6, 4), (4, 5)"), "{message}");
    let low_rank = Some(LowRank { a: weight(2, 5, 1), b: weight(5, 2, 2), scale: 1.0, dropout: None });
    let message = refused([AdaptedMatrix { matrix: gate.clone(), low_rank }, (&gate).into(), (&down).into()]);
    assert!(message.contains("A is Tensor[dims 2, 5;"), "{message}");
}

/// (B, L, C, H, H', D)
type Sizes = (usize, usize, usize, usize, usize, usize);

fn attention_weights((_, _, c, h, kv, d): Sizes) -> [Tensor; 4] {
    [weight(h * d, c, 3), weight(kv * d, c, 4), weight(kv * d, c, 5), weight(c, h * d, 6)]
}

fn attend(x: &[Tensor], sizes: Sizes, norm: &Tensor, weights: &[Tensor], adapters: Adapters, mask: Option<&Tensor>) -> Result<Tensor> {
    let (b, l, _, h, kv, d) = sizes;
    let (cos, sin) = ops::rope_tables(0, l, d, 10_000.0, &Device::Cpu)?;
    let normed = composed::rms_norm(&x[0], norm, 1e-5)?;
    let split = |place: usize, heads: usize| -> Result<Tensor> {
        project(&normed, weights, adapters, x, place)?.reshape((b, l, heads, d))?.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = (composed::rope(&split(0, h)?, &cos, &sin)?, composed::rope(&split(1, kv)?, &cos, &sin)?, split(2, kv)?);
    let options = Attention { causal: true, key_mask: mask, ..Attention::full(1.0 / (d as f64).sqrt()) };
    let mixed = composed::attention_with_weights(&q, &k, &v, &options)?.0.transpose(1, 2)?.contiguous()?.reshape((b, l, h * d))?;
    &x[0] + project(&mixed, weights, adapters, x, 3)?
}

#[test]
fn an_attention_block_with_and_without_adapters_equals_its_composed_form() {
    let of_four: [[Low; 4]; 4] = [
        [PLAIN; 4],
        [Some((2, None)), PLAIN, Some((3, None)), PLAIN],
        [Some((2, None)); 4],
        [Some((2, Some(5))), Some((3, None)), PLAIN, Some((4, Some(6)))],
    ];
    for sizes in [(1, 3, 8, 2, 2, 4), (2, 9, 24, 4, 2, 6), (2, 40, 16, 3, 1, 8)] {
        let (b, l, c, h, _, d) = sizes;
        let (norm, weights) = (noise(&[c], 2), attention_weights(sizes));
        let (cos, sin) = ops::rope_tables(0, l, d, 10_000.0, &Device::Cpu).unwrap();
        let matrices = matrices::<4>(&weights);
        let seen: Vec<u32> = (0..b * l).map(|at| u32::from(at / l == 0 || at % l < l - 2)).collect();
        let seen = Tensor::from_vec(seen, (b, l), &Device::Cpu).unwrap();
        let mixed = noise(&[b, l, h * d], 9);
        for (adapters, mask) in of_four.iter().zip([None, Some(&seen), None, Some(&seen)]) {
            let fused = |x: &[Tensor]| {
                let projections = adapted(&matrices, adapters, x, [&x[0], &x[0], &x[0], &mixed]);
                ops::attention_block(&x[0], &AttentionBlock { norm: &norm, eps: 1e-5, projections, cos: &cos, sin: &sin, key_mask: mask })
            };
            check(&format!("attention block {sizes:?} {adapters:?}"), &inputs(&[b, l, c], &weights, adapters), &fused, &|x| {
                attend(x, sizes, &norm, &weights, adapters, mask)
            });
        }
    }
}

#[test]
fn an_attention_block_that_does_not_fit_is_refused_with_all_sizes() {
    let weights = attention_weights((1, 3, 8, 2, 2, 4));
    let (norm, (cos, sin)) = (noise(&[8], 2), ops::rope_tables(0, 3, 4, 10_000.0, &Device::Cpu).unwrap());
    let block = |projections| AttentionBlock { norm: &norm, eps: 1e-5, projections, cos: &cos, sin: &sin, key_mask: None };
    let right = matrices::<4>(&weights).each_ref().map(AdaptedMatrix::from);
    let mut wrong = right.clone();
    wrong[3] = (&Matrix::from_tensor(&weight(8, 9, 1)).unwrap()).into();
    let message = ops::attention_block(&noise(&[1, 3, 8], 1), &block(wrong)).unwrap_err().to_string();
    assert!(message.contains("(8, 8), (8, 8), (8, 8), (8, 9)"), "{message}");
    let message = ops::attention_block(&noise(&[1, 2, 8], 1), &block(right)).unwrap_err().to_string();
    assert!(message.contains("[1, 2, 8]") && message.contains("[3, 2]"), "{message}");
}

/// A layer of both blocks with adapters, its matrices in bf16.
struct Layer {
    norm: Tensor,
    attention: [Matrix; 4],
    feed_forward: [Matrix; 3],
    vars: Vec<Var>,
}

impl Layer {
    /// With an adapter of each matrix of attention's and, or not, of down.
    fn new(down: bool) -> Self {
        let bf16 = |weight: Tensor| Matrix::from_tensor(&weight.to_dtype(DType::BF16).unwrap()).unwrap();
        let adapters = (0..).zip((0..4).map(|_| 32).chain(down.then_some(48)));
        let vars = adapters.flat_map(|(i, inputs)| [weight(3, inputs, 60 + i), weight(32, 3, 70 + i)]);
        let vars = vars.map(|tensor| Var::from_tensor(&tensor).unwrap());
        Layer {
            norm: noise(&[32], 2),
            attention: attention_weights((1, 20, 32, 4, 4, 8)).map(bf16),
            feed_forward: [weight(48, 32, 3), weight(48, 32, 4), weight(32, 48, 5)].map(bf16),
            vars: vars.collect(),
        }
    }

    /// `closing`: as the whole of a checkpointed block.
    fn forward(&self, x: &Tensor, closing: bool) -> Result<Tensor> {
        let low = |place: usize| {
            let [a, b] = [0, 1].map(|i| Some(self.vars.get(2 * place + i)?.as_tensor().clone()));
            Some(LowRank { a: a?, b: b?, scale: SCALE, dropout: None })
        };
        let (cos, sin) = ops::rope_tables(0, 20, 8, 10_000.0, &Device::Cpu)?;
        let projections = std::array::from_fn(|i| AdaptedMatrix { matrix: self.attention[i].clone(), low_rank: low(i) });
        let x =
            ops::attention_block(x, &AttentionBlock { norm: &self.norm, eps: 1e-5, projections, cos: &cos, sin: &sin, key_mask: None })?;
        let apply = if closing { ops::closing_feed_forward } else { ops::gated_feed_forward };
        let [gate, up, down] = self.feed_forward.each_ref().map(AdaptedMatrix::from);
        apply(&x, &self.norm, 1e-5, [gate, up, AdaptedMatrix { low_rank: low(4), ..down }])
    }
}

#[test]
fn a_second_backward_pass_and_a_recomputed_layer_give_the_same_bits_in_bf16_too() {
    for (down, closing) in [(false, false), (false, true), (true, true)] {
        let (layer, x) = (std::sync::Arc::new(Layer::new(down)), Var::from_tensor(&noise(&[1, 20, 32], 1)).unwrap());
        let inner = layer.clone();
        let recomputed =
            ops::checkpoint(&[x.as_tensor()], None, move |x: &[Tensor], _: Option<&mut ChaCha8Rng>| inner.forward(&x[0], closing)).unwrap();
        let plain = layer.forward(&x, false).unwrap();
        assert_eq!(flat(&plain), flat(&recomputed));
        let [plain, recomputed] = [plain, recomputed].map(|y| y.sqr().unwrap().sum_all().unwrap());
        let stores = [plain.backward().unwrap(), plain.backward().unwrap(), recomputed.backward().unwrap()];
        for var in layer.vars.iter().chain([&x]) {
            let [first, second, again] = stores.each_ref().map(|store| flat(store.get(var).expect("every variable has a gradient")));
            assert_eq!(first, second);
            assert_eq!(first, again);
            assert!(first.iter().any(|&gradient| gradient != 0.0));
        }
        assert!(stores[0].get(&layer.norm).is_none(), "the norm is frozen");
    }
}
