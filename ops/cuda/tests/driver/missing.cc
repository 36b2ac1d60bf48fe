// See scripts/cuda/driver: a weak definition of every function of the libraries, which those that driver.cc has take the place of.
#include <cstdio>
#include <unistd.h>

#define MISSING(NAME)                                                                       \
  extern "C" __attribute__((weak)) void NAME() {                                            \
    fprintf(stderr, "the driver on the CPU has no %s\n", #NAME);                            \
    _exit(3);                                                                               \
  }
#include "missing.inc"
