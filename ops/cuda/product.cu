// Linear layers: y = alpha x W^T + t B^T + bias, and the gradient to the input, dx = alpha dy W + u A.
//
// W is dense or in a GGUF format, whose blocks are turned into values while a tile is loaded: the weight never exists in 16 bits. The
// low-rank part of LoRA, with t = scale x A^T made by this kernel beforehand, lengthens the inner dimension from `inputs` by `rank`: it is
// added in the same registers, without another pass over y. Operations: 2 rows outputs (inputs + rank). Memory traffic: each tile of 128
// rows reads W once, each tile of 128 columns reads x once.
#include "gguf.cuh"
#include "tile.cuh"

namespace product {
constexpr int ROWS = 128, COLUMNS = 128, DEPTH = 32, THREADS = 256;

struct Sizes {
  int rows, outputs, inputs, rank;  // of y and of the sums; outputs, inputs and rank are multiples of 8, inputs of 32 with a GGUF format
  float alpha;
};

// A (rows, columns) matrix in memory, row after row.
template <class T> struct Dense {
  static constexpr int UNIT = 8;
  const T *values;
  int columns;

  __device__ Dense(const void *values, int columns) : values(static_cast<const T *>(values)), columns(columns) {}

  // Starts the copy of a tile; what lies outside becomes zero.
  template <int TILE_ROWS, int TILE_COLUMNS> __device__ void fetch(void *tile, int row, int rows, int column) const {
    constexpr int PIECES = TILE_COLUMNS / 8;
    T *to = static_cast<T *>(tile);
    for (int i = threadIdx.x; i < TILE_ROWS * PIECES; i += THREADS) {
      const int r = row + i / PIECES, c = column + i % PIECES * 8;
      const bool inside = r < rows && c < columns;
      copy_async(to + i / PIECES * (TILE_COLUMNS + 8) + i % PIECES * 8, values + (inside ? int64(r) * columns + c : 0), inside);
    }
  }
  __device__ void read(int row, int unit, float (&out)[UNIT]) const {
    const auto v = *reinterpret_cast<const Vector<T, 8> *>(values + int64(row) * columns + unit * UNIT);
#pragma unroll
    for (int i = 0; i < UNIT; i++) out[i] = wide(v.values[i]);
  }
};

// The same in a GGUF format.
template <class T, class Format> struct Quantised {
  static constexpr int UNIT = 16;
  const unsigned char *blocks;
  int columns;

  __device__ Quantised(const void *blocks, int columns) : blocks(static_cast<const unsigned char *>(blocks)), columns(columns) {}
  __device__ const unsigned char *row(int row) const { return blocks + int64(row) * (columns / Format::VALUES) * Format::BYTES; }

  template <int TILE_ROWS, int TILE_COLUMNS> __device__ void fetch(void *tile, int row, int rows, int column) const {
    constexpr int HALVES = TILE_COLUMNS / 16;
    T *to = static_cast<T *>(tile);
    for (int i = threadIdx.x; i < TILE_ROWS * HALVES; i += THREADS) {
      const int r = row + i / HALVES, c = column + i % HALVES * 16;
      float values[16] = {};
      if (r < rows && c < columns) gguf::read_half<Format>(this->row(r), c / 32, c / 16 % 2, values);
      uint32_t words[8];
#pragma unroll
      for (int j = 0; j < 8; j++) words[j] = pack<T>(values[2 * j], values[2 * j + 1]);
      auto *target = reinterpret_cast<uint4 *>(to + i / HALVES * (TILE_COLUMNS + 8) + i % HALVES * 16);
      target[0] = {words[0], words[1], words[2], words[3]};
      target[1] = {words[4], words[5], words[6], words[7]};
    }
  }
  __device__ void read(int row, int unit, float (&out)[UNIT]) const { gguf::read_half<Format>(this->row(row), unit / 2, unit % 2, out); }
};

// Tiles of W as the product needs them: COLUMNS of its rows and DEPTH of its columns, or, TURNED, DEPTH rows and COLUMNS columns.
template <class T, bool TURNED> struct Side;
template <class T> struct Side<T, false> {
  static constexpr int BYTES = COLUMNS * Tile<T, DEPTH>::ROW_BYTES;
  template <class W> __device__ static void fetch(const W &weight, void *tile, int column, int columns, int depth, int) {
    weight.template fetch<COLUMNS, DEPTH>(tile, column, columns, depth);
  }
  __device__ static void fragments(uint32_t (&b)[2][2], void *tile, int column, int depth) { Tile<T, DEPTH>(tile).rows(column).right(b, depth); }
};
template <class T> struct Side<T, true> {
  static constexpr int BYTES = DEPTH * Tile<T, COLUMNS>::ROW_BYTES;
  template <class W> __device__ static void fetch(const W &weight, void *tile, int column, int, int depth, int depths) {
    weight.template fetch<DEPTH, COLUMNS>(tile, depth, depths, column);
  }
  __device__ static void fragments(uint32_t (&b)[2][2], void *tile, int column, int depth) { Tile<T, COLUMNS>(tile).rows(depth).right_turned(b, column); }
};

// x: (rows, inputs), weight: (outputs, inputs) or, TURNED, (inputs, outputs); low_x: (rows, rank), low_weight: (outputs, rank) or (rank,
// outputs), both unused with rank 0; bias: (outputs) or null -> y (rows, outputs). 8 warps, 64 rows and 32 columns each.
// alpha multiplies the first part alone. Grid: (ceil(outputs / COLUMNS), ceil(rows / ROWS)).
template <class T, class Weight, bool TURNED>
__device__ void multiply(const T *x, const void *weight, const T *low_x, const T *low_weight, const T *bias, T *y, const Sizes &sizes) {
  constexpr int LEFT = ROWS * Tile<T, DEPTH>::ROW_BYTES, RIGHT = Side<T, TURNED>::BYTES;
  SHARED_ARRAY(uint4, memory, 2 * (LEFT + RIGHT) / 16);
  const int row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
  const int main_steps = (sizes.inputs + DEPTH - 1) / DEPTH, steps = main_steps + (sizes.rank + DEPTH - 1) / DEPTH;
  auto left = [&](int step) { return reinterpret_cast<unsigned char *>(memory) + step % 2 * (LEFT + RIGHT); };
  auto fetch = [&](int step) {
    const bool low = step >= main_steps;
    const int depths = low ? sizes.rank : sizes.inputs, depth = (low ? step - main_steps : step) * DEPTH;
    Dense<T>(low ? low_x : x, depths).template fetch<ROWS, DEPTH>(left(step), row, sizes.rows, depth);
    if (low) Side<T, TURNED>::fetch(Dense<T>(low_weight, TURNED ? sizes.outputs : depths), left(step) + LEFT, column, sizes.outputs, depth, depths);
    else Side<T, TURNED>::fetch(Weight(weight, TURNED ? sizes.outputs : depths), left(step) + LEFT, column, sizes.outputs, depth, depths);
    copy_async_commit();
  };
  const int warp = threadIdx.x / 32, own_row = warp / 4 * 64, own_column = warp % 4 * 32;
  float sums[4][4][4] = {};
  fetch(0);
  for (int step = 0; step < steps; step++) {
    copy_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) fetch(step + 1);
    if (step == main_steps && sizes.alpha != 1.0f)
      for (auto &block : sums)
        for (auto &sum : block)
          for (float &value : sum) value *= sizes.alpha;
    Tile<T, DEPTH> rows(left(step));
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth += 16) {
      uint32_t a[4][4], b[2][2][2];
#pragma unroll
      for (int i = 0; i < 4; i++) rows.rows(own_row + i * 16).left(a[i], depth);
#pragma unroll
      for (int i = 0; i < 2; i++) Side<T, TURNED>::fragments(b[i], left(step) + LEFT, own_column + i * 16, depth);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mma_16x8x16<T>(sums[i][j], a[i], b[j / 2][j % 2]);
    }
  }
  const float alpha = sizes.rank > 0 ? 1.0f : sizes.alpha;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int r = row + own_row + i / 2 * 16 + i % 2 * 8 + g, c = column + own_column + j * 8 + t;
      if (r >= sizes.rows || c >= sizes.outputs) continue;
      const float *sum = sums[i / 2][j] + i % 2 * 2;
      const float first = bias ? wide(bias[c]) : 0.0f, second = bias ? wide(bias[c + 1]) : 0.0f;
      *reinterpret_cast<uint32_t *>(y + int64(r) * sizes.outputs + c) = pack<T>(alpha * sum[0] + first, alpha * sum[1] + second);
    }
}

// The same for few rows, as in generation: a warp an output, bound by the read of W. Shared: 33 floats for every 32 inputs, so that lanes
// whose values lie 8 or 16 apart read different banks. Grid: (ceil(outputs / 8), rows).
template <class T, class Weight>
__device__ void multiply_vector(const T *x, const void *weight, const T *low_x, const T *low_weight, const T *bias, T *y, const Sizes &sizes) {
  DYNAMIC_SHARED(memory);
  constexpr int UNIT = Weight::UNIT;
  float *own_x = reinterpret_cast<float *>(memory);
  const int row = blockIdx.y, output = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < sizes.inputs; i += THREADS) own_x[i / 32 * 33 + i % 32] = wide(x[int64(row) * sizes.inputs + i]);
  __syncthreads();
  if (output >= sizes.outputs) return;
  const Weight own(weight, sizes.inputs);
  float sum = 0.0f;
  for (int unit = lane; unit < sizes.inputs / UNIT; unit += 32) {
    float values[UNIT];
    own.read(output, unit, values);
    const float *part = own_x + unit * UNIT / 32 * 33 + unit * UNIT % 32;
#pragma unroll
    for (int i = 0; i < UNIT; i++) sum += values[i] * part[i];
  }
  sum *= sizes.alpha;
  for (int i = lane; i < sizes.rank; i += 32) sum += wide(low_x[int64(row) * sizes.rank + i]) * wide(low_weight[int64(output) * sizes.rank + i]);
  sum = sum_lanes(sum);
  if (lane == 0) y[int64(row) * sizes.outputs + output] = narrow<T>(sum + (bias ? wide(bias[output]) : 0.0f));
}
}  // namespace product

#define PRODUCT(NAME, T, ...)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(product::THREADS) NAME(const T *x, const void *weight, const T *low_x, const T *low_weight, \
                                                                       const T *bias, T *y, product::Sizes sizes) {                     \
    __VA_ARGS__(x, weight, low_x, low_weight, bias, y, sizes);                                                                          \
  }
#define WEIGHTS(SUFFIX, FORMAT, T, ...)                                                                                                 \
  PRODUCT(product_##FORMAT##_##SUFFIX, T, product::multiply<T, __VA_ARGS__, false>)                                        \
  PRODUCT(product_turned_##FORMAT##_##SUFFIX, T, product::multiply<T, __VA_ARGS__, true>)                                  \
  PRODUCT(product_vector_##FORMAT##_##SUFFIX, T, product::multiply_vector<T, __VA_ARGS__>)
#define PRODUCTS(SUFFIX, T)                                              \
  namespace product {                                                    \
  using Dense_##SUFFIX = Dense<T>;                                       \
  using Q8_0_##SUFFIX = Quantised<T, gguf::Q8_0>;                        \
  using Q4_K_##SUFFIX = Quantised<T, gguf::Q4_K>;                        \
  using Q6_K_##SUFFIX = Quantised<T, gguf::Q6_K>;                        \
  }                                                                      \
  WEIGHTS(SUFFIX, dense, T, product::Dense_##SUFFIX)                     \
  WEIGHTS(SUFFIX, q8_0, T, product::Q8_0_##SUFFIX)                       \
  WEIGHTS(SUFFIX, q4_k, T, product::Q4_K_##SUFFIX)                       \
  WEIGHTS(SUFFIX, q6_k, T, product::Q6_K_##SUFFIX)
PRODUCTS(bf16, bf16)
PRODUCTS(f16, f16)
