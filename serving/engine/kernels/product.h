// Products with packed weights: rows x [R, K] times w [N, K] transposed, sums in float.
//
// Packed, w lies in panels of 64 outputs, which a kernel reads from front to back, once for up to 6
// rows. A panel of a few dozen KB stays in the second cache for all tiles of rows.
#pragma once
#include <algorithm>
#include <vector>

#include "team.h"
#include "words.h"

const int PANEL = 64;
const int TILE = 6;   // rows
const int ROWS = 96;  // of one task, where there are many
#ifdef __AVX512F__
// 6 x 4 sums, 4 words of weights and one of x fill 32 registers. Of each step, a word of K, the 64
// outputs' words lie in a row.
constexpr int at_once(int) { return 4; }
const int STEP = PANEL;
inline long column(int) { return 16; }
#else
// 6 x 1 sums, words of weights and one of x fill 16 registers of 32 bytes. 16 outputs are a column
// of their own, and the four of a panel lie one after the other.
constexpr int at_once(int rows) { return rows < 2 ? 4 : rows < 3 ? 2 : 1; }
const int STEP = 16;
inline long column(int steps) { return long(steps) * STEP; }
#endif
const int AHEAD = 8;  // steps that are asked for early

struct Weight {
  const uint32_t *panels;
  const float *bias;  // may be null
  int32_t outputs, inputs;
};

inline int panels_of(int outputs) { return (outputs + PANEL - 1) / PANEL; }

template <class T, class N> inline N words_of(N elements) { return elements / T::per_word; }

template <class T> inline long panel_words(const Weight &w) {
  return long(words_of<T>(w.inputs)) * PANEL;
}

// Where in a panel the word of a step and an output lies.
inline long place_of(int step, int output, int steps) {
  return output / 16 * column(steps) + long(step) * STEP + output % 16;
}

// The sums of R rows and of C columns from `first` on. Of each step, `LINES` lines of what is read
// next are asked for; 0 asks for more of w.
template <class T, int R, int C, int LINES>
inline void tile(const typename T::factor *x, long pitch, const uint32_t *w, int steps,
                 const uint32_t *ask, int first, vec (&sums)[R][4]) {
  const long next = column(steps);
  vec acc[R][C];  // of its own, or each step would write it
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = vec{};
  for (int k = 0; k < steps; ++k, w += STEP) {
    words b[C];
    for (int c = 0; c < LINES; ++c) __builtin_prefetch(ask + c * next + long(k) * STEP, 0, 2);
    for (int c = 0; c < C; ++c) {
      if (!LINES) __builtin_prefetch(w + c * next + AHEAD * STEP);
      b[c] = load<words>(w + c * next);
    }
#pragma GCC unroll 2
    for (int f = 0; f < T::factors; ++f) {
      decltype(T::part(b[0], 0)) part[C];
      for (int c = 0; c < C; ++c) part[c] = R > 1 ? held(T::part(b[c], f)) : T::part(b[c], f);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const typename T::factor a = x[r * pitch + long(k) * T::factors + f];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[r][c] = T::multiply(acc[r][c], a, part[c]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][first + c] = acc[r][c];
}

template <class T, int R, class Done>
inline void tile_then(const typename T::factor *x, long pitch, const uint32_t *w, int steps,
                      const uint32_t *ask, int lines, int row, const Done &done) {
  const int C = at_once(R);
  vec sums[R][4];
  x += row * pitch;
  for (int c = 0; c < 4; c += C) {
    const long at = c * column(steps);
    switch (std::min(lines - c, C)) {
      case 4: tile<T, R, C, 4>(x, pitch, w + at, steps, ask + at, c, sums); break;
      case 2: tile<T, R, C, 2>(x, pitch, w + at, steps, ask + at, c, sums); break;
      case 1: tile<T, R, C, 1>(x, pitch, w + at, steps, ask + at, c, sums); break;
      default: tile<T, R, C, 0>(x, pitch, w + at, steps, ask, c, sums); break;
    }
  }
  for (int r = 0; r < R; ++r) done(row + r, sums[r]);
}

// One panel for `rows` rows of x, `pitch` factors apart; done(row, sums) takes each row's 64 sums.
//
// The first tile reads w from memory, the others from the second cache: meanwhile they ask for
// `next`, where there is one, so that the memory is busy while products are computed.
template <class T, class Done>
void panel(const typename T::factor *x, long pitch, int rows, const uint32_t *w, int steps,
           const Done &done, const uint32_t *next = nullptr) {
  const int tiles = (rows + TILE - 1) / TILE;
  const int each = tiles < 3 ? 4 : tiles < 5 ? 2 : 1;  // lines of a step that a tile asks for
  for (int tile = 0, row = 0, asked = 0; tile < tiles; ++tile) {
    const int left = tiles - tile, now = (rows - row + left - 1) / left;
    const int lines = next && tile && asked < 4 ? each : 0;
    const uint32_t *ask = next + asked * column(steps);
    switch (now) {
      case 1: tile_then<T, 1>(x, pitch, w, steps, ask, lines, row, done); break;
      case 2: tile_then<T, 2>(x, pitch, w, steps, ask, lines, row, done); break;
      case 3: tile_then<T, 3>(x, pitch, w, steps, ask, lines, row, done); break;
      case 4: tile_then<T, 4>(x, pitch, w, steps, ask, lines, row, done); break;
      case 5: tile_then<T, 5>(x, pitch, w, steps, ask, lines, row, done); break;
      default: tile_then<T, 6>(x, pitch, w, steps, ask, lines, row, done); break;
    }
    asked += lines;
    row += now;
  }
}

// `count` words as factors, which are in this thread's own memory already where `last` was they.
template <class T>
inline const typename T::factor *factors_of(const uint32_t *from, long count,
                                            const uint32_t *&last) {
  if constexpr (T::factors == 1) {
    return (const typename T::factor *)from;
  } else {
    static thread_local std::vector<typename T::factor> memory;
    if (last != from) {
      if (long(memory.size()) < count * T::factors) memory.resize(count * T::factors);
      spread<T>(from, count, memory.data());
      last = from;
    }
    return memory.data();
  }
}

enum Then {
  STORE,  // float [R, N]
  ADD,    // to float [R, N]
  GATE,   // N = 2F, panels of 32 gates and their 32 ups: silu(gate) * up as elements [R, F]
  SPLIT,  // the same panels: float [R, 2F], gates before ups
};

template <class T>
inline void finish(Then then, const Weight &w, int number, long row, vec *sums, void *out) {
  const int F = w.outputs / 2, left = w.outputs - number * PANEL;
  if (w.bias)
    for (int c = 0; c < 4 && c * 16 < left; ++c) {
      float bias[16] = {};
      memcpy(bias, w.bias + number * PANEL + c * 16, sizeof(float) * std::min(16, left - c * 16));
      sums[c] += load<vec>(bias);
    }
  if (then == GATE) {
    typename T::element *to = (typename T::element *)out + row * F + number * 32;
    for (int c = 0; c < 2; ++c) T::write(to + 16 * c, silu(sums[c]) * sums[c + 2]);
    return;
  }
  float *to = (float *)out + row * w.outputs;
  if (then == SPLIT) {
    for (int c = 0; c < 4; ++c) store(to + (c / 2) * F + number * 32 + (c % 2) * 16, sums[c]);
    return;
  }
  to += number * PANEL;
  for (int c = 0; c < 4 && c * 16 < left; ++c) {
    if (left - c * 16 >= 16) {
      store(to + c * 16, then == ADD ? load<vec>(to + c * 16) + sums[c] : sums[c]);
    } else {
      for (int i = 0; i < left - c * 16; ++i)
        to[c * 16 + i] = sums[c][i] + (then == ADD ? to[c * 16 + i] : 0.f);
    }
  }
}

// Rows offsets[g] .. offsets[g + 1] of x go through the g-th of `groups` weights that lie in a row.
template <class T>
void product(const void *x, int groups, const int32_t *offsets, const Weight &w, Then then,
             void *out, Team &team) {
  struct Task {
    int group, row, rows, panel;
  };
  std::vector<Task> tasks;
  const int panels = panels_of(w.outputs), steps = words_of<T>(w.inputs);
  for (int g = 0; g < groups; ++g) {
    const int rows = offsets[g + 1] - offsets[g], chunks = (rows + ROWS - 1) / ROWS;
    for (int c = 0; c < chunks; ++c) {
      const int first = int(long(rows) * c / chunks), last = int(long(rows) * (c + 1) / chunks);
      for (int p = 0; p < panels; ++p) tasks.push_back({g, offsets[g] + first, last - first, p});
    }
  }
  const auto weights = [&](const Task &task) {
    return w.panels + (long(task.group) * panels + task.panel) * panel_words<T>(w);
  };
  const long count = long(tasks.size()), members = team.size();
  std::vector<const uint32_t *> spread_rows(members);  // what a member has as factors
  team.run(count, [&](long i, long member) {
    const Task task = tasks[i];
    // Members take tasks in turn, so that this one's next is most likely:
    const uint32_t *next = i + members < count ? weights(tasks[i + members]) : nullptr;
    const uint32_t *from = (const uint32_t *)x + long(task.row) * steps;
    panel<T>(factors_of<T>(from, long(task.rows) * steps, spread_rows[member]), steps * T::factors, task.rows, weights(task), steps,
             [&](int row, vec *sums) {
               finish<T>(then, w, task.panel, task.row + row, sums, out);
             },
             next);
  });
}

// Rows [N, K] of elements become panels; what a last panel has too many is 0.
template <class T> void pack(const void *from, uint32_t *to, int outputs, int inputs) {
  const int steps = words_of<T>(inputs);
  for (int p = 0; p < panels_of(outputs); ++p, to += long(steps) * PANEL)
    for (int k = 0; k < steps; ++k)
      for (int i = 0; i < PANEL; ++i) {
        const long n = long(p) * PANEL + i;
        to[place_of(k, i, steps)] = n < outputs ? ((const uint32_t *)from)[n * steps + k] : 0;
      }
}
