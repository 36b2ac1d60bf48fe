// Root-mean-square and layer norm over the last axis: y = (x - mean) r w + b, where the former has neither mean nor b.
//
// A block a row. Memory traffic: forward reads x and writes y (the row's second reading comes from the first-level cache), backward reads
// x and dy and writes dx: the floor of any implementation. Statistics are made anew in the backward pass rather than kept. The weight's
// gradient is summed over fixed groups of rows, then over the groups in order.
#include "common.cuh"

namespace norms {
constexpr int THREADS = 256, WARPS = THREADS / 32;

struct Statistics {
  float mean, scale;
};

template <class T, bool CENTRED> __device__ Statistics statistics(const T *x, int width, float eps, float *scratch) {
  float mean = 0.0f, squares = 0.0f;
  if (CENTRED) {
    for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
      float4 v = load4(x + i);
      mean += v.x + v.y + v.z + v.w;
    }
    mean = sum_block<WARPS>(mean, scratch) / width;
  }
  for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
    float4 v = load4(x + i), c = {v.x - mean, v.y - mean, v.z - mean, v.w - mean};
    squares = dot(c, c, squares);
  }
  return {mean, rsqrtf(sum_block<WARPS>(squares, scratch) / width + eps)};
}

// Grid: rows. The width is a multiple of 4; bias may be null.
template <class T, bool CENTRED>
__device__ void forward(const T *x, const T *weight, const T *bias, T *y, int width, float eps) {
  SHARED_ARRAY(float, scratch, WARPS);
  x += int64(blockIdx.x) * width, y += int64(blockIdx.x) * width;
  const Statistics own = statistics<T, CENTRED>(x, width, eps, scratch);
  for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
    const float4 v = load4(x + i), w = load4(weight + i), b = bias ? load4(bias + i) : float4{0, 0, 0, 0};
    store4(y + i, {(v.x - own.mean) * own.scale * w.x + b.x, (v.y - own.mean) * own.scale * w.y + b.y,
                   (v.z - own.mean) * own.scale * w.z + b.z, (v.w - own.mean) * own.scale * w.w + b.w});
  }
}

// Grid: groups of `group` rows. dx = r (g w - mean(g w) - n mean(g w n)) with n the normed row; without the first mean if not centred.
// partials, (groups, 2, width): sums over a group's rows of g n and g; null if the weight is frozen. Shared: 2 width floats, or none.
template <class T, bool CENTRED>
__device__ void backward(const T *x, const T *weight, const T *grad, T *dx, float *partials, int rows, int group, int width, float eps) {
  DYNAMIC_SHARED(memory);
  SHARED_ARRAY(float, scratch, WARPS);
  float *sums = reinterpret_cast<float *>(memory);
  for (int i = threadIdx.x * 4; partials && i < width; i += THREADS * 4)
    store4(sums + i, {0, 0, 0, 0}), store4(sums + width + i, {0, 0, 0, 0});
  for (int row = blockIdx.x * group; row < min(rows, int(blockIdx.x + 1) * group); row++) {
    const T *own_x = x + int64(row) * width, *own_grad = grad + int64(row) * width;
    const Statistics own = statistics<T, CENTRED>(own_x, width, eps, scratch);
    float shift = 0.0f, slope = 0.0f;
    for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
      const float4 v = load4(own_x + i), w = load4(weight + i), g = load4(own_grad + i);
      const float4 gw = {g.x * w.x, g.y * w.y, g.z * w.z, g.w * w.w};
      const float4 n = {(v.x - own.mean) * own.scale, (v.y - own.mean) * own.scale, (v.z - own.mean) * own.scale, (v.w - own.mean) * own.scale};
      slope = dot(gw, n, slope), shift += gw.x + gw.y + gw.z + gw.w;
    }
    slope = sum_block<WARPS>(slope, scratch) / width;
    shift = CENTRED ? sum_block<WARPS>(shift, scratch) / width : 0.0f;
    for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
      const float4 v = load4(own_x + i), w = load4(weight + i), g = load4(own_grad + i);
      const float4 n = {(v.x - own.mean) * own.scale, (v.y - own.mean) * own.scale, (v.z - own.mean) * own.scale, (v.w - own.mean) * own.scale};
      store4(dx + int64(row) * width + i, {own.scale * (g.x * w.x - shift - n.x * slope), own.scale * (g.y * w.y - shift - n.y * slope),
                                           own.scale * (g.z * w.z - shift - n.z * slope), own.scale * (g.w * w.w - shift - n.w * slope)});
      if (!partials) continue;
      // A thread has the same columns in every row: nobody else touches these sums.
      const float4 a = load4(sums + i), b = load4(sums + width + i);
      store4(sums + i, {a.x + g.x * n.x, a.y + g.y * n.y, a.z + g.z * n.z, a.w + g.w * n.w});
      store4(sums + width + i, {b.x + g.x, b.y + g.y, b.z + g.z, b.w + g.w});
    }
  }
  for (int i = threadIdx.x * 4; partials && i < width; i += THREADS * 4) {
    store4(partials + int64(blockIdx.x) * 2 * width + i, load4(sums + i));
    store4(partials + (int64(blockIdx.x) * 2 + 1) * width + i, load4(sums + width + i));
  }
}

// Adds the groups in order: (groups, 2, width) -> dw and db (width); db may be null. Grid: ceil(width / THREADS).
template <class T> __device__ void sum_groups(const float *partials, T *dw, T *db, int groups, int width) {
  const int column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= width) return;
  float weight = 0.0f, bias = 0.0f;
  for (int i = 0; i < groups; i++) weight += partials[int64(i) * 2 * width + column], bias += partials[(int64(i) * 2 + 1) * width + column];
  dw[column] = narrow<T>(weight);
  if (db) db[column] = narrow<T>(bias);
}
}  // namespace norms

#define NORM(NAME, SUFFIX, T, CENTRED)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(norms::THREADS) NAME##_norm_forward_##SUFFIX(                                           \
      const T *x, const T *weight, const T *bias, T *y, int width, float eps) {                                                        \
    norms::forward<T, CENTRED>(x, weight, bias, y, width, eps);                                                                         \
  }                                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(norms::THREADS, 4) NAME##_norm_backward_##SUFFIX(                                          \
      const T *x, const T *weight, const T *grad, T *dx, float *partials, int rows, int group, int width, float eps) {                 \
    norms::backward<T, CENTRED>(x, weight, grad, dx, partials, rows, group, width, eps);                                                \
  }
#define NORMS(SUFFIX, T)                                                                                                               \
  NORM(rms, SUFFIX, T, false)                                                                                                          \
  NORM(layer, SUFFIX, T, true)                                                                                                         \
  extern "C" __global__ void __launch_bounds__(norms::THREADS) norm_sum_##SUFFIX(const float *partials, T *dw, T *db, int groups, int width) { \
    norms::sum_groups<T>(partials, dw, db, groups, width);                                                                              \
  }
NORMS(bf16, bf16)
NORMS(f16, f16)
NORMS(f32, float)
