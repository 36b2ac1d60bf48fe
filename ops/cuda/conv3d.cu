// Depthwise 3-D cross-correlation, kernel 3x3x3, channels last (CT-ViT's position generator).
//
// A thread walks along the last spatial axis of one row for one channel and keeps the 27 values around it in registers: a step reads 9
// new ones, most from cache, so memory sees x about once. Neighbouring threads have neighbouring channels. The weight's gradient is summed
// over fixed groups of rows, then over the groups in order.
#include "common.cuh"

namespace conv3d {
constexpr int CHANNELS = 32, ROWS = 8, TAPS = 27;

struct Size {
  int batch, depth, height, width, channels;
  int front;  // zeros before the first plane: 2 is causal, 1 the same on both sides; as many short of two come after the last
};

// The 27 values around a position, each column of 9 read once as the window moves on.
struct Window {
  float values[3][9];

  template <class T> __device__ void column(float (&column)[9], const T *x, const Size &size, int64 row, int w, int c) {
    const int h = row % size.height, t = row / size.height % size.depth;
    const int64 batch = row / size.height / size.depth;
#pragma unroll
    for (int i = 0; i < 9; i++) {
      const int source_t = t + i / 3 - size.front, source_h = h + i % 3 - 1;
      const bool inside = source_t >= 0 && source_t < size.depth && source_h >= 0 && source_h < size.height && w >= 0 && w < size.width;
      column[i] = inside ? wide(x[(((batch * size.depth + source_t) * size.height + source_h) * size.width + w) * size.channels + c]) : 0.0f;
    }
  }
  template <class T> __device__ void start(const T *x, const Size &size, int64 row, int c) {
    column(values[1], x, size, row, -1, c);
    column(values[2], x, size, row, 0, c);
  }
  template <class T> __device__ void step(const T *x, const Size &size, int64 row, int w, int c) {
#pragma unroll
    for (int i = 0; i < 9; i++) values[0][i] = values[1][i], values[1][i] = values[2][i];
    column(values[2], x, size, row, w + 1, c);
  }
};

// y = x * weight + bias. weight: (C, 27), bias: (C) or null. With `reversed` taps and the padding's ends exchanged it is the adjoint,
// which gives dx. Block: (CHANNELS, ROWS); grid: (ceil(C / CHANNELS), ceil(B T H / ROWS)).
template <class T> __device__ void correlate(const T *x, const T *weight, const T *bias, T *y, const Size &size, int reversed) {
  const int c = blockIdx.x * CHANNELS + threadIdx.x;
  const int64 row = int64(blockIdx.y) * ROWS + threadIdx.y;
  if (c >= size.channels || row >= int64(size.batch) * size.depth * size.height) return;
  float taps[TAPS];
#pragma unroll
  for (int i = 0; i < TAPS; i++) taps[i] = wide(weight[int64(c) * TAPS + (reversed ? TAPS - 1 - i : i)]);
  const float start = bias ? wide(bias[c]) : 0.0f;
  Window window;
  window.start(x, size, row, c);
  for (int w = 0; w < size.width; w++) {
    window.step(x, size, row, w, c);
    float sum = start;
#pragma unroll
    for (int i = 0; i < TAPS; i++) sum += taps[i] * window.values[i % 3][i / 3];
    y[(row * size.width + w) * size.channels + c] = narrow<T>(sum);
  }
}

// partials, (groups, 28, C): a group's share of the taps' gradient, the bias's last. Grid: (ceil(C / CHANNELS), groups of `group` rows).
template <class T> __device__ void weight_gradient(const T *x, const T *grad, float *partials, const Size &size, int group) {
  SHARED_ARRAY(float, sums, ROWS * CHANNELS);
  const int c = blockIdx.x * CHANNELS + threadIdx.x;
  const int64 rows = int64(size.batch) * size.depth * size.height, first = int64(blockIdx.y) * group;
  float taps[TAPS + 1] = {};
  for (int64 row = first + threadIdx.y; c < size.channels && row < min(rows, first + group); row += ROWS) {
    Window window;
    window.start(x, size, row, c);
    for (int w = 0; w < size.width; w++) {
      window.step(x, size, row, w, c);
      const float g = wide(grad[(row * size.width + w) * size.channels + c]);
#pragma unroll
      for (int i = 0; i < TAPS; i++) taps[i] += g * window.values[i % 3][i / 3];
      taps[TAPS] += g;
    }
  }
#pragma unroll
  for (int i = 0; i <= TAPS; i++) {
    sums[threadIdx.y * CHANNELS + threadIdx.x] = taps[i];
    __syncthreads();
    if (threadIdx.y == 0 && c < size.channels) {
      float sum = 0.0f;
      for (int row = 0; row < ROWS; row++) sum += sums[row * CHANNELS + threadIdx.x];
      partials[(int64(blockIdx.y) * (TAPS + 1) + i) * size.channels + c] = sum;
    }
    __syncthreads();
  }
}

// Adds the groups in order: dw (C, 27), db (C). Block: 256; grid: ceil(28 C / 256).
template <class T> __device__ void sum_groups(const float *partials, T *dw, T *db, int groups, int channels) {
  const int i = blockIdx.x * 256 + threadIdx.x, tap = i / channels, c = i % channels;
  if (tap > TAPS) return;
  float sum = 0.0f;
  for (int group = 0; group < groups; group++) sum += partials[(int64(group) * (TAPS + 1) + tap) * channels + c];
  if (tap < TAPS) dw[c * TAPS + tap] = narrow<T>(sum);
  else db[c] = narrow<T>(sum);
}
}  // namespace conv3d

#define CONV3D(SUFFIX, T)                                                                                                               \
  extern "C" __global__ void __launch_bounds__(256) conv3d_##SUFFIX(const T *x, const T *weight, const T *bias, T *y, conv3d::Size size, int reversed) { \
    conv3d::correlate<T>(x, weight, bias, y, size, reversed);                                                                           \
  }                                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) conv3d_weight_##SUFFIX(const T *x, const T *grad, float *partials, conv3d::Size size, int group) { \
    conv3d::weight_gradient<T>(x, grad, partials, size, group);                                                                         \
  }                                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) conv3d_sum_##SUFFIX(const float *partials, T *dw, T *db, int groups, int channels) { \
    conv3d::sum_groups<T>(partials, dw, db, groups, channels);                                                                          \
  }
CONV3D(bf16, bf16)
CONV3D(f16, f16)
CONV3D(f32, float)
