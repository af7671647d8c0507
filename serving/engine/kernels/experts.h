// A MoE layer's experts: route, sort by expert, two grouped products, and back.
#pragma once
#include <algorithm>

#include "product.h"

struct Routed {
  int32_t *order;    // [R] token * K + choice of each row, rows sorted by expert
  int32_t *offsets;  // [E + 1]
  int32_t *row;      // [T K] where each choice's row is
  float *weights;    // [T K]
};

// logits [T, E] float -> each token's K likeliest experts and their (normalised) probabilities.
inline void route(const float *logits, int tokens, int E, int K, bool normalise, const Routed &to,
                  Team &team) {
  std::vector<int32_t> expert(size_t(tokens) * K);
  const auto choose = [&](long t) {
    const float *l = logits + t * E;
    const float most = *std::max_element(l, l + E);
    float total = 0, kept = 0;
    for (int e = 0; e < E; ++e) total += std::exp(l[e] - most);
    int32_t *chosen = &expert[size_t(t) * K];
    for (int k = 0; k < K; ++k) {
      int best = -1;
      for (int e = 0; e < E; ++e)
        if ((best < 0 || l[e] > l[best]) && std::find(chosen, chosen + k, e) == chosen + k)
          best = e;
      chosen[k] = best;
      kept += to.weights[t * K + k] = std::exp(l[best] - most) / total;
    }
    if (normalise)
      for (int k = 0; k < K; ++k) to.weights[t * K + k] /= kept;
  };
  team.rows(tokens, 16, [&](long begin, long end) {
    for (long t = begin; t < end; ++t) choose(t);
  });
  std::fill(to.offsets, to.offsets + E + 1, 0);
  for (const int32_t e : expert) ++to.offsets[e + 1];
  for (int e = 0; e < E; ++e) to.offsets[e + 1] += to.offsets[e];
  std::vector<int32_t> next(to.offsets, to.offsets + E);
  for (size_t i = 0; i < expert.size(); ++i) {
    to.row[i] = next[expert[i]]++;
    to.order[to.row[i]] = int32_t(i);
  }
}

// Rows of `steps` words: out[r] = x[order[r] / K].
inline void gather(const uint32_t *x, const int32_t *order, int rows, int K, long steps,
                   uint32_t *out, Team &team) {
  team.rows(rows, 64, [&](long begin, long end) {
    for (long r = begin; r < end; ++r)
      memcpy(out + r * steps, x + order[r] / K * steps, steps * sizeof(uint32_t));
  });
}

// hidden[t] += the weighted sum of its K rows; D a multiple of 16.
inline void combine(const float *pairs, const Routed &routed, int tokens, int K, int D,
                    float *hidden, Team &team) {
  team.rows(tokens, 8, [&](long begin, long end) {
    for (long t = begin; t < end; ++t)
      for (int d = 0; d < D; d += 16) {
        vec acc = load<vec>(hidden + t * D + d);
        for (int k = 0; k < K; ++k)
          acc += routed.weights[t * K + k] *
                 load<vec>(pairs + long(routed.row[t * K + k]) * D + d);
        store(hidden + t * D + d, acc);
      }
  });
}
