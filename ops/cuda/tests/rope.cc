#include "check.h"
#include "../rope.cu"

template <class T> using Rotate = void (*)(Heads<const T>, Heads<T>, const float *, const float *, const int *, int, int, int, int64, float);

// Into a cache with room to spare, with rows first or heads first, there and back.
template <class T> void prove(Rotate<T> kernel) {
  Proof proof(text("rope %s", TYPE_NAME<T>));
  const int widths[] = {8, 32, 64, 80, 128}, lengths[] = {1, 2, 7, 16, 33, 41};
  for (int i = 0; i < 36; i++) {
    const int batch = 1 + i % 2, heads = 1 + i % 3, length = lengths[i % 6], width = widths[i % 5], half = width / 2, room = length + i % 4, positions = length + 9;
    const float direction = i % 2 ? 1 : -1;
    proof.shape(text("B %d, H %d, L %d, D %d, room %d, direction %g", batch, heads, length, width, room, direction));
    auto x = normals<T>(batch * heads * length * width), y = unwritten<T>(batch * heads * room * width);
    std::vector<float> cosines(positions * half), sines(cosines.size());
    for (int j = 0; j < positions * half; j++) cosines[j] = std::cos(0.37 * j), sines[j] = std::sin(0.37 * j);
    std::vector<int> places(length);
    for (int &place : places) place = below(positions);
    const bool own = i % 3 == 0;
    const Heads<const T> from = i % 4 < 2 ? Heads<const T>{x.data(), heads * length * width, length * width, width} : Heads<const T>{x.data(), heads * length * width, width, heads * width};
    const Heads<T> to{y.data(), heads * room * width, room * width, width};
    const int64 count = int64(batch) * heads * length * width / 8;
    auto run = [&] {
      csim::launch((count + rope::THREADS - 1) / rope::THREADS, rope::THREADS, 0, [&] {
        kernel(from, to, cosines.data(), sines.data(), own ? places.data() : nullptr, heads, length, width, count, direction);
      });
    };
    run();
    size_t written = 0;
    for (int b = 0; b < batch; b++)
      for (int h = 0; h < heads; h++)
        for (int row = 0; row < length; row++)
          for (int c = 0; c < half; c++, written += 2) {
            const int64 source = b * from.batch + h * from.head + row * from.row + c, target = b * to.batch + h * to.head + row * to.row + c;
            const int line = (own ? places[row] : row) * half + c;
            const double p = wide(x[source]), q = wide(x[source + half]), cosine = cosines[line], sine = direction * sines[line];
            const double size = std::fabs(p) + std::fabs(q), first = p * cosine - q * sine, second = q * cosine + p * sine;
            proof.close("first", target, wide(y[target]), first, rounding<T>(first) + SUMMING * size);
            proof.close("second", target, wide(y[target + half]), second, rounding<T>(second) + SUMMING * size);
          }
    size_t left = 0;
    for (T value : y) left += std::isnan(wide(value));
    proof.require(written + left == y.size(), "rows outside the target were written to");
    proof.repeatable(run, y);
  }
}

int main() {
  prove<bf16>(rope_bf16);
  prove<f16>(rope_f16);
  prove<float>(rope_f32);
}
