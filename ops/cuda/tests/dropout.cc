#include "check.h"
#include "../dropout.cu"

template <class T> using Apply = void (*)(const T *, T *, dropout::Source, uint32_t, float, int64);

// ChaCha by its definition, one word at a time: a block's words from the state's matrix, columns then diagonals.
std::vector<uint32_t> chacha8(const dropout::Source &source, uint64_t block) {
  std::vector<uint32_t> start = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
  start.insert(start.end(), source.key, source.key + 8);
  for (uint32_t word : {uint32_t(block), uint32_t(block >> 32), source.stream[0], source.stream[1]}) start.push_back(word);
  auto state = start;
  auto step = [&](int a, int b, int d, int bits) {
    state[a] += state[b];
    const uint32_t mixed = state[d] ^ state[a];
    state[d] = uint32_t((uint64_t(mixed) << bits) | (uint64_t(mixed) >> (32 - bits)));
  };
  for (int round = 0; round < 8; round++)
    for (int i = 0; i < 4; i++) {
      const int shift = round % 2;
      const int a = i, b = 4 + (i + shift) % 4, c = 8 + (i + 2 * shift) % 4, d = 12 + (i + 3 * shift) % 4;
      step(a, b, d, 16), step(c, d, b, 12), step(a, b, d, 8), step(c, d, b, 7);
    }
  for (int i = 0; i < 16; i++) state[i] += start[i];
  return state;
}

template <class T> void prove(Apply<T> kernel) {
  Proof proof(text("dropout %s", TYPE_NAME<T>));
  for (int i = 0; i < 36; i++) {
    const int count = i < 20 ? i + 1 : 1 + below(20000), a_block = dropout::THREADS * dropout::WORDS;
    const double p = i % 3 ? 0.05 + 0.3 * (i % 3) : 0.5;
    proof.shape(text("%d values, p %.2f", count, p));
    auto x = normals<T>(count), y = unwritten<T>(count);
    dropout::Source source;
    for (uint32_t &word : source.key) word = random_bits()();
    for (uint32_t &word : source.stream) word = random_bits()();
    source.block = i % 4 == 0 ? 0xfffffffeull : random_bits()();  // the counter's upper half counts too
    const uint32_t threshold = uint32_t(p * 4294967296.0);
    const float scale = 1 / (1 - p);
    auto run = [&] {
      csim::launch((count + a_block - 1) / a_block, dropout::THREADS, 0, [&] { kernel(x.data(), y.data(), source, threshold, scale, count); });
    };
    run();
    int kept = 0;
    for (int first = 0; first < count; first += 16) {
      const auto words = chacha8(source, source.block + first / 16);
      for (int j = first; j < std::min(first + 16, count); j++) {
        const bool keeps = words[j - first] >= threshold;
        const double expected = keeps ? double(wide(x[j])) * scale : 0.0;
        kept += keeps;
        proof.close("y", j, wide(y[j]), expected, rounding<T>(expected));
      }
    }
    if (count > 5000) proof.require(std::fabs(double(kept) / count - (1 - p)) < 0.03, "another share was kept");
    proof.repeatable(run, y);
  }
}

// ChaCha8 of a key and stream of zeros (draft-strombergson-chacha-test-vectors-01, TC1, 256 bits).
void known_answer() {
  const dropout::Source zeros = {};
  const uint32_t expected[] = {0x2fef003e, 0xd6405f89, 0xe8b85b7f, 0xa1a5091f};
  const auto words = chacha8(zeros, 0);
  for (int i = 0; i < 4; i++)
    if (words[i] != expected[i]) csim::fail("the proof's own ChaCha gives another word %d", i);
}

int main() {
  known_answer();
  prove<bf16>(dropout_bf16);
  prove<f16>(dropout_f16);
  prove<float>(dropout_f32);
}
