// Attention forward: O = softmax(scale Q K^T) V and its log-sum-exp, without an L x M matrix in memory.
//
// FlashAttention-2 (Dao, 2023, arXiv 2307.08691, algorithm 1): a block keeps a tile of queries, walks over the keys that it sees, and
// corrects sum and output when the running maximum grows. Memory traffic: Q and O once; K and V once for each tile of queries, mostly
// from the second-level cache: 2 L D + 2 M D ceil(L / tile) values a head. Floating-point operations: 4 L M D, half of it if causal.
#include "attention.cuh"

namespace tensor_cores {
// 4 warps, each with 16 queries whose logits and output never leave its registers.
constexpr int THREADS = 128, QUERIES = 64;

template <int D> constexpr int KEYS = D > 80 ? 32 : 64;

// Queries first, then the same memory holds two tiles each of keys and values: one is used while the next arrives.
template <class T, int D> constexpr int SHARED_BYTES = 4 * KEYS<D> * Tile<T, D>::ROW_BYTES;

// Running maximum (of logits times log2 e), sum and correction of a lane's two rows.
struct Softmax {
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, factor[2];

  // Turns logits into weights relative to the new maximum; `factor` brings what was summed before to it.
  template <int N> __device__ void update(float (&s)[N][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float row = -INFINITY;
#pragma unroll
      for (int n = 0; n < N; n++) row = fmaxf(row, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
      row = fmaxf(most[half], max_lanes<4>(row) * scale);
      float shift = row == -INFINITY ? 0.0f : row, added = 0.0f;
      factor[half] = exp2f(most[half] - shift);
      most[half] = row;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; i++) added += s[n][i] = exp2f(s[n][i] * scale - shift);
      sum[half] = sum[half] * factor[half] + added;
    }
  }
};

// A query's logits of keys that it does not see become -inf.
template <int N> __device__ void mask(float (&s)[N][4], const AttentionShape &shape, const Sequence &sequence, int query, int key) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int end = sequence.end(shape, query + g + half * 8);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (key + n * 8 + t + i >= end || !sequence.visible(shape, key + n * 8 + t + i)) s[n][half * 2 + i] = -INFINITY;
  }
}

template <class T, int D>
__device__ void forward(Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> o, float *log_sums, const AttentionShape &shape) {
  DYNAMIC_SHARED(memory);
  constexpr int KEYS = tensor_cores::KEYS<D>, BYTES = KEYS * Tile<T, D>::ROW_BYTES;
  const Sequence sequence(shape, blockIdx.z);
  // The last queries see the most keys: they start first.
  const int head = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
  if (first >= sequence.queries) return;
  const int query = first + threadIdx.x / 32 * 16;
  const int end = sequence.end(shape, min(first + QUERIES, sequence.queries) - 1), always = sequence.end(shape, first);

  uint32_t left[D / 16][4];
  Tile<T, D> queries(memory);
  queries.template fetch<QUERIES, THREADS>(sequence.queries_of(q, head), q.row, first, sequence.queries);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < D / 16; i++) queries.rows(threadIdx.x / 32 * 16).left(left[i], i * 16);
  __syncthreads();

  const int kv = head / (shape.heads / shape.kv_heads);
  const T *keys = sequence.keys_of(k, kv), *values = sequence.keys_of(v, kv);
  auto fetch = [&](int key) {
    unsigned char *tiles = memory + key / KEYS % 2 * 2 * BYTES;
    Tile<T, D>(tiles).template fetch<KEYS, THREADS>(keys, k.row, key, end);
    Tile<T, D>(tiles + BYTES).template fetch<KEYS, THREADS>(values, v.row, key, end);
    copy_async_commit();
  };
  float output[D / 8][4] = {};
  Softmax softmax;
  const float scale = shape.scale * LOG2E;
  if (end > 0) fetch(0);
  for (int key = 0; key < end; key += KEYS) {
    copy_async_wait<0>();
    __syncthreads();  // the tile is here, and the other one's readers are through
    if (key + KEYS < end) fetch(key + KEYS);
    Tile<T, D> key_tile(memory + key / KEYS % 2 * 2 * BYTES), value_tile(memory + key / KEYS % 2 * 2 * BYTES + BYTES);
    float s[KEYS / 8][4] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
      for (int n = 0; n < KEYS / 8; n += 2) {
        uint32_t b[2][2];
        key_tile.rows(n * 8).right(b, i * 16);
        mma_16x8x16<T>(s[n], left[i], b[0]);
        mma_16x8x16<T>(s[n + 1], left[i], b[1]);
      }
    if (key + KEYS > always || shape.key_visible) mask(s, shape, sequence, query, key);
    softmax.update(s, scale);
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) output[n][i] *= softmax.factor[i / 2];
    add_weighted_rows<T, D>(output, s, value_tile);
  }

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = sum_lanes<4>(softmax.sum[half]);
    int row = query + threadIdx.x % 32 / 4 + half * 8;
    inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (threadIdx.x % 4 == 0 && row < sequence.queries)
      log_sums[(int64(blockIdx.z) * shape.heads + head) * shape.queries + row] = softmax.most[half] * LN2 + logf(sum);
  }
  store_rows<T, D>(output, sequence.queries_of(o, head), o.row, query, sequence.queries, inverse);
}
}  // namespace tensor_cores

namespace plain {
// f32: four lanes share a query, each with a quarter of its width in pieces of four.
constexpr int THREADS = 128, QUERIES = THREADS / 4, KEYS = 32, STEP = 8;

template <int D> constexpr int SHARED_BYTES = 2 * KEYS * D * int(sizeof(float));

// Rows `first ..` of (M, D) to shared memory; those at `end` and beyond become zero.
template <int D, int ROWS> __device__ void fetch(float *tile, const float *source, int64 stride, int first, int end) {
  for (int i = threadIdx.x; i < ROWS * D / 4; i += THREADS) {
    int row = first + i / (D / 4), column = i % (D / 4) * 4;
    copy_async(tile + i * 4, source + (row < end ? row * stride + column : 0), row < end);
  }
}

template <int D>
__device__ void forward(Heads<const float> q, Heads<const float> k, Heads<const float> v, Heads<float> o, float *log_sums, const AttentionShape &shape) {
  DYNAMIC_SHARED(memory);
  constexpr int PIECES = D / 16;
  float *key_tile = reinterpret_cast<float *>(memory), *value_tile = key_tile + KEYS * D;
  const Sequence sequence(shape, blockIdx.z);
  const int head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads), part = threadIdx.x % 4 * 4;
  const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, query = first + threadIdx.x / 4;
  if (first >= sequence.queries) return;
  const bool counts = query < sequence.queries;
  const int end = sequence.end(shape, min(first + QUERIES, sequence.queries) - 1), own_end = counts ? sequence.end(shape, query) : 0;
  const float *row = sequence.queries_of(q, head) + (counts ? query : first) * q.row;
  float4 own[PIECES], output[PIECES] = {};
#pragma unroll
  for (int i = 0; i < PIECES; i++) own[i] = scaled(shape.scale * LOG2E, load4(row + i * 16 + part));
  float most = -INFINITY, sum = 0.0f;
  for (int key = 0; key < end; key += KEYS) {
    __syncthreads();
    fetch<D, KEYS>(key_tile, sequence.keys_of(k, kv), k.row, key, end);
    fetch<D, KEYS>(value_tile, sequence.keys_of(v, kv), v.row, key, end);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int start = 0; start < KEYS; start += STEP) {
      float s[STEP], largest = most;
#pragma unroll
      for (int j = 0; j < STEP; j++) {
        float logit = 0.0f;
#pragma unroll
        for (int i = 0; i < PIECES; i++) logit = dot(own[i], load4(key_tile + (start + j) * D + i * 16 + part), logit);
        logit = sum_lanes<4>(logit);
        s[j] = key + start + j < own_end && sequence.visible(shape, key + start + j) ? logit : -INFINITY;
        largest = fmaxf(largest, s[j]);
      }
      const float shift = largest == -INFINITY ? 0.0f : largest, factor = exp2f(most - shift);
      most = largest;
      sum *= factor;
#pragma unroll
      for (int i = 0; i < PIECES; i++) output[i] = scaled(factor, output[i]);
#pragma unroll
      for (int j = 0; j < STEP; j++) {
        float weight = exp2f(s[j] - shift);
        sum += weight;
#pragma unroll
        for (int i = 0; i < PIECES; i++) output[i] = scaled_sum(output[i], weight, load4(value_tile + (start + j) * D + i * 16 + part));
      }
    }
  }
  if (!counts) return;
  if (part == 0) log_sums[(int64(blockIdx.z) * shape.heads + head) * shape.queries + query] = most * LN2 + logf(sum);
#pragma unroll
  for (int i = 0; i < PIECES; i++)
    store4(sequence.queries_of(o, head) + query * o.row + i * 16 + part, scaled(sum > 0.0f ? 1.0f / sum : 0.0f, output[i]));
}
}  // namespace plain

// Grid: (tiles of queries, H, B).
#define FORWARD(NAME, T, D, KERNEL, THREADS)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_##NAME##_d##D(                                         \
      Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> o, float *log_sums, AttentionShape shape) {                 \
    KERNEL(q, k, v, o, log_sums, shape);                                                                                         \
  }
#define FORWARD_TYPES(D)                                                                     \
  FORWARD(bf16, bf16, D, (tensor_cores::forward<bf16, D>), tensor_cores::THREADS)            \
  FORWARD(f16, f16, D, (tensor_cores::forward<f16, D>), tensor_cores::THREADS)               \
  FORWARD(f32, float, D, plain::forward<D>, plain::THREADS)
FORWARD_TYPES(32)
FORWARD_TYPES(64)
FORWARD_TYPES(80)
FORWARD_TYPES(128)
