#include "attention_reference.h"
#include "../attention_decode.cu"

template <class T> using Part = void (*)(Heads<const T>, Heads<const T>, Heads<const T>, float *, float *, AttentionShape);
template <class T> using Combine = void (*)(const float *, const float *, int, int, Heads<T>, AttentionShape);

// One query a sequence over a cache with room for more keys than there are.
template <class T, int D> void prove(Part<T> part_kernel, Combine<T> combine_kernel) {
  Proof proof(text("attention decode %s, D %d", TYPE_NAME<T>, D));
  const int lengths[] = {1, 2, 5, 31, 32, 33, 64, 100, 129, 200}, parts_of[] = {1, 2, 3, 7};
  for (int i = 0; i < 40; i++) {
    const int heads = i % 3 == 2 ? 4 : 2, parts = parts_of[i % 4];
    Case c{1 + i % 2, heads, i % 2 ? heads : heads / 2, 1, lengths[i % 10], 0, 0, i % 3 ? Layout::Lengths : Layout::Masked, i % 5 == 4};
    Problem<T, D> p(c);
    proof.shape(name_of(c) + text(", %d parts", parts));
    auto outputs = unwritten<float>(size_t(c.batch) * heads * parts * D), log_sums = unwritten<float>(size_t(c.batch) * heads * parts);
    auto o = unwritten<T>(p.q.size());
    auto run = [&] {
      csim::launch(dim3(parts, heads, c.batch), decode::THREADS, 0, [&] {
        part_kernel(p.query_places.view(static_cast<const T *>(p.q.data())), p.key_places.view(static_cast<const T *>(p.k.data())),
                    p.key_places.view(static_cast<const T *>(p.v.data())), outputs.data(), log_sums.data(), p.shape);
      });
      csim::launch(dim3(heads, c.batch), dim3((D + 31) / 32 * 32), 0, [&] {
        combine_kernel(outputs.data(), log_sums.data(), parts, D, p.query_places.view(o.data()), p.shape);
      });
    };
    run();
    Reference<T, D, Wanted::Output> expected(p);
    compare(proof, "o", p.query_places, o, expected.o);
    proof.repeatable(run, o);
  }
}

#define PROVE(D)                                                    \
  prove<bf16, D>(attention_decode_bf16_d##D, attention_combine_bf16); \
  prove<f16, D>(attention_decode_f16_d##D, attention_combine_f16);    \
  prove<float, D>(attention_decode_f32_d##D, attention_combine_f32);

int main() {
  PROVE(32)
  PROVE(64)
  PROVE(80)
  PROVE(128)
}
