#include "check.h"
#include "../activation.cu"

template <class T> using Forward = void (*)(const T *, const T *, T *, int64);
template <class T> using Backward = void (*)(const T *, const T *, const T *, T *, T *, int64);

struct Curve {
  double value, slope;
};
Curve silu(double x) {
  const double s = 1 / (1 + std::exp(-x));
  return {x * s, s * (1 + x * (1 - s))};
}
Curve gelu(double x) {
  const double cdf = 0.5 * std::erfc(-x / std::sqrt(2.0));
  return {x * cdf, cdf + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI)};
}

template <class T> void prove(const char *name, Curve (*curve)(double), Forward<T> forward, Backward<T> backward) {
  Proof proof(text("%s %s", name, TYPE_NAME<T>));
  for (int i = 0; i < 36; i++) {
    const int count = i < 18 ? i + 1 : 1 + below(4000), blocks = (count + 4 * activation::THREADS - 1) / (4 * activation::THREADS);
    proof.shape(text("%d values", count));
    auto gate = normals<T>(count, 3), value = normals<T>(count), grad = normals<T>(count);
    auto y = unwritten<T>(count), dgate = unwritten<T>(count), dvalue = unwritten<T>(count);
    gate[0] = narrow<T>(i % 2 ? 30.0f : -30.0f);
    csim::launch(blocks, activation::THREADS, 0, [&] { forward(gate.data(), value.data(), y.data(), count); });
    csim::launch(blocks, activation::THREADS, 0, [&] { backward(gate.data(), value.data(), grad.data(), dgate.data(), dvalue.data(), count); });
    for (int j = 0; j < count; j++) {
      const double g = wide(gate[j]), v = wide(value[j]), d = wide(grad[j]);
      const Curve own = curve(g);
      auto close = [&](const char *what, T found, double expected, double size) {
        proof.close(what, j, wide(found), expected, rounding<T>(expected) + 4 * SUMMING * size + 1e-7);
      };
      close("y", y[j], own.value * v, std::fabs(v) * (1 + std::fabs(g)));
      close("dgate", dgate[j], d * v * own.slope, std::fabs(d * v) * (1 + std::fabs(g)));
      close("dvalue", dvalue[j], d * own.value, std::fabs(d) * (1 + std::fabs(g)));
    }
  }
}

#define PROVE(T, SUFFIX)                                                       \
  prove<T>("swiglu", silu, swiglu_forward_##SUFFIX, swiglu_backward_##SUFFIX); \
  prove<T>("geglu", gelu, geglu_forward_##SUFFIX, geglu_backward_##SUFFIX);

int main() {
  PROVE(bf16, bf16)
  PROVE(f16, f16)
  PROVE(float, f32)
}
