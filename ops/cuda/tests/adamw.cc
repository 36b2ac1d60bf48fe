#include "check.h"
#include "../adamw.cu"

// Several steps over tensors of any sizes, with and without a limit on the norm, against f64.
int main() {
  Proof proof("adamw");
  for (int i = 0; i < 32; i++) {
    const int tensors = 1 + i % 5;
    const float limit = i % 3 == 0 ? 0.0f : i % 3 == 1 ? 1.0f : 1e6f;
    std::string sizes;
    struct Tensor {
      std::vector<float> value, first, second, grad;
      std::vector<bf16> narrow;
      std::vector<double> exact[3];
    };
    std::vector<Tensor> all(tensors);
    std::vector<adamw::Slot> slots;
    int blocks = 0;
    for (int t = 0; t < tensors; t++) {
      const int count = 1 + below(t % 2 ? 3000 : 50);
      auto &own = all[t];
      own = {normals<float>(count), std::vector<float>(count), std::vector<float>(count), {}, unwritten<bf16>(count), {}};
      own.exact[0].assign(own.value.begin(), own.value.end()), own.exact[1].resize(count), own.exact[2].resize(count);
      slots.push_back({own.value.data(), own.first.data(), own.second.data(), nullptr, t % 2 ? own.narrow.data() : nullptr, count, blocks, t % 3 ? 1.0f : 0.1f, t % 2 ? 0.05f : 0.0f, 0});
      blocks += (count + adamw::VALUES - 1) / adamw::VALUES;
      sizes += text(" %d", count);
    }
    proof.shape("limit " + std::to_string(limit) + ", sizes" + sizes);
    auto partials = unwritten<float>(blocks), norm = unwritten<float>(2);
    for (int step = 1; step <= 3; step++) {
      double square = 0;
      for (int t = 0; t < tensors; t++) {
        all[t].grad = normals<float>(slots[t].count, 0.1f * step);
        slots[t].grad = all[t].grad.data();
        for (float g : all[t].grad) square += double(g) * g;
      }
      const double lr = 1e-2, b1 = 0.9f, b2 = 0.999f, eps = 1e-8f;
      const adamw::Step sizes_of_step{1e-2f, 0.9f, 0.999f, 1e-8f, float(1 - std::pow(b1, step)), float(std::sqrt(1 - std::pow(b2, step)))};
      csim::launch(blocks, adamw::THREADS, 0, [&] { adamw_squares(slots.data(), tensors, partials.data()); });
      csim::launch(1, adamw::THREADS, 0, [&] { adamw_limit(partials.data(), blocks, limit, norm.data()); });
      csim::launch(blocks, adamw::THREADS, 0, [&] { adamw_update(slots.data(), tensors, norm.data(), sizes_of_step); });
      const double length = std::sqrt(square), factor = limit > 0 && length > limit ? limit / length : 1;
      proof.close("norm", step, norm[0], length, SUMMING * length);
      for (int t = 0; t < tensors; t++)
        for (int j = 0; j < slots[t].count; j++) {
          auto &[p, m, v] = all[t].exact;
          const double g = all[t].grad[j] * factor;
          m[j] = b1 * m[j] + (1 - b1) * g, v[j] = b2 * v[j] + (1 - b2) * g * g;
          p[j] = p[j] * (1 - lr * slots[t].lr_factor * slots[t].decay) - lr * slots[t].lr_factor * (m[j] / (1 - std::pow(b1, step))) / (std::sqrt(v[j] / (1 - std::pow(b2, step))) + eps);
          proof.close("value", j, all[t].value[j], p[j], SUMMING * (std::fabs(p[j]) + 1));
          proof.close("first moment", j, all[t].first[j], m[j], SUMMING * (std::fabs(m[j]) + 0.1));
          proof.close("second moment", j, all[t].second[j], v[j], 8 * SUMMING * v[j] + 1e-12);
          const float copy = wide(all[t].narrow[j]);
          proof.require(slots[t].narrow ? copy == wide(narrow<bf16>(all[t].value[j])) : std::isnan(copy), "the narrow copy is not the value");
        }
    }
  }
}
