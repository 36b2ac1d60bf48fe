// What the attention kernels share: sizes, what a query sees, products of tiles.
//
// Letters as in the crate: B sequences, H query heads on H' key-value heads, L queries, M keys, D head width.
#pragma once
#include "tile.cuh"

// A (B, H, L, D) view whose last axis is dense. Packed sequences have batch stride 0 and lie one after the other along the rows.
template <class T> struct Heads {
  T *values;
  int64 batch, head, row;
};

// Sizes and masks of one attention. Arrays may be null.
struct AttentionShape {
  int heads, kv_heads;
  int queries, keys;            // L and M; of packed sequences the longest's; log-sum-exp and delta are (B, H, L)
  int causal;                   // query i of l sees keys up to i + (m - l)
  int prefix;                   // and, if causal, these first keys in any case
  float scale;
  int unused;
  const int *query_starts, *key_starts;    // (B + 1): first rows of packed sequences
  const int *query_lengths, *key_lengths;  // (B): rows that count, the rest is padding
  const unsigned char *key_visible;        // (B, M): 0 where no query may look
};

// One sequence, cut to its own length.
struct Sequence {
  int queries, keys, batch;
  int64 first_query, first_key;

  __device__ Sequence(const AttentionShape &shape, int b) : queries(shape.queries), keys(shape.keys), batch(b), first_query(0), first_key(0) {
    if (shape.query_starts) first_query = shape.query_starts[b], queries = shape.query_starts[b + 1] - shape.query_starts[b];
    if (shape.key_starts) first_key = shape.key_starts[b], keys = shape.key_starts[b + 1] - shape.key_starts[b];
    if (shape.query_lengths) queries = min(queries, shape.query_lengths[b]);
    if (shape.key_lengths) keys = min(keys, shape.key_lengths[b]);
  }

  // A query sees the keys before this one: a prefix of all keys whatever the mask.
  __device__ int end(const AttentionShape &shape, int query) const {
    if (!shape.causal) return keys;
    return max(min(shape.prefix, keys), min(query + 1 + keys - queries, keys));
  }

  // Whether any query may look at this key, one of the sequence's.
  __device__ bool visible(const AttentionShape &shape, int key) const {
    return !shape.key_visible || shape.key_visible[int64(batch) * shape.keys + key];
  }

  // The first query that sees this key.
  __device__ int first_to_see(const AttentionShape &shape, int key) const {
    return shape.causal && key >= shape.prefix ? max(0, key - (keys - queries)) : 0;
  }

  template <class T> __device__ T *queries_of(const Heads<T> &x, int head) const {
    return x.values + batch * x.batch + head * x.head + first_query * x.row;
  }
  template <class T> __device__ T *keys_of(const Heads<T> &x, int head) const {
    return x.values + batch * x.batch + head * x.head + first_key * x.row;
  }
};

// sums (16 rows, 8 N columns) = left's 16 rows times the rows of `right`, over D.
template <class T, int D, int N> __device__ void multiply_rows(float (&sums)[N][4], Tile<T, D> left, Tile<T, D> right) {
  for (auto &sum : sums) sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll
  for (int column = 0; column < D; column += 16) {
    uint32_t a[4];
    left.left(a, column);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[2][2];
      right.rows(n * 8).right(b, column);
      mma_16x8x16<T>(sums[n], a, b[0]);
      mma_16x8x16<T>(sums[n + 1], a, b[1]);
    }
  }
}

// sums (16, D) += weights (16, 8 N), which lie in registers as a product left them, times the 8 N rows of `right`.
template <class T, int D, int N> __device__ void add_weighted_rows(float (&sums)[D / 8][4], const float (&weights)[N][4], Tile<T, D> right) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    const uint32_t a[4] = {pack<T>(weights[n][0], weights[n][1]), pack<T>(weights[n][2], weights[n][3]),
                           pack<T>(weights[n + 1][0], weights[n + 1][1]), pack<T>(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
    for (int column = 0; column < D; column += 16) {
      uint32_t b[2][2];
      right.rows(n * 8).right_turned(b, column);
      mma_16x8x16<T>(sums[column / 8], a, b[0]);
      mma_16x8x16<T>(sums[column / 8 + 1], a, b[1]);
    }
  }
}

// Stores a warp's 16 rows, each times `factor`, those before `end`.
template <class T, int D> __device__ void store_rows(const float (&sums)[D / 8][4], T *rows, int64 stride, int first, int end, const float (&factor)[2]) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = first + g + half * 8;
    if (row >= end) continue;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      *reinterpret_cast<uint32_t *>(rows + row * stride + n * 8 + t) = pack<T>(factor[half] * sums[n][half * 2], factor[half] * sums[n][half * 2 + 1]);
  }
}
