// Attention backward: dQ, dK and dV from Q, K, V, dO and the forward's log-sum-exp; probabilities are made anew.
//
// FlashAttention-2 (Dao, 2023, algorithm 2) with P = exp(scale Q K^T - log-sum-exp), delta = rowsum(dO O), dV = P^T dO,
// dS = P (dO V^T - delta), dQ = scale dS K, dK = scale dS^T Q. That algorithm adds dQ up with atomics, in an order that changes from run
// to run. Here one kernel owns tiles of keys and another tiles of queries; both make P and dO V^T, so 7 products instead of 5
// (14 L M D operations a head), and every sum has a fixed order: the same input gives the same bits. Query heads that share a key-value
// head are added within the block that owns its keys. Memory traffic a head: as the forward's for each of the two kernels, over 4 tensors.
#include "attention.cuh"

// delta = rowsum(dO O), (B, H, L); a warp a row. Grid: (L / 4, H, B).
template <class T>
__device__ void row_products(Heads<const T> o, Heads<const T> grad, float *delta, int width, const AttentionShape &shape) {
  const Sequence sequence(shape, blockIdx.z);
  const int head = blockIdx.y, query = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (query >= sequence.queries) return;
  const T *a = sequence.queries_of(o, head) + query * o.row, *b = sequence.queries_of(grad, head) + query * grad.row;
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < width; i += 32) sum += wide(a[i]) * wide(b[i]);
  sum = sum_lanes(sum);
  if (threadIdx.x % 32 == 0) delta[(int64(blockIdx.z) * shape.heads + head) * shape.queries + query] = sum;
}

// What a query's row needs beside its tiles: the log-sum-exp times log2 e, infinite where the query is padding or sees nothing so that
// its probabilities become 0, and delta.
struct Statistics {
  float log_sum, delta;

  __device__ Statistics(const float *log_sums, const float *deltas, int64 row, int query, int queries) : log_sum(INFINITY), delta(0.0f) {
    if (query >= queries) return;
    delta = deltas[row + query];
    float value = log_sums[row + query];
    if (value != -INFINITY) log_sum = value * LOG2E;
  }
};

namespace tensor_cores {
// 4 warps with 16 rows each of the block's own tiles; the others come by in tiles of 32.
constexpr int THREADS = 128, OWN = 64, OTHERS = 32;

// Two own tiles, two others twice, and the queries' statistics twice.
template <class T, int D> constexpr int SHARED_BYTES = (2 * OWN + 4 * OTHERS) * Tile<T, D>::ROW_BYTES + 4 * OTHERS * int(sizeof(float));

template <class T, int D>
__device__ void keys_and_values(Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad, const float *log_sums,
                                const float *deltas, Heads<T> dk, Heads<T> dv, const AttentionShape &shape) {
  DYNAMIC_SHARED(memory);
  constexpr int ROW = Tile<T, D>::ROW_BYTES, N = OTHERS / 8;
  unsigned char *others = memory + 2 * OWN * ROW;
  float *statistics = reinterpret_cast<float *>(others + 4 * OTHERS * ROW);
  const Sequence sequence(shape, blockIdx.z);
  const int kv = blockIdx.y, shared = shape.heads / shape.kv_heads, first = blockIdx.x * OWN;
  if (first >= sequence.keys) return;
  const int warp = threadIdx.x / 32 * 16, key = first + warp, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
  const int start = sequence.first_to_see(shape, first) / OTHERS * OTHERS;
  const int tiles = max(0, (sequence.queries - start + OTHERS - 1) / OTHERS), steps = shared * tiles;

  Tile<T, D> own_keys(memory), own_values(memory + OWN * ROW);
  own_keys.template fetch<OWN, THREADS>(sequence.keys_of(k, kv), k.row, first, sequence.keys);
  own_values.template fetch<OWN, THREADS>(sequence.keys_of(v, kv), v.row, first, sequence.keys);
  auto fetch = [&](int step) {
    const int head = kv * shared + step / tiles, query = start + step % tiles * OTHERS, slot = step % 2;
    unsigned char *at = others + slot * 2 * OTHERS * ROW;
    Tile<T, D>(at).template fetch<OTHERS, THREADS>(sequence.queries_of(q, head), q.row, query, sequence.queries);
    Tile<T, D>(at + OTHERS * ROW).template fetch<OTHERS, THREADS>(sequence.queries_of(grad, head), grad.row, query, sequence.queries);
    copy_async_commit();
    if (threadIdx.x < OTHERS) {
      const int64 row = (int64(blockIdx.z) * shape.heads + head) * shape.queries;
      Statistics own(log_sums, deltas, row, query + threadIdx.x, sequence.queries);
      statistics[slot * 2 * OTHERS + threadIdx.x] = own.log_sum;
      statistics[slot * 2 * OTHERS + OTHERS + threadIdx.x] = own.delta;
    }
  };
  const bool visible[2] = {key + g < sequence.keys && sequence.visible(shape, key + g), key + g + 8 < sequence.keys && sequence.visible(shape, key + g + 8)};
  if (steps > 0) fetch(0);
  float key_sums[D / 8][4] = {}, value_sums[D / 8][4] = {};
  for (int step = 0; step < steps; step++) {
    copy_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) fetch(step + 1);
    const int query = start + step % tiles * OTHERS;
    unsigned char *at = others + step % 2 * 2 * OTHERS * ROW;
    const float *log_sum = statistics + step % 2 * 2 * OTHERS, *delta = log_sum + OTHERS;
    Tile<T, D> query_tile(at), grad_tile(at + OTHERS * ROW);
    float p[N][4], ds[N][4];
    multiply_rows<T, D>(p, own_keys.rows(warp), query_tile);
    multiply_rows<T, D>(ds, own_values.rows(warp), grad_tile);
    const bool all_seen = sequence.end(shape, query) >= first + OWN;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int column = n * 8 + t + i % 2;
        const bool seen = visible[i / 2] && (all_seen || key + g + i / 2 * 8 < sequence.end(shape, query + column));
        p[n][i] = seen ? exp2f(p[n][i] * (shape.scale * LOG2E) - log_sum[column]) : 0.0f;
        ds[n][i] = p[n][i] * (ds[n][i] - delta[column]);
      }
    add_weighted_rows<T, D>(value_sums, p, grad_tile);
    add_weighted_rows<T, D>(key_sums, ds, query_tile);
  }
  copy_async_wait<0>();
  store_rows<T, D>(key_sums, sequence.keys_of(dk, kv), dk.row, key, sequence.keys, {shape.scale, shape.scale});
  store_rows<T, D>(value_sums, sequence.keys_of(dv, kv), dv.row, key, sequence.keys, {1.0f, 1.0f});
}

template <class T, int D>
__device__ void queries(Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad, const float *log_sums,
                        const float *deltas, Heads<T> dq, const AttentionShape &shape) {
  DYNAMIC_SHARED(memory);
  constexpr int ROW = Tile<T, D>::ROW_BYTES, N = OTHERS / 8;
  unsigned char *others = memory + 2 * OWN * ROW;
  const Sequence sequence(shape, blockIdx.z);
  const int head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads), first = (gridDim.x - 1 - blockIdx.x) * OWN;
  if (first >= sequence.queries) return;
  const int warp = threadIdx.x / 32 * 16, query = first + warp, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
  const int end = sequence.end(shape, min(first + OWN, sequence.queries) - 1), always = sequence.end(shape, first);

  Tile<T, D> own_queries(memory), own_grads(memory + OWN * ROW);
  own_queries.template fetch<OWN, THREADS>(sequence.queries_of(q, head), q.row, first, sequence.queries);
  own_grads.template fetch<OWN, THREADS>(sequence.queries_of(grad, head), grad.row, first, sequence.queries);
  auto fetch = [&](int key) {
    unsigned char *at = others + key / OTHERS % 2 * 2 * OTHERS * ROW;
    Tile<T, D>(at).template fetch<OTHERS, THREADS>(sequence.keys_of(k, kv), k.row, key, end);
    Tile<T, D>(at + OTHERS * ROW).template fetch<OTHERS, THREADS>(sequence.keys_of(v, kv), v.row, key, end);
    copy_async_commit();
  };
  const int64 row = (int64(blockIdx.z) * shape.heads + head) * shape.queries;
  const Statistics own[2] = {{log_sums, deltas, row, query + g, sequence.queries}, {log_sums, deltas, row, query + g + 8, sequence.queries}};
  if (end > 0) fetch(0);
  float sums[D / 8][4] = {};
  for (int key = 0; key < end; key += OTHERS) {
    copy_async_wait<0>();
    __syncthreads();
    if (key + OTHERS < end) fetch(key + OTHERS);
    unsigned char *at = others + key / OTHERS % 2 * 2 * OTHERS * ROW;
    Tile<T, D> key_tile(at), value_tile(at + OTHERS * ROW);
    float p[N][4], ds[N][4];
    multiply_rows<T, D>(p, own_queries.rows(warp), key_tile);
    multiply_rows<T, D>(ds, own_grads.rows(warp), value_tile);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int seen = key + OTHERS <= always ? always : sequence.end(shape, query + g + i / 2 * 8);
#pragma unroll
      for (int n = 0; n < N; n++) {
        const int column = key + n * 8 + t + i % 2;
        const float weight = exp2f(p[n][i] * (shape.scale * LOG2E) - own[i / 2].log_sum);
        ds[n][i] = column < seen && sequence.visible(shape, column) ? weight * (ds[n][i] - own[i / 2].delta) : 0.0f;
      }
    }
    add_weighted_rows<T, D>(sums, ds, key_tile);
  }
  copy_async_wait<0>();
  store_rows<T, D>(sums, sequence.queries_of(dq, head), dq.row, query, sequence.queries, {shape.scale, shape.scale});
}
}  // namespace tensor_cores

namespace plain {
// f32: four lanes share a row, each with a quarter of its width in pieces of four.
constexpr int THREADS = 128, OWN = THREADS / 4, OTHERS = 32;

template <int D> constexpr int SHARED_BYTES = (2 * OTHERS * D + 2 * OTHERS) * int(sizeof(float));

template <int D> __device__ void fetch(float *tile, const float *source, int64 stride, int first, int end) {
  for (int i = threadIdx.x; i < OTHERS * D / 4; i += THREADS) {
    const int row = first + i / (D / 4), column = i % (D / 4) * 4;
    copy_async(tile + i * 4, source + (row < end ? row * stride + column : 0), row < end);
  }
}

// A lane's quarter of a row.
template <int D> struct Quarter {
  static constexpr int PIECES = D / 16;
  float4 pieces[PIECES] = {};

  __device__ static int at(int piece) { return piece * 16 + threadIdx.x % 4 * 4; }
  __device__ void load(const float *row) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) pieces[i] = load4(row + at(i));
  }
  __device__ float product(const float *row) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES; i++) sum = dot(pieces[i], load4(row + at(i)), sum);
    return sum_lanes<4>(sum);
  }
  __device__ void add(float weight, const float *row) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) pieces[i] = scaled_sum(pieces[i], weight, load4(row + at(i)));
  }
  __device__ void store(float factor, float *row) const {
#pragma unroll
    for (int i = 0; i < PIECES; i++) store4(row + at(i), scaled(factor, pieces[i]));
  }
};

template <int D>
__device__ void keys_and_values(Heads<const float> q, Heads<const float> k, Heads<const float> v, Heads<const float> grad,
                                const float *log_sums, const float *deltas, Heads<float> dk, Heads<float> dv, const AttentionShape &shape) {
  DYNAMIC_SHARED(memory);
  float *query_tile = reinterpret_cast<float *>(memory), *grad_tile = query_tile + OTHERS * D, *statistics = grad_tile + OTHERS * D;
  const Sequence sequence(shape, blockIdx.z);
  const int kv = blockIdx.y, shared = shape.heads / shape.kv_heads, first = blockIdx.x * OWN, key = first + threadIdx.x / 4;
  if (first >= sequence.keys) return;
  const bool counts = key < sequence.keys, visible = counts && sequence.visible(shape, key);
  Quarter<D> own_key, own_value, key_sum, value_sum;
  if (counts) own_key.load(sequence.keys_of(k, kv) + key * k.row), own_value.load(sequence.keys_of(v, kv) + key * v.row);
  const int start = sequence.first_to_see(shape, first) / OTHERS * OTHERS;
  for (int head = kv * shared; head < (kv + 1) * shared; head++)
    for (int query = start; query < sequence.queries; query += OTHERS) {
      __syncthreads();
      fetch<D>(query_tile, sequence.queries_of(q, head), q.row, query, sequence.queries);
      fetch<D>(grad_tile, sequence.queries_of(grad, head), grad.row, query, sequence.queries);
      copy_async_commit();
      if (threadIdx.x < OTHERS) {
        const int64 row = (int64(blockIdx.z) * shape.heads + head) * shape.queries;
        Statistics of_row(log_sums, deltas, row, query + threadIdx.x, sequence.queries);
        statistics[threadIdx.x] = of_row.log_sum, statistics[OTHERS + threadIdx.x] = of_row.delta;
      }
      copy_async_wait<0>();
      __syncthreads();
      for (int j = 0; j < OTHERS; j++) {
        const float logit = own_key.product(query_tile + j * D) * (shape.scale * LOG2E);
        const float weight = visible && key < sequence.end(shape, query + j) ? exp2f(logit - statistics[j]) : 0.0f;
        const float change = own_value.product(grad_tile + j * D) - statistics[OTHERS + j];
        value_sum.add(weight, grad_tile + j * D);
        key_sum.add(weight * change, query_tile + j * D);
      }
    }
  if (!counts) return;
  key_sum.store(shape.scale, sequence.keys_of(dk, kv) + key * dk.row);
  value_sum.store(1.0f, sequence.keys_of(dv, kv) + key * dv.row);
}

template <int D>
__device__ void queries(Heads<const float> q, Heads<const float> k, Heads<const float> v, Heads<const float> grad, const float *log_sums,
                        const float *deltas, Heads<float> dq, const AttentionShape &shape) {
  DYNAMIC_SHARED(memory);
  float *key_tile = reinterpret_cast<float *>(memory), *value_tile = key_tile + OTHERS * D;
  const Sequence sequence(shape, blockIdx.z);
  const int head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads), first = (gridDim.x - 1 - blockIdx.x) * OWN;
  const int query = first + threadIdx.x / 4;
  if (first >= sequence.queries) return;
  const bool counts = query < sequence.queries;
  const int end = sequence.end(shape, min(first + OWN, sequence.queries) - 1), own_end = counts ? sequence.end(shape, query) : 0;
  Quarter<D> own_query, own_grad, sum;
  if (counts) own_query.load(sequence.queries_of(q, head) + query * q.row), own_grad.load(sequence.queries_of(grad, head) + query * grad.row);
  const Statistics own(log_sums, deltas, (int64(blockIdx.z) * shape.heads + head) * shape.queries, query, sequence.queries);
  for (int key = 0; key < end; key += OTHERS) {
    __syncthreads();
    fetch<D>(key_tile, sequence.keys_of(k, kv), k.row, key, end);
    fetch<D>(value_tile, sequence.keys_of(v, kv), v.row, key, end);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int j = 0; j < OTHERS; j++) {
      const float logit = own_query.product(key_tile + j * D) * (shape.scale * LOG2E);
      const float weight = key + j < own_end && sequence.visible(shape, key + j) ? exp2f(logit - own.log_sum) : 0.0f;
      sum.add(weight * (own_grad.product(value_tile + j * D) - own.delta), key_tile + j * D);
    }
  }
  if (counts) sum.store(shape.scale, sequence.queries_of(dq, head) + query * dq.row);
}
}  // namespace plain

#define DELTA(NAME, T)                                                                                                              \
  extern "C" __global__ void __launch_bounds__(128) attention_delta_##NAME(Heads<const T> o, Heads<const T> grad, float *delta,     \
                                                                           int width, AttentionShape shape) {                       \
    row_products<T>(o, grad, delta, width, shape);                                                                                  \
  }
DELTA(bf16, bf16)
DELTA(f16, f16)
DELTA(f32, float)

// Grids: (tiles of keys, H', B) and (tiles of queries, H, B).
#define BACKWARD(NAME, T, D, KEYS, QUERIES)                                                                                          \
  extern "C" __global__ void __launch_bounds__(128) attention_keys_##NAME##_d##D(                                                    \
      Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad, const float *log_sums, const float *deltas,         \
      Heads<T> dk, Heads<T> dv, AttentionShape shape) {                                                                              \
    KEYS(q, k, v, grad, log_sums, deltas, dk, dv, shape);                                                                            \
  }                                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(128, 2) attention_queries_##NAME##_d##D(                                                 \
      Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad, const float *log_sums, const float *deltas,         \
      Heads<T> dq, AttentionShape shape) {                                                                                           \
    QUERIES(q, k, v, grad, log_sums, deltas, dq, shape);                                                                             \
  }
#define BACKWARD_TYPES(D)                                                                                   \
  BACKWARD(bf16, bf16, D, (tensor_cores::keys_and_values<bf16, D>), (tensor_cores::queries<bf16, D>))       \
  BACKWARD(f16, f16, D, (tensor_cores::keys_and_values<f16, D>), (tensor_cores::queries<f16, D>))           \
  BACKWARD(f32, float, D, plain::keys_and_values<D>, plain::queries<D>)
BACKWARD_TYPES(32)
BACKWARD_TYPES(64)
BACKWARD_TYPES(80)
BACKWARD_TYPES(128)
