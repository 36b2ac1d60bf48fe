// Attention of one query a sequence against its key-value cache, as in generation, and writing into that cache.
//
// One query gives a tile of keys no reuse, so the work is a read of the cache: 2 M D values a key-value head, and the time is that of the
// memory. To occupy the device the keys are split over blocks, each with its own softmax; a second kernel brings the parts to one maximum
// ("Flash-Decoding", Dao et al., 2023). Query heads that share a key-value head read it again, from the second-level cache.
#include "attention.cuh"

namespace decode {
constexpr int THREADS = 128, STREAMS = THREADS / 4;

// Four lanes share a key; 32 such streams each have their own softmax over every 32nd key of the block's part.
// Writes the part's output (B, H, parts, D), relative to its own sum, and log2-sum-exp2 (B, H, parts). Grid: (parts, H, B).
template <class T, int D>
__device__ void part(Heads<const T> q, Heads<const T> k, Heads<const T> v, float *outputs, float *log_sums, const AttentionShape &shape) {
  constexpr int PIECES = D / 16;
  SHARED_ARRAY(float, stream_most, STREAMS);
  SHARED_ARRAY(float, stream_sum, STREAMS);
  SHARED_ARRAY(float, stream_output, STREAMS * D);
  const Sequence sequence(shape, blockIdx.z);
  const int head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads), lane = threadIdx.x % 4 * 4, stream = threadIdx.x / 4;
  const int share = (sequence.keys + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share, end = min(first + share, sequence.keys);
  const T *own = sequence.queries_of(q, head), *keys = sequence.keys_of(k, kv), *values = sequence.keys_of(v, kv);
  float4 query[PIECES], output[PIECES] = {};
#pragma unroll
  for (int i = 0; i < PIECES; i++) query[i] = scaled(shape.scale * LOG2E, load4(own + i * 16 + lane));
  float most = -INFINITY, sum = 0.0f;
  for (int start = first; start < end; start += STREAMS) {
    const int key = start + stream;
    const bool counts = key < end && sequence.visible(shape, key);
    const int64 at = counts ? key : first;
    float logit = 0.0f;
#pragma unroll
    for (int i = 0; i < PIECES; i++) logit = dot(query[i], load4(keys + at * k.row + i * 16 + lane), logit);
    logit = sum_lanes<4>(logit);
    if (!counts) continue;
    const float largest = fmaxf(most, logit), factor = exp2f(most - largest), weight = exp2f(logit - largest);
    most = largest, sum = sum * factor + weight;
#pragma unroll
    for (int i = 0; i < PIECES; i++) output[i] = scaled_sum(scaled(factor, output[i]), weight, load4(values + at * v.row + i * 16 + lane));
  }
  if (lane == 0) stream_most[stream] = most, stream_sum[stream] = sum;
#pragma unroll
  for (int i = 0; i < PIECES; i++) store4(stream_output + stream * D + i * 16 + lane, output[i]);
  __syncthreads();
  if (threadIdx.x >= D) return;
  float largest = -INFINITY, total = 0.0f, value = 0.0f;
  for (int s = 0; s < STREAMS; s++) largest = fmaxf(largest, stream_most[s]);
  for (int s = 0; s < STREAMS && largest != -INFINITY; s++) {
    const float factor = exp2f(stream_most[s] - largest);
    total += factor * stream_sum[s], value += factor * stream_output[s * D + threadIdx.x];
  }
  const int64 row = (int64(blockIdx.z) * shape.heads + head) * gridDim.x + blockIdx.x;
  outputs[row * D + threadIdx.x] = total > 0.0f ? value / total : 0.0f;
  if (threadIdx.x == 0) log_sums[row] = largest + log2f(total);
}

// New keys and values (B, H', L, D) go to their places among those of the cache, (B, H', room, D): the last L of the `lengths[b]` that the sequence
// then has. Where they belong is read from memory, so that the same launch serves every token. Grid: ceil(count / THREADS), count = B H' L D / 4.
template <class T>
__device__ void write(Heads<const T> k, Heads<const T> v, Heads<T> keys, Heads<T> values, const int *lengths, int heads, int length, int width,
                      int64 count) {
  const int64 piece = int64(blockIdx.x) * THREADS + threadIdx.x;
  if (piece >= count) return;
  const int column = piece % (width / 4) * 4, row = piece / (width / 4) % length;
  const int64 head = piece / (width / 4) / length, batch = head / heads, place = lengths[batch] - length + row;
  auto move = [&](const Heads<const T> &from, const Heads<T> &to) {
    *reinterpret_cast<Vector<T, 4> *>(to.values + batch * to.batch + head % heads * to.head + place * to.row + column) =
        *reinterpret_cast<const Vector<T, 4> *>(from.values + batch * from.batch + head % heads * from.head + row * from.row + column);
  };
  move(k, keys), move(v, values);
}

// The parts' mean, each weighted by its own sum. Grid: (H, B), a thread for each of the D columns, whole warps.
template <class T>
__device__ void combine(const float *outputs, const float *log_sums, int parts, int width, Heads<T> o, const AttentionShape &shape) {
  const Sequence sequence(shape, blockIdx.y);
  const int head = blockIdx.x;
  if (int(threadIdx.x) >= width) return;
  const int64 row = (int64(blockIdx.y) * shape.heads + head) * parts;
  float largest = -INFINITY, total = 0.0f, value = 0.0f;
  for (int part = 0; part < parts; part++) largest = fmaxf(largest, log_sums[row + part]);
  for (int part = 0; part < parts && largest != -INFINITY; part++) {
    const float weight = exp2f(log_sums[row + part] - largest);
    total += weight, value += weight * outputs[(row + part) * width + threadIdx.x];
  }
  sequence.queries_of(o, head)[threadIdx.x] = narrow<T>(total > 0.0f ? value / total : 0.0f);
}
}  // namespace decode

#define DECODE(NAME, T, D)                                                                                                            \
  extern "C" __global__ void __launch_bounds__(decode::THREADS) attention_decode_##NAME##_d##D(                                      \
      Heads<const T> q, Heads<const T> k, Heads<const T> v, float *outputs, float *log_sums, AttentionShape shape) {                  \
    decode::part<T, D>(q, k, v, outputs, log_sums, shape);                                                                            \
  }
#define DECODE_WIDTHS(NAME, T)                                                                                                        \
  DECODE(NAME, T, 32) DECODE(NAME, T, 64) DECODE(NAME, T, 80) DECODE(NAME, T, 128)                                                    \
  extern "C" __global__ void __launch_bounds__(decode::THREADS) attention_write_##NAME(                                              \
      Heads<const T> k, Heads<const T> v, Heads<T> keys, Heads<T> values, const int *lengths, int heads, int length, int width, int64 count) { \
    decode::write<T>(k, v, keys, values, lengths, heads, length, width, count);                                                       \
  }                                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(128) attention_combine_##NAME(const float *outputs, const float *log_sums, int parts,  \
                                                                             int width, Heads<T> o, AttentionShape shape) {           \
    decode::combine<T>(outputs, log_sums, parts, width, o, shape);                                                                           \
  }
DECODE_WIDTHS(bf16, bf16)
DECODE_WIDTHS(f16, f16)
DECODE_WIDTHS(f32, float)
