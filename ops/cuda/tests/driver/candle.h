// What candle's kernels use beyond ours, so that their sources compile with g++ too: types of 16 bits with operators, atomics, intrinsics.
// A value of 16 bits is rounded after each operation, as on the device; the device's own approximations of functions are not modelled.
#pragma once
#define CUDA_ON_CPU_OWN_HALVES
#include "../halves.h"
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define CSIM_HALF(NAME, WIDE, NARROW)                                                                                              \
  struct NAME {                                                                                                                    \
    uint16_t bits;                                                                                                                 \
    NAME() = default;                                                                                                              \
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> NAME(T value) : bits(NARROW(float(value))) {}            \
    operator float() const { return WIDE(bits); }                                                                                  \
    NAME operator-() const { return NAME(-float(*this)); }                                                                         \
    NAME &operator+=(NAME other) { return *this = NAME(float(*this) + float(other)); }                                             \
    NAME &operator*=(NAME other) { return *this = NAME(float(*this) * float(other)); }                                             \
  };                                                                                                                               \
  inline NAME operator+(NAME a, NAME b) { return NAME(float(a) + float(b)); }                                                      \
  inline NAME operator-(NAME a, NAME b) { return NAME(float(a) - float(b)); }                                                      \
  inline NAME operator*(NAME a, NAME b) { return NAME(float(a) * float(b)); }                                                      \
  inline NAME operator/(NAME a, NAME b) { return NAME(float(a) / float(b)); }                                                      \
  inline bool operator<(NAME a, NAME b) { return float(a) < float(b); }                                                            \
  inline bool operator>(NAME a, NAME b) { return float(a) > float(b); }                                                            \
  inline bool operator<=(NAME a, NAME b) { return float(a) <= float(b); }                                                          \
  inline bool operator>=(NAME a, NAME b) { return float(a) >= float(b); }                                                          \
  inline bool operator==(NAME a, NAME b) { return float(a) == float(b); }                                                          \
  inline bool operator!=(NAME a, NAME b) { return float(a) != float(b); }                                                          \
  inline bool __hisnan(NAME a) { return std::isnan(float(a)); }                                                                    \
  inline NAME hsqrt(NAME a) { return NAME(std::sqrt(float(a))); }                                                                  \
  inline NAME hcos(NAME a) { return NAME(std::cos(float(a))); }                                                                    \
  inline NAME hsin(NAME a) { return NAME(std::sin(float(a))); }                                                                    \
  inline NAME hlog(NAME a) { return NAME(std::log(float(a))); }                                                                    \
  inline NAME hexp(NAME a) { return NAME(std::exp(float(a))); }                                                                    \
  inline NAME __habs(NAME a) { return NAME(std::fabs(float(a))); }                                                                 \
  inline NAME __hmax_nan(NAME a, NAME b) { return __hisnan(a) || __hisnan(b) ? NAME(NAN) : float(a) < float(b) ? b : a; }          \
  inline NAME __hmin_nan(NAME a, NAME b) { return __hisnan(a) || __hisnan(b) ? NAME(NAN) : float(b) < float(a) ? b : a; }
CSIM_HALF(__nv_bfloat16, csim::wide_bf16, csim::narrow_bf16)
CSIM_HALF(__half, csim::wide_f16, csim::narrow_f16)
typedef __half half;
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __half __ushort_as_half(uint16_t bits) { __half x; x.bits = bits; return x; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { __nv_bfloat16 x; x.bits = bits; return x; }

#include "../cuda_on_cpu.h"

// 8-bit floats are declared, since candle's sources name them, and never computed with.
struct __nv_fp8_e4m3 {
  uint8_t __x;
  __nv_fp8_e4m3() = default;
  template <class T> explicit __nv_fp8_e4m3(T) { csim::fail("an 8-bit float"); }
  operator float() const { csim::fail("an 8-bit float"); }
};
enum { __NV_E4M3 };
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { csim::fail("an 8-bit float"); }

namespace cuda { namespace std { using ::std::numeric_limits; } }
#define __host__
#define __shared__ static
#define __align__(n) alignas(n)
#undef __shfl_xor_sync
#define __shfl_xor_sync(mask, value, distance, ...) csim::shuffle(mask, value, csim::lane() ^ (distance))

// Fibers take turns only where they wait, so that what stands here is never parted.
template <class T, class U> T atomicAdd(T *address, U value) { T old = *address; *address = old + T(value); return old; }
template <class T, class U> T atomicMax(T *address, U value) { T old = *address; if (old < T(value)) *address = value; return old; }
template <class T, class U> T atomicMin(T *address, U value) { T old = *address; if (T(value) < old) *address = value; return old; }
template <class T> T atomicCAS(T *address, T expected, T value) { T old = *address; if (old == expected) *address = value; return old; }
template <class To, class From> To csim_bits(From from) { static_assert(sizeof(To) == sizeof(From)); To to; memcpy(&to, &from, sizeof to); return to; }
inline unsigned __float_as_uint(float x) { return csim_bits<unsigned>(x); }
inline int __float_as_int(float x) { return csim_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return csim_bits<float>(x); }
inline float __int_as_float(int x) { return csim_bits<float>(x); }
inline long long __double_as_longlong(double x) { return csim_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return csim_bits<double>(x); }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.7071067811865475); }
using std::isnan;
using std::signbit;
inline int min(unsigned a, int b) { return a < unsigned(b) ? a : b; }
