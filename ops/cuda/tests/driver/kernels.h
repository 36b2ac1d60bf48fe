// A module's kernels by name, for the driver in driver.cc: each can be launched with the array of arguments' addresses that cuLaunchKernel gets.
#pragma once
#include "kernel.h"
#include <tuple>
#include <utility>

namespace kernels {
template <auto F> struct Of;
template <class... A, void (*F)(A...)> struct Of<F> {
  static constexpr size_t SIZES[] = {sizeof(A)..., 0};
  template <size_t... I> static void call(void *const *arguments, std::index_sequence<I...>) {
    F(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
  }
  static void run(const unsigned *grid, const unsigned *block, size_t shared_bytes, void *const *arguments) {
    csim::launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes,
                 [=] { call(arguments, std::index_sequence_for<A...>()); });
  }
  static constexpr Kernel make(const char *name) { return {name, sizeof...(A), SIZES, run}; }
};
}  // namespace kernels

#define KERNEL(name) kernels::Of<&name>::make(#name),
#define KERNELS(...)                                                              \
  static const Kernel all_kernels[] = {__VA_ARGS__};                              \
  extern "C" __attribute__((visibility("default"))) const Kernel *find_kernel(const char *name) { \
    for (const Kernel &kernel : all_kernels)                                      \
      if (!strcmp(kernel.name, name)) return &kernel;                             \
    return nullptr;                                                               \
  }
