#include "check.h"
#include "../norm.cu"

template <class T> using Forward = void (*)(const T *, const T *, const T *, T *, int, float);
template <class T> using Backward = void (*)(const T *, const T *, const T *, T *, float *, int, int, int, float);
template <class T> using Sum = void (*)(const float *, T *, T *, int, int);

template <class T> void prove(const char *name, bool centred, Forward<T> forward, Backward<T> backward, Sum<T> sum) {
  Proof proof(text("%s norm %s", name, TYPE_NAME<T>));
  const int widths[] = {4, 12, 36, 100, 512, 1020, 1024, 1028, 2052}, rows_of[] = {1, 2, 5, 7, 17};
  for (int i = 0; i < 36; i++) {
    const int width = widths[i % 9], rows = rows_of[i % 5], group = 1 + i % 4, groups = (rows + group - 1) / group;
    const bool biased = centred && i % 2;
    const float eps = 1e-5f;
    proof.shape(text("%d rows of %d, groups of %d, bias %d", rows, width, group, biased));
    auto x = normals<T>(rows * width, 1.0f + i % 3), w = normals<T>(width), b = normals<T>(width), g = normals<T>(rows * width);
    auto y = unwritten<T>(x.size()), dx = unwritten<T>(x.size()), dw = unwritten<T>(width), db = unwritten<T>(width), frozen = unwritten<T>(x.size());
    auto partials = unwritten<float>(groups * 2 * width);
    auto run = [&] {
      csim::launch(rows, norms::THREADS, 0, [&] { forward(x.data(), w.data(), biased ? b.data() : nullptr, y.data(), width, eps); });
      csim::launch(groups, norms::THREADS, 2 * width * sizeof(float), [&] { backward(x.data(), w.data(), g.data(), dx.data(), partials.data(), rows, group, width, eps); });
      csim::launch((width + norms::THREADS - 1) / norms::THREADS, norms::THREADS, 0, [&] { sum(partials.data(), dw.data(), biased ? db.data() : nullptr, groups, width); });
    };
    run();
    csim::launch(groups, norms::THREADS, 0, [&] { backward(x.data(), w.data(), g.data(), frozen.data(), nullptr, rows, group, width, eps); });
    std::vector<double> dw_sum(width), dw_size(width), db_sum(width), db_size(width);
    for (int row = 0; row < rows; row++) {
      const T *own = &x[row * width], *grad = &g[row * width];
      double mean = 0, square = 0, shift = 0, slope = 0, size = 0;
      for (int c = 0; c < width && centred; c++) mean += double(wide(own[c])) / width;
      for (int c = 0; c < width; c++) square += (wide(own[c]) - mean) * (wide(own[c]) - mean) / width;
      const double r = 1 / std::sqrt(square + eps);
      for (int c = 0; c < width; c++) {
        const double n = (wide(own[c]) - mean) * r, gw = double(wide(grad[c])) * wide(w[c]);
        shift += centred ? gw / width : 0, slope += gw * n / width, size += std::fabs(gw) * (1 + std::fabs(n)) / width;
      }
      for (int c = 0; c < width; c++) {
        const int at = row * width + c;
        const double n = (wide(own[c]) - mean) * r, gw = double(wide(grad[c])) * wide(w[c]), scale = std::fabs(n) + std::fabs(mean) * r + 1;
        const double expected = n * wide(w[c]) + (biased ? wide(b[c]) : 0), gradient = r * (gw - shift - n * slope);
        proof.close("y", at, wide(y[at]), expected, rounding<T>(expected) + 4 * SUMMING * scale * (std::fabs(wide(w[c])) + 1));
        proof.close("dx", at, wide(dx[at]), gradient, rounding<T>(gradient) + 8 * SUMMING * r * scale * (std::fabs(gw) + size * scale));
        proof.require(!memcmp(&dx[at], &frozen[at], sizeof(T)), "a frozen weight changes dx");
        dw_sum[c] += wide(grad[c]) * n, dw_size[c] += std::fabs(wide(grad[c])) * scale, db_sum[c] += wide(grad[c]), db_size[c] += std::fabs(wide(grad[c]));
      }
    }
    for (int c = 0; c < width; c++) {
      proof.close("dw", c, wide(dw[c]), dw_sum[c], rounding<T>(dw_sum[c]) + 4 * SUMMING * dw_size[c]);
      if (biased) proof.close("db", c, wide(db[c]), db_sum[c], rounding<T>(db_sum[c]) + SUMMING * db_size[c]);
    }
    if (i < 12) proof.repeatable(run, y, dx, dw);
  }
}

#define PROVE(T, SUFFIX)                                                                                  \
  prove<T>("rms", false, rms_norm_forward_##SUFFIX, rms_norm_backward_##SUFFIX, norm_sum_##SUFFIX);       \
  prove<T>("layer", true, layer_norm_forward_##SUFFIX, layer_norm_backward_##SUFFIX, norm_sum_##SUFFIX);

int main() {
  PROVE(bf16, bf16)
  PROVE(f16, f16)
  PROVE(float, f32)
}
