#include "attention_reference.h"
#include "../attention_backward.cu"

template <class T> using Delta = void (*)(Heads<const T>, Heads<const T>, float *, int, AttentionShape);
template <class T> using Keys = void (*)(Heads<const T>, Heads<const T>, Heads<const T>, Heads<const T>, const float *, const float *, Heads<T>, Heads<T>, AttentionShape);
template <class T> using Queries = void (*)(Heads<const T>, Heads<const T>, Heads<const T>, Heads<const T>, const float *, const float *, Heads<T>, AttentionShape);

// The forward's results come from the reference, so that its kernel's faults do not hide here.
template <class T, int D> void prove(Delta<T> delta_kernel, Keys<T> keys_kernel, Queries<T> queries_kernel, int tile, size_t shared) {
  Proof proof(text("attention backward %s, D %d", TYPE_NAME<T>, D));
  for (const Case &c : attention_cases()) {
    Problem<T, D> p(c);
    proof.shape(name_of(c));
    Reference<T, D, Wanted::Gradients> expected(p);
    std::vector<T> o(p.q.size());
    for (size_t i = 0; i < o.size(); i++) o[i] = narrow<T>(expected.o.values[i]);
    std::vector<float> log_sums(expected.log_sums.values.begin(), expected.log_sums.values.end());
    auto delta = unwritten<float>(log_sums.size());
    auto dq = unwritten<T>(p.q.size()), dk = unwritten<T>(p.k.size()), dv = unwritten<T>(p.k.size());
    auto own = [&](const std::vector<T> &x) { return p.query_places.view(x.data()); };
    auto others = [&](const std::vector<T> &x) { return p.key_places.view(x.data()); };
    auto run = [&] {
      csim::launch(dim3((c.queries + 3) / 4, c.heads, c.batch), 128, 0, [&] { delta_kernel(own(o), own(p.grad), delta.data(), D, p.shape); });
      csim::launch(dim3((c.keys + tile - 1) / tile, c.kv_heads, c.batch), 128, shared, [&] {
        keys_kernel(own(p.q), others(p.k), others(p.v), own(p.grad), log_sums.data(), delta.data(), p.key_places.view(dk.data()), p.key_places.view(dv.data()), p.shape);
      });
      csim::launch(dim3((c.queries + tile - 1) / tile, c.heads, c.batch), 128, shared, [&] {
        queries_kernel(own(p.q), others(p.k), others(p.v), own(p.grad), log_sums.data(), delta.data(), p.query_places.view(dq.data()), p.shape);
      });
    };
    run();
    compare(proof, "dq", p.query_places, dq, expected.dq);
    compare(proof, "dk", p.key_places, dk, expected.dk);
    compare(proof, "dv", p.key_places, dv, expected.dv);
    if (c.queries < 20) proof.repeatable(run, dq, dk, dv);
  }
}

#define PROVE(D)                                                                                                                              \
  prove<bf16, D>(attention_delta_bf16, attention_keys_bf16_d##D, attention_queries_bf16_d##D, tensor_cores::OWN, tensor_cores::SHARED_BYTES<bf16, D>); \
  prove<f16, D>(attention_delta_f16, attention_keys_f16_d##D, attention_queries_f16_d##D, tensor_cores::OWN, tensor_cores::SHARED_BYTES<f16, D>);      \
  prove<float, D>(attention_delta_f32, attention_keys_f32_d##D, attention_queries_f32_d##D, plain::OWN, plain::SHARED_BYTES<D>);

// With --launches: what a launch needs, for the list that the Rust side reads: kernel, rows of a block, bytes of dynamic shared memory.
template <int D> void print_launches() {
  for (const char *kernel : {"keys", "queries"}) {
    printf("attention_%s_bf16_d%d %d %d\n", kernel, D, tensor_cores::OWN, tensor_cores::SHARED_BYTES<bf16, D>);
    printf("attention_%s_f16_d%d %d %d\n", kernel, D, tensor_cores::OWN, tensor_cores::SHARED_BYTES<f16, D>);
    printf("attention_%s_f32_d%d %d %d\n", kernel, D, plain::OWN, plain::SHARED_BYTES<D>);
  }
}

int main(int arguments, char **) {
  if (arguments > 1) return print_launches<32>(), print_launches<64>(), print_launches<80>(), print_launches<128>(), 0;
  PROVE(32)
  PROVE(64)
  PROVE(80)
  PROVE(128)
}
