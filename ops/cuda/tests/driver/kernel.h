// A kernel as the driver knows it, in a module's library.
#pragma once
#include <cstddef>

struct Kernel {
  const char *name;
  int count;            // of arguments
  const size_t *sizes;  // of each, in bytes
  void (*run)(const unsigned *grid, const unsigned *block, size_t shared_bytes, void *const *arguments);
};
