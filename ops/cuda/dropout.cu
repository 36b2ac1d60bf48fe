// Dropout, and of a gradient the same again: y = x scale where a value's own random word is not below a threshold, else 0.
//
// The words are those of ChaCha with 8 rounds (D. J. Bernstein), as the host's generator gives them: it is counted, so that a thread computes the
// block of 16 words that belongs to its values, nothing is kept between the passes, and a seed means the same everywhere. Memory traffic: x read, y
// written; some 25 integer operations a value.
#include "common.cuh"

namespace dropout {
constexpr int THREADS = 256, WORDS = 16, ROUNDS = 8;

// Where the words are: key, stream and block of the first.
struct Source {
  uint32_t key[8], stream[2];
  unsigned long long block;
};

__device__ inline uint32_t turned(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

__device__ inline void quarter(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
  a += b, d = turned(d ^ a, 16);
  c += d, b = turned(b ^ c, 12);
  a += b, d = turned(d ^ a, 8);
  c += d, b = turned(b ^ c, 7);
}

__device__ inline void block_of(uint32_t (&words)[WORDS], const Source &source, unsigned long long block) {
  const uint32_t first[WORDS] = {0x61707865u,   0x3320646eu,   0x79622d32u,   0x6b206574u,   source.key[0],   source.key[1],
                                 source.key[2], source.key[3], source.key[4], source.key[5], source.key[6],   source.key[7],
                                 uint32_t(block), uint32_t(block >> 32), source.stream[0], source.stream[1]};
#pragma unroll
  for (int i = 0; i < WORDS; i++) words[i] = first[i];
#pragma unroll
  for (int round = 0; round < ROUNDS; round += 2) {
    quarter(words[0], words[4], words[8], words[12]), quarter(words[1], words[5], words[9], words[13]);
    quarter(words[2], words[6], words[10], words[14]), quarter(words[3], words[7], words[11], words[15]);
    quarter(words[0], words[5], words[10], words[15]), quarter(words[1], words[6], words[11], words[12]);
    quarter(words[2], words[7], words[8], words[13]), quarter(words[3], words[4], words[9], words[14]);
  }
#pragma unroll
  for (int i = 0; i < WORDS; i++) words[i] += first[i];
}

// A thread takes a block's values; the last thread what is left over.
template <class T> __device__ void apply(const T *x, T *y, const Source &source, uint32_t threshold, float scale, int64 count) {
  const int64 piece = int64(blockIdx.x) * THREADS + threadIdx.x, first = piece * WORDS;
  if (first >= count) return;
  uint32_t words[WORDS];
  block_of(words, source, source.block + piece);
  auto kept = [&](int i, float value) { return words[i] >= threshold ? value * scale : 0.0f; };
#pragma unroll
  for (int i = 0; i < WORDS; i += 4) {
    if (first + i + 4 <= count) {
      const float4 v = load4(x + first + i);
      store4(y + first + i, {kept(i, v.x), kept(i + 1, v.y), kept(i + 2, v.z), kept(i + 3, v.w)});
    } else {
#pragma unroll
      for (int j = i; j < i + 4; j++)
        if (first + j < count) y[first + j] = narrow<T>(kept(j, wide(x[first + j])));
    }
  }
}
}  // namespace dropout

// Grid: ceil(count / (THREADS WORDS)). x and y begin at multiples of 16 bytes.
#define DROPOUT(SUFFIX, T)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(dropout::THREADS) dropout_##SUFFIX(const T *x, T *y, dropout::Source source,     \
                                                                                  uint32_t threshold, float scale, int64 count) { \
    dropout::apply<T>(x, y, source, threshold, scale, count);                                                                    \
  }
DROPOUT(bf16, bf16)
DROPOUT(f16, f16)
DROPOUT(f32, float)
