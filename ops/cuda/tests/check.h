// What the proofs share: inputs, buffers whose ends the address sanitizer watches, comparison with a bound.
#pragma once
#include "cuda_on_cpu.h"
#include "../common.cuh"
#include <string>
#include <type_traits>

// Relative error of one rounding to T, and what f32 arithmetic loses over the sums at hand, relative to the sum of absolute values.
template <class T> constexpr double ROUNDING = std::is_same_v<T, bf16> ? 0x1p-8 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-24;
constexpr double SUMMING = 0x1p-19;

// Error of one rounding of `x` to T; f16 also has its smallest step.
template <class T> double rounding(double x) { return ROUNDING<T> * std::fabs(x) + (std::is_same_v<T, f16> ? 0x1p-25 : 0); }

inline std::mt19937 &random_bits() {
  static std::mt19937 bits(20240229);
  return bits;
}
inline float normal() { return std::normal_distribution<float>()(random_bits()); }
inline int below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_bits()); }

template <class T> std::vector<T> normals(size_t count, float scale = 1.0f) {
  std::vector<T> values(count);
  for (T &value : values) value = narrow<T>(scale * normal());
  return values;
}
// Outputs start as NaN: what a kernel leaves out shows.
template <class T> std::vector<T> unwritten(size_t count) { return std::vector<T>(count, narrow<T>(NAN)); }

// One kernel's proof: counts shapes, remembers the largest error as a share of its bound, ends the program at the first fault.
class Proof {
 public:
  explicit Proof(std::string name) : name(std::move(name)) {}
  ~Proof() {
    printf("%-34s %3d shapes, largest error %.2f of its bound\n", name.c_str(), shapes, worst);
    if (shapes < 30) fail("only " + std::to_string(shapes) + " shapes");
  }

  // Begins a shape; the order of threads, warps and blocks changes from one to the next.
  void shape(std::string text) { current = std::move(text), csim::order = shapes++ % 4; }

  void close(const char *what, size_t index, double found, double expected, double bound) {
    double error = std::fabs(found - expected);
    if (!(error <= bound))
      fail(std::string(what) + "[" + std::to_string(index) + "] is " + std::to_string(found) + ", expected " + std::to_string(expected) +
           " within " + std::to_string(bound));
    worst = std::max(worst, error == 0 ? 0 : error / bound);
  }
  void require(bool holds, const char *what) {
    if (!holds) fail(what);
  }

  // The kernel's outputs are the same bits in every order.
  template <class... T> void repeatable(const std::function<void()> &run, std::vector<T> &...outputs) {
    auto before = std::make_tuple(outputs...);
    csim::order = csim::order == 1 ? 7 : 1;
    run();
    auto same = [](auto &a, auto &b) { return a.size() == b.size() && (a.empty() || !memcmp(a.data(), b.data(), a.size() * sizeof(a[0]))); };
    require(std::apply([&](auto &...old) { return (same(old, outputs) && ...); }, before), "another order of threads gave other bits");
  }

 private:
  std::string name, current;
  int shapes = 0;
  double worst = 0;

  [[noreturn]] void fail(const std::string &what) {
    fflush(stdout);
    fprintf(stderr, "%s, %s: %s\n", name.c_str(), current.c_str(), what.c_str());
    _exit(1);
  }
};

template <class... A> std::string text(const char *format, A... a) {
  char buffer[256];
  snprintf(buffer, sizeof buffer, format, a...);
  return buffer;
}
template <class T> constexpr const char *TYPE_NAME = std::is_same_v<T, bf16> ? "bf16" : std::is_same_v<T, f16> ? "f16" : "f32";
