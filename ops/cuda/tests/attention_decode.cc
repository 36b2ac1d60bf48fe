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

template <class T> using Write = void (*)(Heads<const T>, Heads<const T>, Heads<T>, Heads<T>, const int *, int, int, int, int64);

// Rows of a projection's output, heads side by side, into caches of which each sequence has filled another part.
template <class T> void prove_write(Write<T> kernel) {
  Proof proof(text("attention write %s", TYPE_NAME<T>));
  const int widths[] = {32, 64, 80, 128}, rows[] = {1, 2, 7, 8};
  for (int i = 0; i < 32; i++) {
    const int batch = 1 + i % 3, heads = 1 + i % 4, length = rows[i / 2 % 4], width = widths[i % 4], room = length + 1 + below(20);
    proof.shape(text("B %d, H %d, L %d, D %d, room %d", batch, heads, length, width, room));
    auto k = normals<T>(batch * heads * length * width), v = normals<T>(k.size());
    auto keys = unwritten<T>(batch * heads * room * width), values = keys;
    std::vector<int> lengths(batch);
    for (int &own : lengths) own = length + below(room - length + 1);
    auto from = [&](const std::vector<T> &x) { return Heads<const T>{x.data(), length * heads * width, width, heads * width}; };
    auto to = [&](std::vector<T> &x) { return Heads<T>{x.data(), heads * room * width, room * width, width}; };
    const int64 count = int64(batch) * heads * length * width / 4;
    auto run = [&] {
      csim::launch((count + decode::THREADS - 1) / decode::THREADS, decode::THREADS, 0,
                   [&] { kernel(from(k), from(v), to(keys), to(values), lengths.data(), heads, length, width, count); });
    };
    run();
    size_t left = 0;
    for (T value : keys) left += std::isnan(wide(value));
    proof.require(left + k.size() == keys.size(), "rows outside the new ones' places were written to");
    for (int b = 0; b < batch; b++)
      for (int h = 0; h < heads; h++)
        for (int row = 0; row < length; row++)
          for (int c = 0; c < width; c++) {
            const size_t source = ((size_t(b) * length + row) * heads + h) * width + c;
            const size_t target = ((size_t(b) * heads + h) * room + lengths[b] - length + row) * width + c;
            proof.close("key", target, wide(keys[target]), wide(k[source]), 0.0);
            proof.close("value", target, wide(values[target]), wide(v[source]), 0.0);
          }
    proof.repeatable(run, keys, values);
  }
}

#define PROVE(D)                                                    \
  prove<bf16, D>(attention_decode_bf16_d##D, attention_combine_bf16); \
  prove<f16, D>(attention_decode_f16_d##D, attention_combine_f16);    \
  prove<float, D>(attention_decode_f32_d##D, attention_combine_f32);

int main() {
  prove_write<bf16>(attention_write_bf16);
  prove_write<f16>(attention_write_f16);
  prove_write<float>(attention_write_f32);
  PROVE(32)
  PROVE(64)
  PROVE(80)
  PROVE(128)
}
