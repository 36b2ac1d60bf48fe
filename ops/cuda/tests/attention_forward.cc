#include "attention_reference.h"
#include "../attention_forward.cu"

template <class T, int D, class Kernel> void prove(Kernel kernel, int tile, size_t shared) {
  Proof proof(text("attention forward %s, D %d", TYPE_NAME<T>, D));
  for (const Case &c : attention_cases()) {
    Problem<T, D> p(c);
    proof.shape(name_of(c));
    auto o = unwritten<T>(p.q.size());
    auto log_sums = unwritten<float>(size_t(c.batch) * c.heads * c.queries);
    auto run = [&] {
      csim::launch(dim3((c.queries + tile - 1) / tile, c.heads, c.batch), 128, shared, [&] {
        kernel(p.query_places.view(static_cast<const T *>(p.q.data())), p.key_places.view(static_cast<const T *>(p.k.data())),
               p.key_places.view(static_cast<const T *>(p.v.data())), p.query_places.view(o.data()), log_sums.data(), p.shape);
      });
    };
    run();
    Reference<T, D, Wanted::Output> expected(p);
    compare(proof, "o", p.query_places, o, expected.o);
    for (int b = 0; b < c.batch; b++)
      for (int head = 0; head < c.heads; head++)
        for (int query = 0; query < p.query_counts[b]; query++) {
          const int64 at = p.statistic(b, head, query);
          if (expected.log_sums.values[at] == -INFINITY) proof.require(log_sums[at] == -INFINITY, "a query that sees nothing has a log-sum");
          else proof.close("log-sum", at, log_sums[at], expected.log_sums.values[at], expected.log_sums.bounds[at]);
        }
    if (c.queries < 40) proof.repeatable(run, o, log_sums);
  }
}

template <int D> void prove_width(decltype(&attention_forward_bf16_d32) bf16_kernel, decltype(&attention_forward_f16_d32) f16_kernel, decltype(&attention_forward_f32_d32) f32_kernel) {
  prove<bf16, D>(bf16_kernel, tensor_cores::QUERIES, tensor_cores::SHARED_BYTES<bf16, D>);
  prove<f16, D>(f16_kernel, tensor_cores::QUERIES, tensor_cores::SHARED_BYTES<f16, D>);
  prove<float, D>(f32_kernel, plain::QUERIES, plain::SHARED_BYTES<D>);
}

// With --launches: what a launch needs, for the list that the Rust side reads: kernel, rows of a block, bytes of dynamic shared memory.
template <int D> void print_launches() {
  printf("attention_forward_bf16_d%d %d %d\n", D, tensor_cores::QUERIES, tensor_cores::SHARED_BYTES<bf16, D>);
  printf("attention_forward_f16_d%d %d %d\n", D, tensor_cores::QUERIES, tensor_cores::SHARED_BYTES<f16, D>);
  printf("attention_forward_f32_d%d %d %d\n", D, plain::QUERIES, plain::SHARED_BYTES<D>);
}

int main(int arguments, char **) {
  if (arguments > 1) return print_launches<32>(), print_launches<64>(), print_launches<80>(), print_launches<128>(), 0;
  prove_width<32>(attention_forward_bf16_d32, attention_forward_f16_d32, attention_forward_f32_d32);
  prove_width<64>(attention_forward_bf16_d64, attention_forward_f16_d64, attention_forward_f32_d64);
  prove_width<80>(attention_forward_bf16_d80, attention_forward_f16_d80, attention_forward_f32_d80);
  prove_width<128>(attention_forward_bf16_d128, attention_forward_f16_d128, attention_forward_f32_d128);
}
