// Rotary position embedding, rotate-half form: columns i and i + D/2 turn by the angle of their row's position and of i.
//
// It stands alone: inside attention's load every key would be turned again for each tile of queries. The result may go anywhere, so the
// keys of a new token are turned and written to the key-value cache at once. Memory traffic: x read, y written; the tables stay in cache.
#include "attention.cuh"

namespace rope {
constexpr int THREADS = 256;

// x: (B, H, L, D), tables: (positions, D/2). `positions` (L) names each row's line of the tables, null: its own number.
// `direction` 1 turns, -1 turns back, which is the backward pass. A thread takes 4 pairs; D is a multiple of 8.
template <class T>
__device__ void rotate(Heads<const T> x, Heads<T> y, const float *cosines, const float *sines, const int *positions, int heads, int length,
                       int width, int64 count, float direction) {
  const int64 piece = int64(blockIdx.x) * THREADS + threadIdx.x;
  if (piece >= count) return;
  const int half = width / 2, column = piece % (half / 4) * 4, row = piece / (half / 4) % length;
  const int64 head = piece / (half / 4) / length, from = head / heads * x.batch + head % heads * x.head + row * x.row + column,
              to = head / heads * y.batch + head % heads * y.head + row * y.row + column;
  const int64 line = int64(positions ? positions[row] : row) * half + column;
  const float4 a = load4(x.values + from), b = load4(x.values + from + half), c = load4(cosines + line), s = scaled(direction, load4(sines + line));
  store4(y.values + to, {a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y, a.z * c.z - b.z * s.z, a.w * c.w - b.w * s.w});
  store4(y.values + to + half, {b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y, b.z * c.z + a.z * s.z, b.w * c.w + a.w * s.w});
}
}  // namespace rope

// Grid: ceil(count / THREADS) with count = B H L D / 8.
#define ROPE(SUFFIX, T)                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(rope::THREADS) rope_##SUFFIX(                                                           \
      Heads<const T> x, Heads<T> y, const float *cosines, const float *sines, const int *positions, int heads, int length, int width,   \
      int64 count, float direction) {                                                                                                   \
    rope::rotate<T>(x, y, cosines, sines, positions, heads, length, width, count, direction);                                           \
  }
ROPE(bf16, bf16)
ROPE(f16, f16)
ROPE(f32, float)
