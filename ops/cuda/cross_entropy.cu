// Cross-entropy over chunks of the vocabulary, so that logits (N, V) never exist at once.
//
// The matrix product makes a chunk's logits; `update` folds them into each row's running maximum and sum (Milakov and Gimelshein, 2018,
// arXiv 1805.02867) and takes out the target's logit; after the last chunk `loss` is known. For the gradient the chunks are made again and
// `gradient` turns each in place into weight (softmax - one-hot), ready for the product with the head's rows. With one chunk, V wide, over a
// few rows at a time, the product is made once and the gradient follows at once. Memory traffic: a chunk once read for each, once written.
#include "common.cuh"

namespace cross_entropy {
constexpr int THREADS = 256, WARPS = THREADS / 32;

// Calls f(column, value) for each value of a row, in vectors where the row's address allows, and stores what it returns if WRITE.
template <bool WRITE, class T, class F> __device__ void for_row(T *row, int count, F f) {
  const int offset = reinterpret_cast<uintptr_t>(row) / sizeof(T) % 4, head = min(count, (4 - offset) % 4), body = head + (count - head) / 4 * 4;
  auto one = [&](int i) {
    const float value = f(i, wide(row[i]));
    if (WRITE) row[i] = narrow<T>(value);
  };
  if (int(threadIdx.x) < head) one(threadIdx.x);
  for (int i = head + threadIdx.x * 4; i < body; i += THREADS * 4) {
    float4 x = load4(row + i);
    x = {f(i, x.x), f(i + 1, x.y), f(i + 2, x.z), f(i + 3, x.w)};
    if (WRITE) store4(row + i, x);
  }
  if (body + int(threadIdx.x) < count) one(body + threadIdx.x);
}

// logits: (N, width), columns `first ..` of the vocabulary. state: (3, N): maximum, sum of exponentials, target's logit. Grid: N.
template <class T> __device__ void update(T *logits, const unsigned *targets, const float *weights, float *state, int rows, int first, int width) {
  SHARED_ARRAY(float, scratch, WARPS);
  const int row = blockIdx.x;
  if (weights[row] == 0.0f) return;
  float *most = state + row, *sum = most + rows, *own = sum + rows;
  const int target = int(targets[row]) - first;
  T *values = logits + int64(row) * width;
  float largest = -INFINITY, added = 0.0f;
  for_row<false>(values, width, [&](int, float x) { return largest = fmaxf(largest, x); });
  largest = max_block<WARPS>(largest, scratch);
  for_row<false>(values, width, [&](int, float x) { return added += exp2f((x - largest) * LOG2E); });
  added = sum_block<WARPS>(added, scratch);
  if (threadIdx.x > 0) return;
  if (target >= 0 && target < width) *own = wide(values[target]);
  else if (first == 0) *own = NAN;  // until its chunk comes; a target outside the vocabulary makes the loss NaN
  const float before = first > 0 ? *most : -INFINITY, top = fmaxf(before, largest);
  *sum = (first > 0 ? *sum * exp2f((before - top) * LOG2E) : 0.0f) + added * exp2f((largest - top) * LOG2E);
  *most = top;
}

// Sum over rows of weight (log-sum-exp - target's logit), in one block and a fixed order.
__device__ void loss(const float *weights, const float *state, float *loss, int rows) {
  SHARED_ARRAY(float, scratch, WARPS);
  float sum = 0.0f;
  for (int row = threadIdx.x; row < rows; row += THREADS)
    if (weights[row] != 0.0f) sum += weights[row] * (logf(state[rows + row]) + state[row] - state[2 * rows + row]);
  sum = sum_block<WARPS>(sum, scratch);
  if (threadIdx.x == 0) *loss = sum;
}

// Logits become upstream weight (softmax - one-hot). `upstream` is read on the device: no wait for the loss's gradient. Grid: N.
template <class T>
__device__ void gradient(T *logits, const unsigned *targets, const float *weights, const float *state, const float *upstream, int rows, int first, int width) {
  const int row = blockIdx.x, target = int(targets[row]) - first;
  const float weight = weights[row] * *upstream, most = state[row], scale = weight / state[rows + row];
  for_row<true>(logits + int64(row) * width, width, [&](int column, float x) {
    if (weights[row] == 0.0f) return 0.0f;
    return exp2f((x - most) * LOG2E) * scale - (column == target ? weight : 0.0f);
  });
}
}  // namespace cross_entropy

extern "C" __global__ void __launch_bounds__(cross_entropy::THREADS) cross_entropy_loss(const float *weights, const float *state, float *loss, int rows) {
  cross_entropy::loss(weights, state, loss, rows);
}
#define CROSS_ENTROPY(SUFFIX, T)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(cross_entropy::THREADS) cross_entropy_update_##SUFFIX(                                  \
      T *logits, const unsigned *targets, const float *weights, float *state, int rows, int first, int width) {                         \
    cross_entropy::update<T>(logits, targets, weights, state, rows, first, width);                                                      \
  }                                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(cross_entropy::THREADS) cross_entropy_gradient_##SUFFIX(                                \
      T *logits, const unsigned *targets, const float *weights, const float *state, const float *upstream, int rows, int first, int width) { \
    cross_entropy::gradient<T>(logits, targets, weights, state, upstream, rows, first, width);                                          \
  }
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(f16, f16)
CROSS_ENTROPY(f32, float)
