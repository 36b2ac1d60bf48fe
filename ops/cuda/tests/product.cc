#include "check.h"
#include "../product.cu"

template <class T> using Kernel = void (*)(const T *, const void *, const T *, const T *, const T *, T *, product::Sizes);

// A weight in memory and in f64, the latter by ggml's own loops (dequantize_row_q8_0, _q4_K, _q6_K), which take a block in file order.
struct Matrix {
  std::vector<unsigned char> bytes;
  std::vector<double> values;
};

inline void put_half(std::vector<unsigned char> &bytes, size_t at, float value) {
  const f16 half = narrow<f16>(value);
  memcpy(&bytes[at], &half, 2);
}
inline double half_of(const unsigned char *bytes) {
  f16 half;
  memcpy(&half, bytes, 2);
  return wide(half);
}

template <class T> Matrix dense(int rows, int columns) {
  auto weights = normals<T>(rows * columns);
  Matrix matrix{std::vector<unsigned char>(weights.size() * sizeof(T)), {}};
  memcpy(matrix.bytes.data(), weights.data(), matrix.bytes.size());
  for (T weight : weights) matrix.values.push_back(wide(weight));
  return matrix;
}

inline Matrix random_blocks(int count, int bytes) {
  Matrix matrix{std::vector<unsigned char>(count * bytes), {}};
  for (auto &byte : matrix.bytes) byte = below(256);
  return matrix;
}

template <class T> Matrix q8_0(int rows, int columns) {
  Matrix matrix = random_blocks(rows * columns / 32, 34);
  for (size_t at = 0; at < matrix.bytes.size(); at += 34) {
    put_half(matrix.bytes, at, 0.01f * (1 + std::fabs(normal())));
    const unsigned char *x = &matrix.bytes[at];
    for (int j = 0; j < 32; j++) matrix.values.push_back(half_of(x) * static_cast<signed char>(x[2 + j]));
  }
  return matrix;
}

template <class T> Matrix q4_k(int rows, int columns) {
  Matrix matrix = random_blocks(rows * columns / 256, 144);
  for (size_t at = 0; at < matrix.bytes.size(); at += 144) {
    put_half(matrix.bytes, at, 0.002f * (1 + std::fabs(normal())));
    put_half(matrix.bytes, at + 2, 0.01f * (1 + std::fabs(normal())));
    const unsigned char *x = &matrix.bytes[at], *q = x + 16, *s = x + 4;
    auto scale = [&](int j) { return j < 4 ? s[j] & 63 : (s[j + 4] & 0xF) | ((s[j - 4] >> 6) << 4); };
    auto minimum = [&](int j) { return j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4); };
    const double d = half_of(x), dmin = half_of(x + 2);
    for (int j = 0, is = 0; j < 256; j += 64, q += 32, is += 2) {
      for (int l = 0; l < 32; l++) matrix.values.push_back(d * scale(is) * (q[l] & 0xF) - dmin * minimum(is));
      for (int l = 0; l < 32; l++) matrix.values.push_back(d * scale(is + 1) * (q[l] >> 4) - dmin * minimum(is + 1));
    }
  }
  return matrix;
}

template <class T> Matrix q6_k(int rows, int columns) {
  Matrix matrix = random_blocks(rows * columns / 256, 210);
  for (size_t at = 0; at < matrix.bytes.size(); at += 210) {
    put_half(matrix.bytes, at + 208, 0.0005f * (1 + std::fabs(normal())));
    const unsigned char *x = &matrix.bytes[at], *ql = x, *qh = x + 128;
    const auto *sc = reinterpret_cast<const signed char *>(x + 192);
    const double d = half_of(x + 208);
    std::vector<double> y(256);
    for (int n = 0; n < 256; n += 128, ql += 64, qh += 32, sc += 8)
      for (int l = 0; l < 32; ++l) {
        const int is = l / 16;
        y[n + l] = d * sc[is] * (((ql[l] & 0xF) | (((qh[l] >> 0) & 3) << 4)) - 32);
        y[n + l + 32] = d * sc[is + 2] * (((ql[l + 32] & 0xF) | (((qh[l] >> 2) & 3) << 4)) - 32);
        y[n + l + 64] = d * sc[is + 4] * (((ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4)) - 32);
        y[n + l + 96] = d * sc[is + 6] * (((ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4)) - 32);
      }
    matrix.values.insert(matrix.values.end(), y.begin(), y.end());
  }
  return matrix;
}

struct Shape {
  int rows, outputs, inputs, rank;
  bool biased;
  float alpha;
};

// What one row and one column of W come to: sum and size of its terms.
template <class T> struct Inputs {
  Shape s;
  bool turned;
  Matrix weight;
  std::vector<T> x, low_x, low_weight, bias;

  Inputs(const Shape &s, bool turned, Matrix (*make)(int, int))
      : s(s), turned(turned), weight(turned ? make(s.inputs, s.outputs) : make(s.outputs, s.inputs)), x(normals<T>(s.rows * s.inputs)),
        low_x(normals<T>(s.rows * s.rank)), low_weight(normals<T>(s.outputs * s.rank)), bias(normals<T>(s.outputs)) {}
  product::Sizes sizes() const { return {s.rows, s.outputs, s.inputs, s.rank, s.alpha}; }
  const T *biases() const { return s.biased ? bias.data() : nullptr; }

  void compare(Proof &proof, const std::vector<T> &y, double weight_rounding) const {
    for (int r = 0; r < s.rows; r++)
      for (int o = 0; o < s.outputs; o++) {
        double sum = 0, size = 0, low = 0, low_size = 0;
        for (int i = 0; i < s.inputs; i++) {
          const double term = s.alpha * wide(x[r * s.inputs + i]) * weight.values[turned ? i * s.outputs + o : o * s.inputs + i];
          sum += term, size += std::fabs(term);
        }
        for (int i = 0; i < s.rank; i++) {
          const double term = double(wide(low_x[r * s.rank + i])) * wide(low_weight[turned ? i * s.outputs + o : o * s.rank + i]);
          low += term, low_size += std::fabs(term);
        }
        const double expected = sum + low + (s.biased ? wide(bias[o]) : 0);
        proof.close("y", r * s.outputs + o, wide(y[r * s.outputs + o]), expected,
                    rounding<T>(expected) + (weight_rounding + SUMMING) * size + SUMMING * (low_size + 4) + 1e-6);
      }
  }
};

template <class T> void prove(const char *name, int step, Matrix (*make)(int, int), Kernel<T> straight, Kernel<T> turned, Kernel<T> vector) {
  const double weight_rounding = step == 8 ? 0 : ROUNDING<T>;
  const int rows[] = {1, 3, 17, 64, 65, 129}, ranks[] = {0, 8, 16, 40};
  Proof proof(text("product %s %s", name, TYPE_NAME<T>)), turned_proof(text("product turned %s %s", name, TYPE_NAME<T>)),
      vector_proof(text("product vector %s %s", name, TYPE_NAME<T>));
  for (int i = 0; i < 30; i++) {
    const int long_side = step == 256 ? 256 * (1 + i % 2) : std::max(step, step == 8 ? 8 + 24 * (i % 7) : 32 * (1 + i % 5));
    const int other = 8 * (1 + (i * 5) % 19), rank = ranks[i % 4];
    const Shape s{i % 10 == 9 ? rows[i % 6] : 1 + (i * 7) % 20, other, long_side, rank, i % 3 == 0, i % 5 ? 1.0f : 0.5f}, t{s.rows, long_side, other, rank, s.biased, s.alpha};
    auto launch = [&](Proof &proof, Kernel<T> kernel, const Shape &shape, bool is_turned, dim3 grid, size_t shared) {
      proof.shape(text("(%d, %d) from (%d), rank %d, bias %d, alpha %g", shape.rows, shape.outputs, shape.inputs, shape.rank, shape.biased, shape.alpha));
      Inputs<T> inputs(shape, is_turned, make);
      auto y = unwritten<T>(shape.rows * shape.outputs);
      auto run = [&] {
        csim::launch(grid, product::THREADS, shared, [&] {
          kernel(inputs.x.data(), inputs.weight.bytes.data(), inputs.low_x.data(), inputs.low_weight.data(), inputs.biases(), y.data(), inputs.sizes());
        });
      };
      run();
      inputs.compare(proof, y, weight_rounding);
      if (i < 6) proof.repeatable(run, y);
    };
    auto grid = [](const Shape &s) { return dim3((s.outputs + product::COLUMNS - 1) / product::COLUMNS, (s.rows + product::ROWS - 1) / product::ROWS); };
    launch(proof, straight, s, false, grid(s), 0);
    launch(turned_proof, turned, t, true, grid(t), 0);
    launch(vector_proof, vector, {1 + i % 4, s.outputs, s.inputs, s.rank, s.biased, s.alpha}, false, dim3((s.outputs + 7) / 8, 1 + i % 4), (s.inputs + 31) / 32 * 33 * sizeof(float));
  }
}

#define PROVE(T, SUFFIX, FORMAT, STEP) \
  prove<T>(#FORMAT, STEP, FORMAT<T>, product_##FORMAT##_##SUFFIX, product_turned_##FORMAT##_##SUFFIX, product_vector_##FORMAT##_##SUFFIX);
#define PROVE_TYPE(T, SUFFIX)   \
  PROVE(T, SUFFIX, dense, 8)    \
  PROVE(T, SUFFIX, q8_0, 32)    \
  PROVE(T, SUFFIX, q4_k, 256)   \
  PROVE(T, SUFFIX, q6_k, 256)

int main() {
  PROVE_TYPE(bf16, bf16)
  PROVE_TYPE(f16, f16)
}
