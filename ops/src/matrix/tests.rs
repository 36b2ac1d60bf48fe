use super::*;
use crate::few::FEW_ROWS;
use candle_core::Var;

fn noise(rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn forward_and_gradient_equal_candles_and_the_weight_has_none() {
    for rows in [3, 40] {
        let (x, weight) = (Var::from_tensor(&noise(rows, 70)).unwrap(), Var::from_tensor(&noise(50, 70)).unwrap());
        let matrix = Matrix::from_tensor(&weight).unwrap();
        let y = matrix.forward(x.as_tensor()).unwrap();
        assert!(largest_difference(&y.detach(), &x.as_detached_tensor().matmul(&weight.as_detached_tensor().t().unwrap()).unwrap()) < 1e-5);
        let upstream = noise(rows, 50);
        let store = (&y * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = upstream.matmul(&weight.as_detached_tensor()).unwrap();
        assert!(largest_difference(store.get(&x).unwrap(), &expected) < 1e-5);
        assert!(store.get(&weight).is_none());
    }
}

#[test]
fn rows_are_looked_up_and_reordered_without_being_moved() {
    let weight = noise(6, 8);
    let order = [4, 2, 0, 5, 3, 1];
    let matrix = Matrix::from_tensor(&weight.to_dtype(DType::BF16).unwrap()).unwrap();
    let expected = weight.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let expected = expected.index_select(&Tensor::new(&order, &Device::Cpu).unwrap(), 0).unwrap();
    let matrix = matrix.reordered(order.to_vec()).unwrap();
    assert_eq!(matrix.to_tensor().unwrap().to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
    assert_eq!(matrix.rows(&[1, 1]).unwrap().to_vec2::<f32>().unwrap()[1], expected.to_vec2::<f32>().unwrap()[1]);
    let exact = matrix.with_precision(Precision::F32);
    for rows in [2, 20] {
        let (x, grad) = (noise(rows, 8), noise(rows, 6));
        assert!(largest_difference(&exact.forward(&x).unwrap(), &x.matmul(&expected.t().unwrap()).unwrap()) < 1e-5);
        assert!(largest_difference(&exact.backward(&grad).unwrap(), &grad.matmul(&expected).unwrap()) < 1e-5);
    }
}

#[test]
fn a_copy_for_a_device_holds_the_rows_in_their_order_and_multiplies_alike() {
    let (weight, order) = (noise(6, 8), [4, 2, 0, 5, 3, 1]);
    let dtypes = [DType::F32, DType::F16, DType::BF16];
    for (dtype, exact) in dtypes.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
        let mut host = Matrix::from_tensor(&weight.to_dtype(dtype).unwrap()).unwrap().reordered(order.to_vec()).unwrap();
        if exact {
            host = host.with_precision(Precision::F32);
        }
        // a copy on the processor is made as one elsewhere is
        let copy = host.copy_on(&Device::Cpu).unwrap();
        let narrow = if exact || dtype == DType::F32 { DType::F32 } else { DType::BF16 };
        assert_eq!((copy.activation_dtype(), host.activation_dtype()), (narrow, DType::F32));
        let expected = host.to_tensor().unwrap().to_dtype(narrow).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(copy.to_tensor().unwrap().to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap(), "{dtype:?}");
        assert_eq!(copy.rows(&[3, 3, 0]).unwrap().to_vec2::<f32>().unwrap()[1], expected.to_vec2::<f32>().unwrap()[3]);
        let (x, grad) = (noise(5, 8), noise(5, 6));
        // a bf16 product rounds its factors and its result: 2^-8 each, of sums up to 8
        let bound = if narrow == DType::F32 { 1e-5 } else { 3.0 * 8.0 / 256.0 };
        assert!(largest_difference(&copy.forward(&x).unwrap(), &x.matmul(&expected.t().unwrap()).unwrap()) < bound);
        assert!(largest_difference(&copy.backward(&grad).unwrap(), &grad.matmul(&expected).unwrap()) < bound);
    }
}

/// Bytes that remember what of them was let go.
struct Watched(Vec<u8>, std::sync::Mutex<Vec<Range<usize>>>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Held for Watched {
    fn release(&self, range: Range<usize>) {
        self.1.lock().unwrap().push(range);
    }
}

#[test]
fn a_matrix_for_writing_is_packed_once_a_few_rows_are_multiplied_and_every_product_stays() {
    let (n, k, head) = (75, 640, 6);
    let values = (noise(n, k) * 0.05).unwrap().to_dtype(DType::BF16).unwrap();
    let mut bytes = vec![0; head];
    bytes.extend(to_bytes(&host_values::<half::bf16>(&values).unwrap(), |v| v.to_le_bytes()));
    // weights that lie too far below the largest of their rows
    for row in (0..n).step_by(3) {
        for place in [row, 200 + row, k - 1] {
            bytes[head + 2 * (row * k + place)..][..2].copy_from_slice(&half::bf16::from_f32(1e-7 * (1 + row) as f32).to_le_bytes());
        }
    }
    let range = head..bytes.len();
    let watched = Arc::new(Watched(bytes, std::sync::Mutex::default()));
    let order: Vec<u32> = (0..n as u32).rev().collect();
    let plain = Matrix::new(watched.clone(), range.clone(), Format::Bf16, (n, k)).unwrap().reordered(order).unwrap();
    let writing = plain.clone().for_writing();
    let exact = plain.to_tensor().unwrap().to_dtype(DType::F64).unwrap();
    let held = |matrix: &Matrix| matrix.held(usize::MAX, true).format;
    let bits = |y: &Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (many, grad) = (noise(30, k), noise(30, n));
    assert_eq!(bits(&writing.forward(&many).unwrap()), bits(&plain.forward(&many).unwrap()));
    assert_eq!(held(&writing), Format::Bf16);
    for rows in 1..=FEW_ROWS {
        let x = noise(rows, k);
        let found = writing.forward(&x).unwrap();
        let expected = x.to_dtype(DType::F64).unwrap().matmul(&exact.t().unwrap()).unwrap().to_dtype(DType::F32).unwrap();
        assert!(largest_difference(&found, &expected) < 1e-5, "{rows} rows");
        // a row alone
        assert_eq!(bits(&writing.forward(&x.narrow(0, rows - 1, 1).unwrap()).unwrap()), bits(&found)[(rows - 1) * n..]);
        if bf12::takes(k) {
            assert_eq!((held(&writing), held(&plain)), (Format::Bf12, Format::Bf16));
            assert_eq!(*watched.1.lock().unwrap(), std::slice::from_ref(&range));
        }
    }
    // in both directions the weights are the same to the last bit
    assert_eq!(bits(&writing.forward(&many).unwrap()), bits(&plain.forward(&many).unwrap()));
    assert_eq!(bits(&writing.backward(&grad).unwrap()), bits(&plain.backward(&grad).unwrap()));
    let added = |matrix: &Matrix| {
        let mut out = vec![1.0; 30 * n];
        matrix.add_multiply(&bits(&many), true, &mut out);
        out
    };
    assert_eq!(added(&writing), added(&plain));
    assert_eq!(bits(&writing.rows(&[3]).unwrap()), bits(&plain.rows(&[3]).unwrap()));
    // rows of 8, say, are left alone, and so is f32
    for other in [Matrix::from_tensor(&noise(4, 8).to_dtype(DType::BF16).unwrap()).unwrap(), Matrix::from_tensor(&noise(4, 128)).unwrap()] {
        let writing = other.clone().for_writing();
        let x = noise(2, other.size().1);
        assert_eq!(bits(&writing.forward(&x).unwrap()), bits(&other.forward(&x).unwrap()));
        assert_eq!(held(&writing), other.format());
    }
}

#[test]
fn quantised_rows_become_bf16_where_no_kernel_takes_them() {
    use candle_core::quantized::{GgmlDType, QTensor};
    let blocks = QTensor::quantize(&noise(6, 256), GgmlDType::Q4K).unwrap();
    let bytes: Bytes = Arc::new(blocks.data().unwrap().into_owned());
    let host = Matrix::new(bytes, 0..6 * 144, Format::Q4K, (6, 256)).unwrap();
    let copy = host.copy_on(&Device::Cpu).unwrap();
    assert_eq!(copy.format(), Format::Bf16);
    let expected = host.to_tensor().unwrap().to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(copy.to_tensor().unwrap().to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
    assert!(copy.on(&Device::Cpu).is_err() && copy.reordered(vec![5, 4, 3, 2, 1, 0]).is_err());
    let exact = host.clone().with_precision(Precision::F32).copy_on(&Device::Cpu).unwrap();
    assert_eq!(exact.to_tensor().unwrap().to_vec2::<f32>().unwrap(), host.to_tensor().unwrap().to_vec2::<f32>().unwrap());
    assert_eq!(exact.format(), Format::F32);
}

#[test]
fn only_reading_rounds_many_rows_to_8_bits() {
    use candle_core::quantized::{GgmlDType, QTensor};
    let (n, k) = (40, 512);
    for (format, kind) in [(Format::Q8_0, GgmlDType::Q8_0), (Format::Q4K, GgmlDType::Q4K), (Format::Q6K, GgmlDType::Q6K)] {
        let bytes: Bytes = Arc::new(QTensor::quantize(&noise(n, k), kind).unwrap().data().unwrap().into_owned());
        let matrix = Matrix::new(bytes.clone(), 0..(*bytes).as_ref().len(), format, (n, k)).unwrap();
        let x = Var::from_tensor(&noise(20, k)).unwrap();
        // values are multiplied alike whatever they are read from
        let values = Matrix::from_tensor(&matrix.to_tensor().unwrap()).unwrap().with_precision(Precision::Bf16);
        let expected = values.forward(x.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        for x in [x.as_tensor(), &x.as_detached_tensor()] {
            assert_eq!(matrix.forward(x).unwrap().to_vec2::<f32>().unwrap(), expected, "{format}");
        }
        let reading = matrix.for_reading().forward(&x.as_detached_tensor()).unwrap();
        // a step of 8 bits is 1/127 of the largest value, of 512 values with weights of up to 1
        let distance = largest_difference(&reading, &matrix.with_precision(Precision::F32).forward(x.as_tensor()).unwrap().detach());
        assert!(distance < 512f32.sqrt() / 127.0, "{format}: {distance}");
        assert!(reading.to_vec2::<f32>().unwrap() != expected || !crate::few::quantised::available(), "{format}");
    }
}

#[test]
fn a_small_matrix_of_f32_is_read_packed_and_a_row_has_the_same_bits_alone_and_beside_others() {
    // sums of one block of the inner axis and of two; whole strips of columns and not
    for (n, k) in [(64, 48), (320, 33), (33, 700), (600, 16), (5, 1)] {
        let matrix = Matrix::from_tensor(&noise(n, k)).unwrap();
        let order: Vec<u32> = (0..n as u32).rev().collect();
        for matrix in [matrix.clone(), matrix.clone().with_precision(Precision::Int16), matrix.reordered(order).unwrap()] {
            let (reading, weight) = (matrix.for_reading(), matrix.to_tensor().unwrap());
            let x = noise(300, k);
            for rows in [1, 2, 3, 4, 8, 9, 20, 256] {
                assert!(reading.packed_for(rows, true).is_some() && matrix.packed_for(rows, true).is_none());
                let part = x.narrow(0, 0, rows).unwrap();
                let y = reading.forward(&part).unwrap();
                let exact = part.to_dtype(DType::F64).unwrap().matmul(&weight.to_dtype(DType::F64).unwrap().t().unwrap()).unwrap();
                let bound = 1e-6 * k as f32;
                assert!(largest_difference(&y, &exact.to_dtype(DType::F32).unwrap()) < bound, "{n} {k} {rows}");
                let alone = reading.forward(&part.narrow(0, rows - 1, 1).unwrap()).unwrap();
                assert_eq!(alone.to_vec2::<f32>().unwrap()[0], y.to_vec2::<f32>().unwrap()[rows - 1], "{n} {k} {rows}");
                // and added to what is there
                let mut sum = vec![0.5f32; rows * n];
                reading.add_multiply(&host_values(&part).unwrap(), true, &mut sum);
                let sum = (Tensor::from_vec(sum, (rows, n), &Device::Cpu).unwrap() - 0.5).unwrap();
                assert!(largest_difference(&sum, &y) < bound, "{n} {k} {rows}");
            }
            assert!(reading.packed_for(257, true).is_none() && reading.packed_for(1, false).is_none());
        }
    }
    let large = Matrix::from_tensor(&noise(513, 512)).unwrap().for_reading();
    assert!(large.packed_for(1, true).is_none());
}

#[test]
fn what_does_not_fit_is_refused_with_both_sizes() {
    let bytes: Bytes = Arc::new(vec![0u8; 64]);
    assert!(Matrix::new(bytes.clone(), 0..64, Format::F32, (4, 5)).unwrap_err().to_string().contains("80 bytes"));
    let matrix = Matrix::new(bytes, 0..64, Format::F32, (4, 4)).unwrap();
    assert!(matrix.rows(&[4]).is_err());
    assert!(matrix.forward(&noise(2, 5)).is_err());
    assert!(matrix.clone().reordered(vec![0, 1, 2, 2]).is_err());
}
