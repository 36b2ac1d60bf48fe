#include "check.h"
#include "../conv3d.cu"

template <class T> using Correlate = void (*)(const T *, const T *, const T *, T *, conv3d::Size, int);
template <class T> using Weight = void (*)(const T *, const T *, float *, conv3d::Size, int);
template <class T> using Sum = void (*)(const float *, T *, T *, int, int);

template <class T> void prove(Correlate<T> correlate, Weight<T> weight, Sum<T> sum) {
  Proof proof(text("depthwise conv3d %s", TYPE_NAME<T>));
  const int sides[] = {1, 2, 3, 4, 5}, channels_of[] = {1, 5, 32, 33, 40};
  for (int i = 0; i < 32; i++) {
    const conv3d::Size size{1 + i % 2, sides[i % 5], sides[(i + i / 5) % 5], sides[(i + 2) % 5], channels_of[(i + i / 7) % 5], 1 + i % 2};
    const auto [B, D, H, W, C, front] = size;
    const int rows = B * D * H, group = 1 + i % 11, groups = (rows + group - 1) / group;
    proof.shape(text("(%d, %d, %d, %d, %d), front %d, groups of %d", B, D, H, W, C, front, group));
    const int count = rows * W * C;
    auto x = normals<T>(count), w = normals<T>(C * 27), b = normals<T>(C), g = normals<T>(count);
    auto y = unwritten<T>(count), dx = unwritten<T>(count), dw = unwritten<T>(C * 27), db = unwritten<T>(C);
    auto partials = unwritten<float>(groups * 28 * C);
    const dim3 grid((C + conv3d::CHANNELS - 1) / conv3d::CHANNELS, (rows + conv3d::ROWS - 1) / conv3d::ROWS), block(conv3d::CHANNELS, conv3d::ROWS);
    auto turned = size;
    turned.front = 2 - front;
    auto run = [&] {
      csim::launch(grid, block, 0, [&] { correlate(x.data(), w.data(), b.data(), y.data(), size, 0); });
      csim::launch(grid, block, 0, [&] { correlate(g.data(), w.data(), nullptr, dx.data(), turned, 1); });
      csim::launch(dim3(grid.x, groups), block, 0, [&] { weight(x.data(), g.data(), partials.data(), size, group); });
      csim::launch((28 * C + 255) / 256, 256, 0, [&] { sum(partials.data(), dw.data(), db.data(), groups, C); });
    };
    run();
    struct Sums {
      std::vector<double> value, size;
      explicit Sums(size_t n) : value(n), size(n) {}
      void add(size_t i, double x) { value[i] += x, size[i] += std::fabs(x); }
    } out(count), in(count), taps(C * 27), bias(C);
    auto at = [&](int n, int t, int h, int v, int c) { return (((n * D + t) * H + h) * W + v) * C + c; };
    for (int o = 0; o < count; o++) {
      const int c = o % C, v = o / C % W, h = o / C / W % H, t = o / C / W / H % D, n = o / C / W / H / D;
      out.add(o, wide(b[c])), bias.add(c, wide(g[o]));
      for (int tap = 0; tap < 27; tap++) {
        const int st = t + tap / 9 - front, sh = h + tap / 3 % 3 - 1, sv = v + tap % 3 - 1;
        if (st < 0 || st >= D || sh < 0 || sh >= H || sv < 0 || sv >= W) continue;
        const int s = at(n, st, sh, sv, c);
        const double weight = wide(w[c * 27 + tap]);
        out.add(o, weight * wide(x[s])), in.add(s, weight * wide(g[o])), taps.add(c * 27 + tap, double(wide(g[o])) * wide(x[s]));
      }
    }
    auto close = [&](const char *what, const std::vector<T> &found, const Sums &expected) {
      for (size_t j = 0; j < found.size(); j++)
        proof.close(what, j, wide(found[j]), expected.value[j], rounding<T>(expected.value[j]) + SUMMING * expected.size[j] + 1e-9);
    };
    close("y", y, out), close("dx", dx, in), close("dw", dw, taps), close("db", db, bias);
    if (i < 12) proof.repeatable(run, y, dx, dw, db);
  }
}

int main() {
  prove<bf16>(conv3d_bf16, conv3d_weight_bf16, conv3d_sum_bf16);
  prove<f16>(conv3d_f16, conv3d_weight_f16, conv3d_sum_f16);
  prove<float>(conv3d_f32, conv3d_weight_f32, conv3d_sum_f32);
}
