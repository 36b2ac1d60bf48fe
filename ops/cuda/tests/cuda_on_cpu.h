// CUDA on the CPU, for proofs: the kernels' own sources compile with g++ and run with a fiber for each thread.
//
// What it models: threads, blocks and grids; dynamic and static shared memory (fresh for each block, poisoned with NaN, bounds seen by the
// address sanitizer); __syncthreads and warp collectives, where threads that part ways end the program; shuffles; ldmatrix and
// mma.m16n8k16 with their documented fragment layouts; cp.async, whose data arrive no earlier than the wait that promises them.
// Fibers, warps and blocks run in an order that tests vary, so that a missing barrier changes results.
// What it does not model: time, caches, memory ordering within a warp between collectives, atomics (there are none in the kernels).
// With CUDA_ON_CPU_LENIENT, for candle's kernels: part of a warp may be a block's last, and threads that have ended are not waited for.
#pragma once
#include "halves.h"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <unistd.h>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifndef __global__
#define __global__
#endif
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };

#ifndef CUDA_ON_CPU_OWN_HALVES
// bf16 and f16 as bits with the conversions that the kernels use.
struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) { return csim::wide_bf16(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float value) { return {csim::narrow_bf16(value)}; }
inline float __half2float(__half x) { return csim::wide_f16(x.bits); }
inline __half __float2half(float value) { return {csim::narrow_f16(value)}; }
#endif
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

namespace csim {

enum class State { Running, InWarp, AtBarrier, Done };

struct Copy { void *shared; unsigned char bytes[16]; int group; };

struct Fiber {
  void *stack_pointer;
  std::unique_ptr<char[]> stack;
  State state;
  uint3 thread;
  int site;              // line of the barrier, or kind of the collective, at which it waits
  unsigned collectives;  // passed so far: two mailboxes alternate
  int groups;            // of cp.async, closed so far
  std::vector<Copy> copies;
};

struct Warp {
  alignas(16) unsigned char box[2][32][32];
  alignas(16) float result[2][16][8];
  bool computed[2];
};

inline constexpr size_t STACK = 128 * 1024;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline int current;
inline void *scheduler;
inline const std::function<void()> *body;
inline dim3 grid_size, block_size;
inline uint3 block;
inline std::unique_ptr<unsigned char[]> dynamic;
inline std::map<int, std::unique_ptr<unsigned char[]>> arrays;
#ifdef CUDA_ON_CPU_LENIENT
inline constexpr bool LENIENT = true;
#else
inline constexpr bool LENIENT = false;
#endif
// 0: ascending, 1: descending, others: shuffled with this seed.
inline unsigned order = 0;

[[noreturn]] inline void fail(const char *what, int a = 0, int b = 0) {
  fprintf(stderr, "CUDA on the CPU: ");
  fprintf(stderr, what, a, b);
  fprintf(stderr, " (block %u %u %u)\n", block.x, block.y, block.z);
  _exit(3);
}

#if defined(__x86_64__)
extern "C" void csim_switch(void **from, void *to);
asm(R"(
.text
.weak csim_switch
csim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "the fibers' switch is written for x86-64"
#endif

inline void yield(State state, int site) {
  Fiber &me = fibers[current];
  me.state = state;
  me.site = site;
  csim_switch(&me.stack_pointer, scheduler);
}

inline void fiber_main() {
  (*body)();
  if (!fibers[current].copies.empty()) fail("a thread ended with cp.async data that it never waited for");
  yield(State::Done, 0);
  abort();
}

inline void start(Fiber &fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[STACK]);
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack.get(), STACK);  // the last thread's frames
#endif
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + STACK) & ~uintptr_t(15);
  auto *stack = reinterpret_cast<void **>(top) - 2;  // so that the entry finds the alignment that a call leaves
  stack[0] = reinterpret_cast<void *>(&fiber_main);
  stack[1] = nullptr;
  fiber.stack_pointer = stack - 6;
  memset(fiber.stack_pointer, 0, 6 * sizeof(void *));
  fiber.state = State::Running;
  fiber.collectives = fiber.groups = 0;
  fiber.copies.clear();
}

inline std::vector<int> sequence(int count, unsigned salt) {
  std::vector<int> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  if (order == 1) std::reverse(numbers.begin(), numbers.end());
  if (order > 1) std::shuffle(numbers.begin(), numbers.end(), std::mt19937(order * 7919 + salt));
  return numbers;
}

// Runs a warp until each of its lanes waits at a barrier or has ended.
inline void run_warp(int warp, const std::vector<int> &lanes) {
  for (;;) {
    for (int lane : lanes) {
      Fiber &fiber = fibers[current = warp * 32 + lane];
      if (fiber.state == State::Running) csim_switch(&scheduler, fiber.stack_pointer);
    }
    Fiber *first = &fibers[warp * 32];
    auto count = [&](State state) { return int(std::count_if(first, first + 32, [=](Fiber &f) { return f.state == state; })); };
    int waiting = count(State::InWarp);
    if (waiting == 0) return;
    if (waiting < 32 - (LENIENT ? count(State::Done) : 0)) fail("only %d lanes of a warp came to a collective", waiting);
    for (int lane = 0; lane < 32; lane++) {
      if (first[lane].state == State::Done) continue;
      if (first[lane].site != first->site) fail("lanes of a warp met in different collectives (%d, %d)", first->site, first[lane].site);
      first[lane].state = State::Running;
    }
  }
}

inline void run_block(size_t shared_bytes) {
  int threads = fibers.size();
  dynamic.reset(new unsigned char[shared_bytes]);
  memset(dynamic.get(), 0xff, shared_bytes);
  arrays.clear();
  for (Warp &warp : warps) warp.computed[0] = warp.computed[1] = false;
  for (int i = 0; i < threads; i++) {
    if (i >= int(block_size.x * block_size.y * block_size.z)) {
      fibers[i].state = State::Done;
      continue;
    }
    start(fibers[i]);
    fibers[i].thread = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
  }
  auto warp_order = sequence(threads / 32, 1), lane_order = sequence(32, 2);
  for (;;) {
    for (int warp : warp_order) run_warp(warp, lane_order);
    int done = std::count_if(fibers.begin(), fibers.end(), [](Fiber &f) { return f.state == State::Done; });
    if (done == threads) return;
    if (done && !LENIENT) fail("%d threads ended before the __syncthreads of line %d", done, [] {
      for (Fiber &f : fibers) if (f.state == State::AtBarrier) return f.site;
      return 0;
    }());
    for (Fiber &fiber : fibers) {
      if (fiber.state == State::Done) continue;
      if (!LENIENT && fiber.site != fibers[0].site) fail("threads met at different __syncthreads (lines %d, %d)", fibers[0].site, fiber.site);
      fiber.state = State::Running;
    }
  }
}

// Runs a kernel over a grid; `kernel` calls it with its arguments.
inline void launch(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()> &kernel) {
  int count = threads.x * threads.y * threads.z;
  if (count % 32 && !LENIENT) fail("a block of %d threads: whole warps are modelled only", count);
  grid_size = grid;
  block_size = threads;
  body = &kernel;
  warps.resize((count + 31) / 32);
  fibers.resize(warps.size() * 32);
  for (int number : sequence(grid.x * grid.y * grid.z, 3)) {
    block = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    run_block(shared_bytes);
  }
  dynamic.reset();
  arrays.clear();
}

inline Warp &warp() { return warps[current / 32]; }
inline int lane() { return current % 32; }

// Puts a value into the lane's mailbox and waits for the warp. One wait is enough: a lane can be ahead by one collective at most, and
// the two mailboxes alternate. Returns the mailbox's number.
template <class T> int deposit(const T &value, int kind) {
  static_assert(sizeof(T) <= 32, "a mailbox has 32 bytes");
  int box = fibers[current].collectives++ & 1;
  memcpy(warp().box[box][lane()], &value, sizeof(T));
  warp().computed[box] = false;
  yield(State::InWarp, kind);
  return box;
}

template <class T> T collect(int box, int from) {
  T value;
  memcpy(&value, warp().box[box][from & 31], sizeof(T));
  return value;
}

template <class T> T shuffle(uint32_t mask, T value, int from) {
  if (mask != 0xffffffffu) fail("a shuffle of part of a warp");
  return collect<T>(deposit(value, 1), from);
}

// Storage of one `SHARED_ARRAY`, made by the block's first thread that comes by.
inline void *array(int number, size_t bytes) {
  auto &storage = arrays[number];
  if (!storage) {
    storage.reset(new unsigned char[bytes]);
    memset(storage.get(), 0xff, bytes);
  }
  return storage.get();
}

struct Fragments { uint32_t a[4], b[2]; };

template <class T> float wide(uint16_t bits);
template <> inline float wide<__nv_bfloat16>(uint16_t bits) { return __bfloat162float({bits}); }
template <> inline float wide<__half>(uint16_t bits) { return __half2float({bits}); }

// The warp's product, from PTX's tables: A[g][2t + i] in a0, A[g + 8] in a1, columns + 8 in a2 and a3; B[2t + i][g] in b0, rows + 8 in b1.
template <class T> __attribute__((optimize("O3"), no_sanitize("address", "undefined"))) void product(Warp &warp, int box) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    auto *part = reinterpret_cast<const Fragments *>(warp.box[box][lane]);
    int g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < 2; i++) {
      for (int r = 0; r < 4; r++) a[g + r % 2 * 8][t + i + r / 2 * 8] = wide<T>(part->a[r] >> 16 * i);
      for (int r = 0; r < 2; r++) b[t + i + r * 8][g] = wide<T>(part->b[r] >> 16 * i);
    }
  }
  for (int row = 0; row < 16; row++) {
    float sum[8] = {};
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 8; n++) sum[n] += a[row][k] * b[k][n];
    memcpy(warp.result[box][row], sum, sizeof sum);
  }
  warp.computed[box] = true;
}

}  // namespace csim

#define threadIdx (csim::fibers[csim::current].thread)
#define blockIdx (csim::block)
#define blockDim (csim::block_size)
#define gridDim (csim::grid_size)
#define __syncthreads() csim::yield(csim::State::AtBarrier, __LINE__)
#define __syncwarp() ((void)csim::deposit(0, 2))
#define __shfl_xor_sync(mask, value, distance) csim::shuffle(mask, value, csim::lane() ^ (distance))
#define __shfl_sync(mask, value, from) csim::shuffle(mask, value, from)

#define DYNAMIC_SHARED(name) unsigned char *name = csim::dynamic.get()
#define SHARED_ARRAY(T, name, count) T *name = static_cast<T *>(csim::array(__COUNTER__, sizeof(T) * (count)))

// c += a b for tiles of 16x16 and 16x8 spread over the warp.
template <class T> void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  int box = csim::deposit(csim::Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, 3);
  csim::Warp &warp = csim::warp();
  if (!warp.computed[box]) csim::product<T>(warp, box);
  int g = csim::lane() / 4, t = csim::lane() % 4 * 2;
  for (int i = 0; i < 4; i++) c[i] += warp.result[box][g + i / 2 * 8][t + i % 2];
}

// ldmatrix: lane l gives the address of row l % 8 of matrix l / 8.
inline const unsigned char *matrix_row(int box, int row) {
  auto *address = csim::collect<const unsigned char *>(box, row);
  if (reinterpret_cast<uintptr_t>(address) % 16) csim::fail("ldmatrix of an address that is not a multiple of 16");
  return address;
}
inline void load_matrices(uint32_t (&r)[4], const void *row) {
  int box = csim::deposit(row, 4), g = csim::lane() / 4, t = csim::lane() % 4;
  for (int i = 0; i < 4; i++) memcpy(&r[i], matrix_row(box, i * 8 + g) + t * 4, 4);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void *row) {
  int box = csim::deposit(row, 5), g = csim::lane() / 4, t = csim::lane() % 4;
  for (int i = 0; i < 4; i++) {
    uint16_t pair[2];
    for (int j = 0; j < 2; j++) memcpy(&pair[j], matrix_row(box, i * 8 + 2 * t + j) + g * 2, 2);
    memcpy(&r[i], pair, 4);
  }
}

// cp.async: 16 bytes, or 16 zeros; the target holds NaN until the wait.
inline void copy_async(void *shared, const void *global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) csim::fail("cp.async of an unaligned address");
  csim::Fiber &me = csim::fibers[csim::current];
  csim::Copy copy{shared, {}, me.groups};
  if (valid) memcpy(copy.bytes, global, 16);
  memset(shared, 0xff, 16);
  me.copies.push_back(copy);
}
inline void copy_async_commit() { csim::fibers[csim::current].groups++; }
template <int PENDING> void copy_async_wait() {
  csim::Fiber &me = csim::fibers[csim::current];
  auto arrived = [&](const csim::Copy &copy) { return copy.group < me.groups - PENDING; };
  for (auto &copy : me.copies)
    if (arrived(copy)) memcpy(copy.shared, copy.bytes, 16);
  me.copies.erase(std::remove_if(me.copies.begin(), me.copies.end(), arrived), me.copies.end());
}
