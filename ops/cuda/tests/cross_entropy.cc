#include "check.h"
#include "../cross_entropy.cu"

template <class T> using Update = void (*)(T *, const unsigned *, const float *, float *, int, int, int);
template <class T> using Gradient = void (*)(T *, const unsigned *, const float *, const float *, const float *, int, int, int);

// The vocabulary in chunks of any width, the last one shorter; rows of weight 0; the gradient in place.
template <class T> void prove(Update<T> update, Gradient<T> gradient) {
  Proof proof(text("cross-entropy %s", TYPE_NAME<T>));
  const int vocabularies[] = {1, 2, 5, 33, 257, 1000, 1031}, chunks[] = {1, 7, 64, 300, 1031}, rows_of[] = {1, 3, 8};
  for (int i = 0; i < 35; i++) {
    const int vocabulary = vocabularies[i % 7], chunk = std::max(vocabulary / 40, std::min(vocabulary, chunks[i % 5])), rows = rows_of[i % 3];
    proof.shape(text("%d rows, vocabulary %d in chunks of %d", rows, vocabulary, chunk));
    auto logits = normals<T>(rows * vocabulary, i % 4 ? 4 : 20);
    std::vector<unsigned> targets(rows);
    std::vector<float> weights(rows), state = unwritten<float>(3 * rows), loss = unwritten<float>(1), upstream{0.5f};
    for (int row = 0; row < rows; row++) targets[row] = below(vocabulary), weights[row] = row % 3 == 1 ? 0.0f : 0.25f * (1 + below(7));
    auto columns = [&](int first) {
      const int width = std::min(chunk, vocabulary - first);
      std::vector<T> part;
      for (int row = 0; row < rows; row++) part.insert(part.end(), &logits[row * vocabulary + first], &logits[row * vocabulary + first] + width);
      return part;
    };
    for (int first = 0; first < vocabulary; first += chunk) {
      auto part = columns(first);
      csim::launch(rows, cross_entropy::THREADS, 0, [&] { update(part.data(), targets.data(), weights.data(), state.data(), rows, first, part.size() / rows); });
    }
    csim::launch(1, cross_entropy::THREADS, 0, [&] { cross_entropy_loss(weights.data(), state.data(), loss.data(), rows); });
    double total = 0, size = 0;
    std::vector<double> most(rows, -INFINITY), sum(rows);
    for (int row = 0; row < rows; row++) {
      const T *own = &logits[row * vocabulary];
      for (int c = 0; c < vocabulary; c++) most[row] = std::max<double>(most[row], wide(own[c]));
      for (int c = 0; c < vocabulary; c++) sum[row] += std::exp(wide(own[c]) - most[row]);
      total += weights[row] * (std::log(sum[row]) + most[row] - wide(own[targets[row]]));
      size += weights[row] * (1 + std::fabs(std::log(sum[row])) + std::fabs(most[row]) + std::fabs(wide(own[targets[row]])));
    }
    proof.close("loss", 0, loss[0], total, 4 * SUMMING * size + 1e-9);
    for (int first = 0; first < vocabulary; first += chunk) {
      auto part = columns(first);
      const int width = part.size() / rows;
      csim::launch(rows, cross_entropy::THREADS, 0, [&] { gradient(part.data(), targets.data(), weights.data(), state.data(), upstream.data(), rows, first, width); });
      for (int row = 0; row < rows; row++)
        for (int c = 0; c < width; c++) {
          const double p = std::exp(wide(logits[row * vocabulary + first + c]) - most[row]) / sum[row];
          const double expected = weights[row] * upstream[0] * (p - (first + c == int(targets[row])));
          const double arithmetic = 40 * SUMMING * weights[row] * (p + (first + c == int(targets[row])));
          proof.close("gradient", first + c, wide(part[row * width + c]), expected, rounding<T>(expected) + arithmetic + 1e-7);
        }
    }
  }
}

int main() {
  prove<bf16>(cross_entropy_update_bf16, cross_entropy_gradient_bf16);
  prove<f16>(cross_entropy_update_f16, cross_entropy_gradient_f16);
  prove<float>(cross_entropy_update_f32, cross_entropy_gradient_f32);
}
