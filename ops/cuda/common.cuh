// What the kernels share: element types, reductions, and the tensor cores' instructions under plain names.
//
// With CUDA_ON_CPU the same sources compile with g++ and run on the CPU (tests/cuda_on_cpu.h).
#pragma once

#ifdef CUDA_ON_CPU
#include "tests/cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define SHARED_ARRAY(T, name, count) __shared__ T name[count]

// c += a b on the tensor cores, tiles of 16x16 and 16x8 spread over the warp (PTX ISA, mma.m16n8k16).
template <class T> __device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#define MMA(T, NAME)                                                                                                                 \
  template <> __device__ __forceinline__ void mma_16x8x16<T>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {       \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                                \
  }
MMA(__nv_bfloat16, "bf16")
MMA(__half, "f16")
#undef MMA

__device__ __forceinline__ uint32_t shared_address(const void *shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// 16 bytes from global to shared memory past the registers; zeros where not valid.
__device__ __forceinline__ void copy_async(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING groups of this thread are under way.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;
typedef long long int64;

constexpr uint32_t WARP = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float wide(f16 x) { return __half2float(x); }

template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return __float2half(x); }

// Two values in one register, the first in the lower half.
template <class T> __device__ __forceinline__ uint32_t pack(float low, float high) {
  union { T halves[2]; uint32_t word; } both;
  both.halves[0] = narrow<T>(low);
  both.halves[1] = narrow<T>(high);
  return both.word;
}

// N consecutive values in one access, aligned to their size.
template <class T, int N> struct alignas(N * sizeof(T)) Vector { T values[N]; };

template <class T> __device__ __forceinline__ float4 load4(const T *values) {
  auto v = *reinterpret_cast<const Vector<T, 4> *>(values);
  return {wide(v.values[0]), wide(v.values[1]), wide(v.values[2]), wide(v.values[3])};
}
template <class T> __device__ __forceinline__ void store4(T *values, float4 x) {
  *reinterpret_cast<Vector<T, 4> *>(values) = {{narrow<T>(x.x), narrow<T>(x.y), narrow<T>(x.z), narrow<T>(x.w)}};
}
__device__ __forceinline__ float dot(float4 a, float4 b, float sum) { return sum + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
__device__ __forceinline__ float4 scaled_sum(float4 sum, float a, float4 b) {
  return {sum.x + a * b.x, sum.y + a * b.y, sum.z + a * b.z, sum.w + a * b.w};
}
__device__ __forceinline__ float4 scaled(float a, float4 b) { return {a * b.x, a * b.y, a * b.z, a * b.w}; }

// Over `lanes` neighbouring lanes, a power of two: each of them gets the result, in an order that does not depend on the lane.
template <int LANES = 32> __device__ __forceinline__ float sum_lanes(float x) {
  for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(WARP, x, distance);
  return x;
}
template <int LANES = 32> __device__ __forceinline__ float max_lanes(float x) {
  for (int distance = LANES / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(WARP, x, distance));
  return x;
}

// Sum over a block of WARPS warps; `scratch` has one value a warp. Every thread gets the sum; the block meets twice.
template <int WARPS> __device__ __forceinline__ float sum_block(float x, float *scratch) {
  x = sum_lanes(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < WARPS; warp++) sum += scratch[warp];
  __syncthreads();
  return sum;
}
template <int WARPS> __device__ __forceinline__ float max_block(float x, float *scratch) {
  x = max_lanes(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float most = scratch[0];
  for (int warp = 1; warp < WARPS; warp++) most = fmaxf(most, scratch[warp]);
  __syncthreads();
  return most;
}
