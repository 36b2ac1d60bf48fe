use candle_core::{DType, Device, Tensor};
use ctscribe_ops::{
    Attention, ConvPadding, Matrix, attend_cached, attention, depthwise_conv3d, dropout, geglu, layer_norm, linear_cross_entropy, rms_norm,
    rope, rope_tables, swiglu,
};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::check::{agrees, device, random, tolerance};

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn attention_agrees_for_every_head_width_mask_and_grouping() {
    let Some(device) = device() else { return };
    for dtype in TYPES {
        for (d, (l, m)) in [32, 64, 80, 128].into_iter().flat_map(|d| [(1, 7), (65, 65), (33, 130)].map(|sizes| (d, sizes))) {
            for (heads, kv, causal) in [(4, 4, true), (4, 2, false), (6, 1, true)] {
                let inputs = [random(&[2, heads, l, d], 1), random(&[2, kv, m, d], 2), random(&[2, kv, m, d], 3)];
                let options = Attention { causal, ..Attention::full(1.0 / (d as f64).sqrt()) };
                agrees(&format!("attention D {d}, L {l}, M {m}"), &device, dtype, &inputs, &|x| attention(&x[0], &x[1], &x[2], &options));
            }
        }
    }
}

#[test]
fn attention_with_padded_keys_agrees() {
    let Some(device) = device() else { return };
    let mask: Vec<f32> = (0..2 * 70).map(|i| f32::from(u8::from(i % 70 < 40 + i / 70 * 20))).collect();
    let mask = Tensor::from_vec(mask, (2, 70), &Device::Cpu).unwrap();
    for dtype in TYPES {
        let inputs = [random(&[2, 3, 40, 64], 1), random(&[2, 3, 70, 64], 2), random(&[2, 3, 70, 64], 3)];
        agrees("masked attention", &device, dtype, &inputs, &|x| {
            let mask = mask.to_device(x[0].device())?;
            attention(&x[0], &x[1], &x[2], &Attention { key_mask: Some(&mask), ..Attention::full(0.125) })
        });
    }
}

#[test]
fn one_query_against_its_cache_agrees_with_the_same_query_among_others() {
    let Some(device) = device() else { return };
    for (dtype, (d, m)) in TYPES.into_iter().flat_map(|dtype| [(32, 5), (64, 257), (80, 300), (128, 1000)].map(|sizes| (dtype, sizes))) {
        let on_device = |shape: &[usize], seed| random(shape, seed).to_dtype(dtype).unwrap().to_device(&device).unwrap();
        let (q, k, v) = (on_device(&[2, 8, 5, d], 1), on_device(&[2, 4, m, d], 2), on_device(&[2, 4, m, d], 3));
        let options = Attention { causal: true, ..Attention::full(0.09) };
        let values = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let all = attention(&q, &k, &v, &options).unwrap().narrow(2, 4, 1).unwrap();
        let one = attention(&q.narrow(2, 4, 1).unwrap(), &k, &v, &options).unwrap();
        assert!(values(&all).iter().zip(values(&one)).all(|(a, b)| (a - b).abs() < tolerance(dtype).min(1e-2)), "{dtype:?}, D {d}, M {m}");
    }
}

#[test]
fn new_tokens_attend_over_their_cache_wherever_they_stand_in_it() {
    let Some(device) = device() else { return };
    let values = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (dtype, new) in TYPES.into_iter().flat_map(|dtype| [1, 3].map(|new| (dtype, new))) {
        let on_device = |shape: &[usize], seed| random(shape, seed).to_dtype(dtype).unwrap().to_device(&device).unwrap();
        // rows of a projection's output, heads side by side
        let heads = |count: usize, seed| on_device(&[2, new, count, 64], seed).transpose(1, 2).unwrap();
        let (q, k, v) = (heads(4, 1), heads(2, 2), heads(2, 3));
        // of the cache's 40 places each text has filled another number; behind them lies what is not to be seen
        let (stores, lengths) = ([on_device(&[2, 2, 40, 64], 4), on_device(&[2, 2, 40, 64], 5)], [new, 31]);
        let before = stores.each_ref().map(|store| store.copy().unwrap());
        let ends = Tensor::new(&lengths.map(|length| length as u32), &device).unwrap();
        let found = attend_cached([&q, &k, &v], [&stores[0], &stores[1]], &ends, 0.125).unwrap().unwrap();
        for (text, length) in lengths.into_iter().enumerate() {
            let own = |x: &Tensor| x.narrow(0, text, 1).unwrap();
            // what was there, with the new rows in their places
            let held = |before: &Tensor, new: &Tensor| {
                let (old, rest) = (length - new.dim(2).unwrap(), 40 - length);
                let parts = [own(before).narrow(2, 0, old), Ok(own(new)), own(before).narrow(2, length, rest)].map(Result::unwrap);
                Tensor::cat(&parts.iter().filter(|part| part.dim(2).unwrap() > 0).collect::<Vec<_>>(), 2).unwrap()
            };
            let expected = [held(&before[0], &k), held(&before[1], &v)];
            for (store, expected) in stores.iter().zip(&expected) {
                assert_eq!(values(&own(store)), values(expected), "{dtype:?}, {new} new: what the cache of text {text} holds");
            }
            let [keys, values_of] = expected.map(|store| store.narrow(2, 0, length).unwrap());
            let options = Attention { causal: true, ..Attention::full(0.125) };
            let expected = attention(&own(&q), &keys, &values_of, &options).unwrap();
            let apart = values(&own(&found)).iter().zip(values(&expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < tolerance(dtype), "{dtype:?}, {new} new, text {text}: {apart}");
        }
    }
}

#[test]
fn norms_agree() {
    let Some(device) = device() else { return };
    for dtype in TYPES {
        for width in [4, 100, 512, 4096] {
            let inputs = [random(&[3, 11, width], 1), random(&[width], 2), random(&[width], 3)];
            agrees("layer norm", &device, dtype, &inputs, &|x| layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5));
            agrees("rms norm", &device, dtype, &inputs[..2], &|x| rms_norm(&x[0], &x[1], 1e-5));
        }
    }
}

#[test]
fn rope_and_gated_activations_agree() {
    let Some(device) = device() else { return };
    for dtype in TYPES {
        agrees("rope", &device, dtype, &[random(&[2, 3, 17, 128], 1)], &|x| {
            let (cos, sin) = rope_tables(5, 17, 128, 1e4, x[0].device())?;
            rope(&x[0], &cos, &sin)
        });
        let gates = [random(&[5, 1003], 1), random(&[5, 1003], 2)];
        agrees("swiglu", &device, dtype, &gates, &|x| swiglu(&x[0], &x[1]));
        agrees("geglu", &device, dtype, &gates, &|x| geglu(&x[0], &x[1]));
    }
}

#[test]
fn dropout_keeps_what_it_keeps_on_the_processor() {
    let Some(device) = device() else { return };
    for (dtype, count) in TYPES.into_iter().flat_map(|dtype| [7, 5000].map(|count| (dtype, count))) {
        // its gradient is the same operation
        agrees("dropout", &device, dtype, &[random(&[count], 1)], &|x| {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            rng.set_stream(3);
            let first = dropout(&x[0], 0.3, &mut rng)?;
            first + dropout(&x[0], 0.6, &mut rng)?
        });
    }
}

#[test]
fn depthwise_convolution_agrees() {
    let Some(device) = device() else { return };
    for dtype in TYPES {
        for padding in [ConvPadding::Causal, ConvPadding::Same] {
            let inputs = [random(&[2, 5, 4, 7, 40], 1), random(&[40, 1, 3, 3, 3], 2), random(&[40], 3)];
            agrees("conv3d", &device, dtype, &inputs, &|x| depthwise_conv3d(&x[0], &x[1], &x[2], padding));
        }
    }
}

#[test]
fn cross_entropy_of_a_head_agrees() {
    let Some(device) = device() else { return };
    let (targets, weights): (Vec<u32>, Vec<f32>) = (0..37u32).map(|i| (i * 13 % 1001, if i % 4 == 1 { 0.0 } else { 1.0 / 28.0 })).unzip();
    let head = random(&[1001, 64], 2);
    for dtype in TYPES {
        agrees("cross-entropy", &device, dtype, &[random(&[37, 64], 1)], &|x| {
            let to = x[0].device();
            let head = Matrix::from_tensor(&head.to_dtype(dtype)?.to_dtype(x[0].dtype())?.to_device(to)?)?;
            linear_cross_entropy(&x[0], &head, &Tensor::new(targets.as_slice(), to)?, &Tensor::new(weights.as_slice(), to)?)
        });
    }
}
