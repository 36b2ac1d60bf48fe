// Attention and its gradients in f64, with bounds on what rounding may change; shapes that all attention proofs run.
#pragma once
#include "check.h"
#include "../attention.cuh"

enum class Layout { Padded, Lengths, Packed, Masked };

struct Case {
  int batch, heads, kv_heads, queries, keys, causal, prefix;
  Layout layout;
  bool rows_first;  // (B, L, H, D) in memory instead of (B, H, L, D)
};

// Lengths on both sides of the tiles' 16, 32 and 64 rows; then every mask, grouping and layout against each other.
inline std::vector<Case> attention_cases() {
  const std::pair<int, int> lengths[] = {{1, 1}, {1, 7}, {3, 3}, {16, 16}, {17, 15}, {31, 33}, {5, 67}, {63, 65}, {64, 64}, {65, 63}, {77, 77}, {66, 131}};
  const std::pair<int, int> heads[] = {{1, 1}, {2, 1}, {3, 3}, {4, 2}};
  std::vector<Case> cases;
  for (int i = 0; i < 36; i++) {
    auto [queries, keys] = lengths[i % 12];
    auto [own, shared] = heads[(i + i / 12) % 4];
    int mask = (i + i / 4) % 3, prefix = mask == 2 ? 1 + (i * 5) % (keys + 3) : 0;
    cases.push_back({i % 12 < 8 ? 2 : 1, own, shared, queries, keys, mask > 0, prefix, Layout((i / 2 + i / 12) % 4), i % 2 == 1});
  }
  return cases;
}

inline std::string name_of(const Case &c) {
  return text("B %d, H %d/%d, L %d, M %d, causal %d, prefix %d, layout %d, rows first %d", c.batch, c.heads, c.kv_heads, c.queries, c.keys,
              c.causal, c.prefix, int(c.layout), c.rows_first);
}

// Rows of one of the tensors: where they lie, and where each sequence's rows begin and end.
struct Places {
  int heads, width, length;
  bool rows_first;
  std::vector<int> starts, counts;  // a sequence each; starts only if packed
  int64 total;

  Places(const Case &c, int heads, int width, int length, std::vector<int> own) : heads(heads), width(width), length(length), rows_first(c.rows_first), counts(own) {
    total = int64(c.batch) * heads * length * width;
    if (c.layout != Layout::Packed) return;
    starts = {0};
    for (int count : counts) starts.push_back(starts.back() + count);
    total = int64(starts.back()) * heads * width;
  }
  int rows() const { return starts.empty() ? length : starts.back(); }
  template <class T> Heads<T> view(T *values) const {
    int64 batch = starts.empty() ? int64(heads) * length * width : 0;
    if (rows_first) return {values, batch, width, int64(heads) * width};
    return {values, batch, int64(rows()) * width, width};
  }
  int64 at(int b, int head, int row) const {
    auto place = view<float>(nullptr);
    return b * place.batch + head * place.head + (row + (starts.empty() ? 0 : starts[b])) * place.row;
  }
  // NaN in the rows that do not count: nothing may come of them.
  template <class T> std::vector<T> filled() const {
    std::vector<T> values(total, narrow<T>(NAN));
    for (size_t b = 0; b < counts.size(); b++)
      for (int head = 0; head < heads; head++)
        for (int row = 0; row < counts[b]; row++)
          for (int i = 0; i < width; i++) values[at(b, head, row) + i] = narrow<T>(normal());
    return values;
  }
};

template <class T, int D> struct Problem {
  Case c;
  std::vector<int> query_counts, key_counts;
  std::vector<unsigned char> visible;  // (B, M) if masked
  Places query_places, key_places;
  std::vector<T> q, k, v, grad;
  AttentionShape shape;

  static std::vector<int> counts(const Case &c, int length, int step) {
    std::vector<int> counts(c.batch, length);
    if (c.layout == Layout::Lengths || c.layout == Layout::Packed)
      for (int b = 1; b < c.batch; b++) counts[b] = std::max(1, length - step * b);
    return counts;
  }

  explicit Problem(const Case &c)
      : c(c), query_counts(counts(c, c.queries, 2)), key_counts(counts(c, c.keys, 5)), query_places(c, c.heads, D, c.queries, query_counts),
        key_places(c, c.kv_heads, D, c.keys, key_counts), q(query_places.filled<T>()), k(key_places.filled<T>()), v(key_places.filled<T>()),
        grad(query_places.filled<T>()) {
    shape = {c.heads, c.kv_heads, c.queries, c.keys, c.causal, c.prefix, 1.0f / std::sqrt(float(D)), 0, nullptr, nullptr, nullptr, nullptr, nullptr};
    if (c.layout == Layout::Lengths) shape.query_lengths = query_counts.data(), shape.key_lengths = key_counts.data();
    if (c.layout == Layout::Packed) shape.query_starts = query_places.starts.data(), shape.key_starts = key_places.starts.data();
    if (c.layout != Layout::Masked) return;
    for (int i = 0; i < c.batch * c.keys; i++) visible.push_back(below(3) > 0);
    shape.key_visible = visible.data();
  }
  Problem(const Problem &) = delete;

  int64 statistic(int b, int head, int query) const { return (int64(b) * c.heads + head) * c.queries + query; }
};

// Values with a bound on their error each.
struct Expected {
  std::vector<double> values, bounds;
  explicit Expected(size_t count) : values(count), bounds(count) {}
  void round(double error) {
    for (size_t i = 0; i < values.size(); i++) bounds[i] += error * std::fabs(values[i]) + 1e-6;
  }
};

// The bounds follow the roundings: probabilities and logits' gradients are rounded to T before they are multiplied, so is the output.
enum class Wanted { Output, Gradients };
template <class T, int D, Wanted WANTED> struct Reference {
  Expected o, log_sums, dq, dk, dv;

  explicit Reference(const Problem<T, D> &p)
      : o(p.q.size()), log_sums(size_t(p.c.batch) * p.c.heads * p.c.queries), dq(p.q.size()), dk(p.k.size()), dv(p.k.size()) {
    for (int b = 0; b < p.c.batch; b++)
      for (int head = 0; head < p.c.heads; head++)
        for (int query = 0; query < p.query_counts[b]; query++) row(p, b, head, query);
    const double rounding = ROUNDING<T>;
    for (Expected *x : {&o, &dq, &dk, &dv}) x->round(rounding);
    log_sums.round(SUMMING);
  }

 private:
  static constexpr double LOW = std::is_same_v<T, float> ? 0 : ROUNDING<T>;

  void row(const Problem<T, D> &p, int b, int head, int query) {
    const int kv = head / (p.c.heads / p.c.kv_heads), keys = p.key_counts[b];
    const int64 at = p.query_places.at(b, head, query);
    int end = keys;
    if (p.c.causal) end = std::max(std::min(p.c.prefix, keys), std::min(keys, query + 1 + keys - p.query_counts[b]));
    const double scale = p.shape.scale;
    std::vector<double> s(std::max(end, 0)), size(s.size());
    auto hidden = [&](int j) { return !p.visible.empty() && !p.visible[b * p.c.keys + j]; };
    double most = -INFINITY, sum = 0;
    for (int j = 0; j < end; j++) {
      const int64 key = p.key_places.at(b, kv, j);
      if (hidden(j)) s[j] = -INFINITY;
      for (int x = 0; x < D; x++) s[j] += scale * wide(p.q[at + x]) * wide(p.k[key + x]), size[j] += scale * std::fabs(wide(p.q[at + x]) * wide(p.k[key + x]));
      most = std::max(most, s[j]);
    }
    if (most == -INFINITY) end = 0;
    for (int j = 0; j < end; j++) sum += std::exp(s[j] - most);
    log_sums.values[p.statistic(b, head, query)] = most + std::log(sum);
    double delta = 0, delta_size = 0, largest = 0;
    for (int j = 0; j < end; j++) largest = std::max(largest, size[j]);
    log_sums.bounds[p.statistic(b, head, query)] = SUMMING * (1 + largest);
    for (int j = 0; j < end; j++) {
      const double weight = std::exp(s[j] - most) / sum, error = 2 * (LOW + SUMMING * (1 + largest));
      const int64 key = p.key_places.at(b, kv, j);
      for (int x = 0; x < D; x++) o.values[at + x] += weight * wide(p.v[key + x]), o.bounds[at + x] += error * weight * std::fabs(wide(p.v[key + x]));
    }
    if (WANTED == Wanted::Output) return;
    for (int x = 0; x < D; x++) delta += o.values[at + x] * wide(p.grad[at + x]), delta_size += std::fabs(o.values[at + x] * wide(p.grad[at + x]));
    for (int j = 0; j < end; j++) {
      const double weight = std::exp(s[j] - most) / sum, error = 2 * (LOW + SUMMING * (1 + largest));
      const int64 key = p.key_places.at(b, kv, j);
      double change = 0, change_size = 0;
      for (int x = 0; x < D; x++) change += double(wide(p.grad[at + x])) * wide(p.v[key + x]), change_size += std::fabs(wide(p.grad[at + x]) * wide(p.v[key + x]));
      const double ds = weight * (change - delta);
      const double ds_error = error * std::fabs(ds) + weight * (SUMMING * change_size + (SUMMING + ROUNDING<T>) * delta_size);
      for (int x = 0; x < D; x++) {
        const double own_q = wide(p.q[at + x]), own_k = wide(p.k[key + x]), own_grad = wide(p.grad[at + x]);
        dq.values[at + x] += scale * ds * own_k, dq.bounds[at + x] += scale * ds_error * std::fabs(own_k);
        dk.values[key + x] += scale * ds * own_q, dk.bounds[key + x] += scale * ds_error * std::fabs(own_q);
        dv.values[key + x] += weight * own_grad, dv.bounds[key + x] += error * weight * std::fabs(own_grad);
      }
    }
  }
};

// Rows that count are within their bounds, the others were not touched.
template <class T> void compare(Proof &proof, const char *what, const Places &places, const std::vector<T> &found, const Expected &expected) {
  std::vector<bool> counted(found.size());
  for (size_t b = 0; b < places.counts.size(); b++)
    for (int head = 0; head < places.heads; head++)
      for (int row = 0; row < places.counts[b]; row++)
        for (int i = 0; i < places.width; i++) {
          const int64 at = places.at(b, head, row) + i;
          counted[at] = true;
          proof.close(what, at, wide(found[at]), expected.values[at], expected.bounds[at]);
        }
  for (size_t i = 0; i < found.size(); i++) proof.require(counted[i] || std::isnan(wide(found[i])), "padding was written to");
}
