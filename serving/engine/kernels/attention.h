// Rotary embeddings, keys and values into their blocks, and attention over those.
#pragma once
#include <algorithm>
#include <cmath>

#include "product.h"

struct Heads {
  int32_t queries, keys, dim;  // N, M, H
  int32_t norm;                // of queries and keys: 0 none, 1 each head, 2 all heads together
  int32_t block_tokens;
  float eps, scale;
};

// `count` tokens of one sequence: rows from `row` of the batch, the first at `position`.
struct Span {
  int row, count, position;
  const int32_t *table;  // its blocks
};

template <class T> struct Cache {
  typename T::element *keys, *values;  // [slots, M, H]
};

inline long slot_of(const Span &span, int position, int block_tokens) {
  return long(span.table[position / block_tokens]) * block_tokens + position % block_tokens;
}

inline float inverse_rms(const float *x, int n, float eps) {
  vec squares = {};
  for (int i = 0; i < n; i += 16) squares += load<vec>(x + i) * load<vec>(x + i);
  return 1.f / std::sqrt(sum(squares) / n + eps);
}

// x [count, H] float in place: the norm, then x * cos + rotate_half(x) * sin.
inline void norm_and_rotate(float *x, int count, const Heads &h, const float *weight,
                            const float *cos_sin) {
  const int H = h.dim, half = H / 2;
  const float whole = h.norm == 2 ? inverse_rms(x, count * H, h.eps) : 1.f;
  for (int n = 0; n < count; ++n, x += H) {
    if (h.norm) {
      const float scale = h.norm == 1 ? inverse_rms(x, H, h.eps) : whole;
      const float *w = weight + (h.norm == 2 ? n * H : 0);
      for (int i = 0; i < H; ++i) x[i] *= scale * w[i];
    }
    for (int i = 0; i < half; ++i) {
      const float first = x[i], second = x[i + half], c = cos_sin[i], s = cos_sin[half + i];
      x[i] = first * c - second * s;
      x[i + half] = second * c + first * s;
    }
  }
}

template <class T> void convert(const float *from, typename T::element *to, int n) {
  for (int i = 0; i < n; i += 16) T::write(to + i, load<vec>(from + i));
}

// qkv [T, (N + 2M) H] float -> queries [T, N H] elements, keys and values in their slots.
template <class T>
void place(float *qkv, const std::vector<Span> &spans, const Heads &h, const float *q_norm,
           const float *k_norm, const float *cos_sin, const Cache<T> &cache,
           typename T::element *queries, int tokens, Team &team) {
  const int H = h.dim, width = (h.queries + 2 * h.keys) * H;
  team.rows(tokens, 8, [&](long begin, long end) {
    for (long t = begin; t < end; ++t) {
      const Span &span = *(std::upper_bound(spans.begin(), spans.end(), t,
                                            [](long row, const Span &s) { return row < s.row; }) -
                           1);
      const int position = span.position + int(t) - span.row;
      float *q = qkv + t * width, *k = q + h.queries * H, *v = k + h.keys * H;
      const long to = slot_of(span, position, h.block_tokens) * h.keys * H;
      norm_and_rotate(q, h.queries, h, q_norm, cos_sin + long(position) * H);
      norm_and_rotate(k, h.keys, h, k_norm, cos_sin + long(position) * H);
      convert<T>(q, queries + t * h.queries * H, h.queries * H);
      convert<T>(k, cache.keys + to, h.keys * H);
      convert<T>(v, cache.values + to, h.keys * H);
    }
  });
}

// Calls each(j, count, row, ahead) for the blocks of positions first..last: j is the first of `count`
// positions that lie in a row of memory, row where their keys or values [count, M H] are. Those of
// the next block lie `ahead` of them: blocks lie anywhere, and no processor guesses where, so that
// who reads a row asks for that one as well.
template <class E, class Each>
inline void over_blocks(const Span &span, const Heads &h, const E *memory, int first, int last,
                        const Each &each) {
  const int Z = h.block_tokens;
  const auto block = [&](int position) {
    return memory + long(span.table[position / Z]) * Z * h.keys * h.dim;
  };
  for (int j = first; j < last; j = (j / Z + 1) * Z) {
    const int stop = std::min(last, (j / Z + 1) * Z);
    each(j, stop - j, block(j) + long(j % Z) * h.keys * h.dim,
         stop < last ? block(stop) - block(j) : 0);
  }
}

// sums [G, H] += weights [G, pitch] x `count` values, `width` elements apart.
template <class T, int G, int C>
inline void weigh(const float *weights, long pitch, const typename T::element *values, int count,
                  long width, long ahead, int H, float *sums) {
  for (int d = 0; d < H; d += 16 * C) {
    vec acc[G][C];
    for (int g = 0; g < G; ++g)
      for (int c = 0; c < C; ++c) acc[g][c] = load<vec>(sums + g * H + d + 16 * c);
    for (int j = 0; j < count; ++j)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        __builtin_prefetch(values + ahead + j * width + d + 16 * c);
        const vec value = T::read(values + j * width + d + 16 * c);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) acc[g][c] += weights[g * pitch + j] * value;
      }
    for (int g = 0; g < G; ++g)
      for (int c = 0; c < C; ++c) store(sums + g * H + d + 16 * c, acc[g][c]);
  }
}

// scores [count] to weights in place, e^(score - the largest one); the sum of those.
inline float exponentials(float *scores, long count) {
  vec most = splat(-1e30f), total = {};
  for (long j = count; j % 16; ++j) scores[j] = -1e30f;
  for (long j = 0; j < count; j += 16) {
    const vec x = load<vec>(scores + j);
    most = greater(x, most);
  }
  const float top = largest(most);
  for (long j = 0; j < count; j += 16) {
    const vec e = exp(load<vec>(scores + j) - top);
    store(scores + j, e);
    total += e;
  }
  return sum(total);
}

// scores [count] = scaled products of q with `count` keys, `width` words apart.
template <class T>
inline void score(const uint32_t *q, int steps, const uint32_t *keys, int count, long width,
                  long ahead, float scale, float *scores) {
  int j = 0;
  for (; j + 4 <= count; j += 4, keys += 4 * width) {  // as many sums as take turns without waiting
    vec acc[4] = {};
    for (int w = 0; w < steps; w += 16) {
      const words a = load<words>(q + w);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __builtin_prefetch(keys + ahead + i * width + w);
        acc[i] = T::dot(acc[i], a, load<words>(keys + i * width + w));
      }
    }
    sums_of_four(acc, scale, scores + j);
  }
  for (; j < count; ++j, keys += width) {
    vec acc = {};
    for (int w = 0; w < steps; w += 16)
      acc = T::dot(acc, load<words>(q + w), load<words>(keys + w));
    scores[j] = sum(acc) * scale;
  }
}

// One token's queries of key heads begin..end, over all keys that it sees.
template <class T>
void attend_one(const Span &span, int begin, int end, const Heads &h, const Cache<T> &cache,
                int window, const typename T::element *queries, typename T::element *out) {
  typedef typename T::element element;
  const int H = h.dim, G = h.queries / h.keys, last = span.position + 1, steps = words_of<T>(H);
  const int first = window ? std::max(0, last - window) : 0, heads = (end - begin) * G;
  const long pitch = (last - first + 15) / 16 * 16, width = long(h.keys) * H;
  const long at = (long(span.row) * h.queries + begin * G) * H;
  static thread_local std::vector<float> scores, sums;
  scores.resize(pitch * heads);
  sums.assign(long(heads) * H, 0.f);
  const uint32_t *q = (const uint32_t *)(queries + at);
  over_blocks(span, h, cache.keys + begin * H, first, last,
              [&](int position, int count, const element *keys, long ahead) {
    for (int n = 0; n < heads; ++n)
      score<T>(q + n * steps, steps, (const uint32_t *)(keys + n / G * H), count,
               words_of<T>(width), words_of<T>(ahead), h.scale,
               &scores[n * pitch + position - first]);
  });
  static thread_local std::vector<float> totals;
  totals.resize(heads);
  for (int n = 0; n < heads; ++n)
    totals[n] = exponentials(&scores[n * pitch], last - first);
  over_blocks(span, h, cache.values + begin * H, first, last,
              [&](int position, int count, const element *values, long ahead) {
    for (int n = 0; n < heads;) {
      const float *weights = &scores[n * pitch + position - first];
      const bool two = n % G + 2 <= G;
      auto add = two ? (H % 64 ? weigh<T, 2, 1> : weigh<T, 2, at_once(2)>)
                     : (H % 64 ? weigh<T, 1, 1> : weigh<T, 1, 4>);
      add(weights, pitch, values + n / G * H, count, width, ahead, H, &sums[long(n) * H]);
      n += two ? 2 : 1;
    }
  });
  for (int n = 0; n < heads; ++n)
    for (int d = 0; d < H; d += 16)
      T::write(out + at + n * H + d, load<vec>(&sums[long(n) * H + d]) / totals[n]);
}

const int32_t NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
const int QUERY_ROWS = 96;  // queries of a task: a token's heads side by side

// Tokens [begin, end) of a span and key head m, 64 keys at a time (FlashAttention, 2205.14135).
template <class T>
void attend_many(const Span &span, int begin, int end, int m, const Heads &h,
                 const Cache<T> &cache, int window, const typename T::element *queries,
                 typename T::element *out) {
  typedef typename T::element element;
  const int H = h.dim, G = h.queries / h.keys, rows = (end - begin) * G, steps = words_of<T>(H);
  const int panels = panels_of(H), value_steps = PANEL / T::per_word;
  static thread_local std::vector<typename T::factor> q, p;
  static thread_local std::vector<uint32_t> k, v;
  static thread_local std::vector<float> scores, sums, top, total, shrink;
  const int pitch = steps * T::factors, weights_pitch = value_steps * T::factors;
  q.resize(rows * pitch);
  k.resize(steps * PANEL);
  v.resize(panels * value_steps * PANEL);
  p.resize(rows * weights_pitch);
  scores.resize(rows * PANEL);
  sums.assign(rows * panels * PANEL, 0.f);
  top.assign(rows, -1e30f);
  total.assign(rows, 0.f);
  shrink.resize(rows);
  for (int t = begin; t < end; ++t)
    spread<T>((const uint32_t *)(queries + (long(span.row + t) * h.queries + m * G) * H),
              G * steps, &q[(t - begin) * G * pitch]);
  const int last = span.position + end;
  const int first = window ? std::max(0, span.position + begin - window + 1) : 0;
  const std::vector<element> nothing(H, 0);
  for (int block = first; block < last; block += PANEL) {
    const element *key[PANEL], *value[PANEL];
    for (int j = 0; j < PANEL; ++j) {
      const long at = block + j < last
                          ? (slot_of(span, block + j, h.block_tokens) * h.keys + m) * H : -1;
      key[j] = at < 0 ? nothing.data() : cache.keys + at;
      value[j] = at < 0 ? nothing.data() : cache.values + at;
    }
    for (int j = 0; j < PANEL; ++j)
      for (int w = 0; w < steps; ++w)
        k[place_of(w, j, steps)] = ((const uint32_t *)key[j])[w];
    for (int s = 0; s < value_steps; ++s)
      for (int d = 0; d < H; d += 16)
        store(&v[d / PANEL * value_steps * PANEL + place_of(s, d % PANEL, value_steps)],
              T::pair(value[s * T::per_word] + d, value[s * T::per_word + T::per_word - 1] + d));
    panel<T>(q.data(), pitch, rows, k.data(), steps, [&](int row, vec *s) {
      const int position = span.position + begin + row / G;
      const int oldest = window ? position - window + 1 : 0;
      vec most = splat(top[row]), sum_of_row = {};
      for (int c = 0; c < 4; ++c) {
        const ints at = load<ints>(NUMBERS) + (block + c * 16);
        s[c] = select((at <= position) & (at >= oldest), s[c] * h.scale, splat(-1e30f));
        most = greater(s[c], most);
      }
      const float now = largest(most);
      for (int c = 0; c < 4; ++c) {
        const vec e = exp(s[c] - now);
        sum_of_row += e;
        element made[16];
        T::write(made, e);
        spread<T>((const uint32_t *)made, 16 / T::per_word,
                  &p[row * weights_pitch + c * 16 / T::per_word * T::factors]);
      }
      shrink[row] = exp(splat(top[row] - now))[0];
      total[row] = total[row] * shrink[row] + sum(sum_of_row);
      top[row] = now;
    });
    for (int d = 0; d < panels; ++d)
      panel<T>(p.data(), weights_pitch, rows, &v[d * value_steps * PANEL], value_steps,
               [&](int row, vec *s) {
                 float *to = &sums[(row * panels + d) * PANEL];
                 for (int c = 0; c < 4; ++c)
                   store(to + 16 * c, load<vec>(to + 16 * c) * shrink[row] + s[c]);
               });
  }
  for (int row = 0; row < rows; ++row) {
    element *to = out + (long(span.row + begin + row / G) * h.queries + m * G + row % G) * H;
    for (int d = 0; d < H; d += 16)
      T::write(to + d, load<vec>(&sums[row * panels * PANEL + d]) / total[row]);
  }
}

// queries and out [T, N H] elements; every token sees its sequence up to itself.
template <class T>
void attend(const std::vector<Span> &spans, const Heads &h, const Cache<T> &cache, int window,
            const typename T::element *queries, typename T::element *out, Team &team) {
  struct Task {
    const Span *span;
    int begin, end, head, heads;
  };
  std::vector<Task> tasks;
  const int step = std::max(1, QUERY_ROWS / (h.queries / h.keys));
  // All heads of a token's keys lie side by side: read together, where there are tasks enough.
  const int together = spans.size() >= 8 ? h.keys : 1;
  for (const Span &span : spans)
    for (int begin = 0; begin < span.count; begin += step)
      for (int m = 0; m < h.keys; m += span.count == 1 ? together : 1)
        tasks.push_back({&span, begin, std::min(begin + step, span.count), m,
                         span.count == 1 ? together : 1});
  team.run(long(tasks.size()), [&](long i) {
    const Task &t = tasks[i];
    if (t.span->count == 1)
      attend_one<T>(*t.span, t.head, t.head + t.heads, h, cache, window, queries, out);
    else
      attend_many<T>(*t.span, t.begin, t.end, t.head, h, cache, window, queries, out);
  });
}
