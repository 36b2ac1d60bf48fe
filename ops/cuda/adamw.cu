// AdamW over all trained tensors in one launch, with the gradient's norm and its limit taken on the device.
//
// Memory traffic: value and moments read and written, gradient read: 28 bytes a value, once. Hundreds of adapters of some ten thousand
// values each would otherwise be hundreds of launches, each shorter than its own start.
#include "common.cuh"

namespace adamw {
constexpr int THREADS = 256, WARPS = THREADS / 32, VALUES = 4 * THREADS;

// One trained tensor. Blocks first_block .. of the next slot's are its own, VALUES values each.
struct Slot {
  float *value, *first, *second;
  const float *grad;
  bf16 *narrow;  // a copy for the model's products, or null
  int64 count;
  int first_block;
  float lr_factor, decay;  // decay: the weight decay, 0 if exempt
  int unused;
};

struct Step {
  float lr, beta1, beta2, eps;
  float correction1, correction2;  // 1 - beta1^t, sqrt(1 - beta2^t)
};

// The slot that a block works on.
__device__ inline const Slot &slot_of(const Slot *slots, int count, int block) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (slots[middle].first_block <= block) low = middle;
    else high = middle;
  }
  return slots[low];
}

// partials: the sum of squares of each block's gradients. Grid: all slots' blocks.
__device__ inline void squares(const Slot *slots, int count, float *partials) {
  SHARED_ARRAY(float, scratch, WARPS);
  const Slot &slot = slot_of(slots, count, blockIdx.x);
  const int64 first = int64(blockIdx.x - slot.first_block) * VALUES;
  float sum = 0.0f;
  for (int64 i = first + threadIdx.x; i < min(slot.count, first + VALUES); i += THREADS) sum += slot.grad[i] * slot.grad[i];
  sum = sum_block<WARPS>(sum, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// result: the gradients' norm, and what they are multiplied by so that it is at most `limit` (0: no limit). One block.
__device__ inline void limit_norm(const float *partials, int count, float limit, float *result) {
  SHARED_ARRAY(float, scratch, WARPS);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += THREADS) sum += partials[i];
  const float norm = sqrtf(sum_block<WARPS>(sum, scratch));
  if (threadIdx.x > 0) return;
  result[0] = norm;
  result[1] = limit > 0.0f && norm > limit ? limit / norm : 1.0f;
}

// torch.optim.AdamW's order: p *= 1 - lr wd; p -= lr (m / (1 - b1^t)) / (sqrt(v) / sqrt(1 - b2^t) + eps). Grid: all slots' blocks.
__device__ inline void update(const Slot *slots, int count, const float *norm, const Step &step) {
  const Slot &slot = slot_of(slots, count, blockIdx.x);
  const int64 first = int64(blockIdx.x - slot.first_block) * VALUES;
  const float lr = step.lr * slot.lr_factor, shrink = 1.0f - lr * slot.decay, size = lr / step.correction1;
  for (int64 i = first + threadIdx.x; i < min(slot.count, first + VALUES); i += THREADS) {
    const float g = slot.grad[i] * norm[1];
    const float m = step.beta1 * slot.first[i] + (1.0f - step.beta1) * g, v = step.beta2 * slot.second[i] + (1.0f - step.beta2) * g * g;
    const float value = slot.value[i] * shrink - size * m / (sqrtf(v) / step.correction2 + step.eps);
    slot.first[i] = m, slot.second[i] = v, slot.value[i] = value;
    if (slot.narrow) slot.narrow[i] = narrow<bf16>(value);
  }
}
}  // namespace adamw

extern "C" __global__ void __launch_bounds__(adamw::THREADS) adamw_squares(const adamw::Slot *slots, int count, float *partials) {
  adamw::squares(slots, count, partials);
}
extern "C" __global__ void __launch_bounds__(adamw::THREADS) adamw_limit(const float *partials, int count, float limit, float *result) {
  adamw::limit_norm(partials, count, limit, result);
}
extern "C" __global__ void __launch_bounds__(adamw::THREADS) adamw_update(const adamw::Slot *slots, int count, const float *norm, adamw::Step step) {
  adamw::update(slots, count, norm, step);
}
