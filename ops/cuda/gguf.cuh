// Block formats of GGUF files (ggml's block_q8_0, block_q4_K, block_q6_K): groups of 32 values of a row, each group in two halves of 16.
#pragma once
#include "common.cuh"

namespace gguf {
__device__ __forceinline__ float half_at(const unsigned char *bytes) {
  return wide(*reinterpret_cast<const f16 *>(bytes));
}

// 32 values: scale, 32 signed bytes.
struct Q8_0 {
  static constexpr int VALUES = 32, BYTES = 34;

  __device__ static void read(const unsigned char *block, int, int half, float (&out)[16]) {
    const float scale = half_at(block);
    const auto *pairs = reinterpret_cast<const uint16_t *>(block + 2 + half * 16);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      out[2 * i] = scale * static_cast<signed char>(pairs[i] & 255);
      out[2 * i + 1] = scale * static_cast<signed char>(pairs[i] >> 8);
    }
  }
};

// 256 values in 8 groups: scale and minimum of the block, 6-bit scale and minimum of each group in 12 bytes, 4-bit values; two groups
// share 32 bytes, the even one in the lower halves.
struct Q4_K {
  static constexpr int VALUES = 256, BYTES = 144;

  __device__ static void read(const unsigned char *block, int group, int half, float (&out)[16]) {
    const unsigned char *packed = block + 4;
    int scale = packed[group % 4], minimum = packed[group % 4 + 4];
    if (group < 4) {
      scale &= 63, minimum &= 63;
    } else {
      scale = (packed[group + 4] & 15) | scale >> 6 << 4, minimum = packed[group + 4] >> 4 | minimum >> 6 << 4;
    }
    const float step = half_at(block) * scale, least = half_at(block + 2) * minimum;
    const auto *words = reinterpret_cast<const uint32_t *>(block + 16 + group / 2 * 32 + half * 16);
    const int shift = group % 2 * 4;
#pragma unroll
    for (int i = 0; i < 16; i++) out[i] = step * (words[i / 4] >> (i % 4 * 8 + shift) & 15) - least;
  }
};

// 256 values in 2 x 4 groups: lower 4 bits (groups 0 and 2 share bytes, and 1 and 3), upper 2 bits (four groups share bytes), a signed
// scale for every 16 values, the block's scale.
struct Q6_K {
  static constexpr int VALUES = 256, BYTES = 210;

  __device__ static void read(const unsigned char *block, int group, int half, float (&out)[16]) {
    const int side = group / 4, quarter = group % 4;
    const auto *low = reinterpret_cast<const uint16_t *>(block + side * 64 + quarter % 2 * 32 + half * 16);
    const auto *high = reinterpret_cast<const uint16_t *>(block + 128 + side * 32 + half * 16);
    const float scale = half_at(block + 208) * static_cast<signed char>(block[192 + side * 8 + quarter * 2 + half]);
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int bits = i % 2 * 8, nibble = low[i / 2] >> (bits + quarter / 2 * 4) & 15, upper = high[i / 2] >> (bits + quarter * 2) & 3;
      out[i] = scale * ((nibble | upper << 4) - 32);
    }
  }
};

// Half `half` of group `group` of a row.
template <class Format> __device__ __forceinline__ void read_half(const unsigned char *row, int group, int half, float (&out)[16]) {
  constexpr int GROUPS = Format::VALUES / 32;
  Format::read(row + int64(group / GROUPS) * Format::BYTES, group % GROUPS, half, out);
}
}  // namespace gguf
