//! Times of the hot kernels: `cargo bench -p ctscribe-ops`.

mod hot;

use criterion::{Criterion, criterion_group, criterion_main};

fn kernels(criterion: &mut Criterion) {
    for (name, work) in hot::KERNELS {
        let work = work().expect(name);
        criterion.bench_function(name, |bencher| bencher.iter(|| work().expect(name)));
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
