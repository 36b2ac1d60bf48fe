// Gated activations: y = act(gate) value, with act SiLU (LLaMA's SwiGLU) or GELU by the error function (CT-ViT's GEGLU).
//
// Memory traffic: forward 2 read, 1 written; backward 3 read, 2 written. As separate operations it would be 2 and 4 passes more.
#include "common.cuh"

namespace activation {
constexpr int THREADS = 256;

struct Silu {
  __device__ static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  __device__ static float value(float x) { return x * sigmoid(x); }
  __device__ static float slope(float x) { return sigmoid(x) * (1.0f + x * (1.0f - sigmoid(x))); }
};

struct Gelu {
  __device__ static float normal_cdf(float x) { return 0.5f * erfcf(-0.7071067811865476f * x); }
  __device__ static float value(float x) { return x * normal_cdf(x); }
  __device__ static float slope(float x) { return normal_cdf(x) + x * 0.3989422804014327f * expf(-0.5f * x * x); }
};

// A thread takes four values; the last thread what is left over.
template <class T, class A> __device__ void forward(const T *gate, const T *value, T *y, int64 count) {
  const int64 i = (int64(blockIdx.x) * THREADS + threadIdx.x) * 4;
  if (i + 4 <= count) {
    const float4 g = load4(gate + i), v = load4(value + i);
    store4(y + i, {A::value(g.x) * v.x, A::value(g.y) * v.y, A::value(g.z) * v.z, A::value(g.w) * v.w});
  } else {
    for (int64 j = i; j < count; j++) y[j] = narrow<T>(A::value(wide(gate[j])) * wide(value[j]));
  }
}

template <class T, class A> __device__ void backward(const T *gate, const T *value, const T *grad, T *dgate, T *dvalue, int64 count) {
  const int64 i = (int64(blockIdx.x) * THREADS + threadIdx.x) * 4;
  if (i + 4 <= count) {
    const float4 g = load4(gate + i), v = load4(value + i), d = load4(grad + i);
    store4(dgate + i, {d.x * v.x * A::slope(g.x), d.y * v.y * A::slope(g.y), d.z * v.z * A::slope(g.z), d.w * v.w * A::slope(g.w)});
    store4(dvalue + i, {d.x * A::value(g.x), d.y * A::value(g.y), d.z * A::value(g.z), d.w * A::value(g.w)});
  } else {
    for (int64 j = i; j < count; j++) {
      dgate[j] = narrow<T>(wide(grad[j]) * wide(value[j]) * A::slope(wide(gate[j])));
      dvalue[j] = narrow<T>(wide(grad[j]) * A::value(wide(gate[j])));
    }
  }
}
}  // namespace activation

// Grid: ceil(count / (4 THREADS)).
#define GATED(NAME, SUFFIX, T, ACTIVATION)                                                                                              \
  extern "C" __global__ void __launch_bounds__(activation::THREADS) NAME##_forward_##SUFFIX(const T *gate, const T *value, T *y, int64 count) { \
    activation::forward<T, activation::ACTIVATION>(gate, value, y, count);                                                              \
  }                                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(activation::THREADS) NAME##_backward_##SUFFIX(                                          \
      const T *gate, const T *value, const T *grad, T *dgate, T *dvalue, int64 count) {                                                 \
    activation::backward<T, activation::ACTIVATION>(gate, value, grad, dgate, dvalue, count);                                           \
  }
#define GATED_TYPES(NAME, ACTIVATION)      \
  GATED(NAME, bf16, bf16, ACTIVATION)      \
  GATED(NAME, f16, f16, ACTIVATION)        \
  GATED(NAME, f32, float, ACTIVATION)
GATED_TYPES(swiglu, Silu)
GATED_TYPES(geglu, Gelu)
