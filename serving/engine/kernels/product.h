// Products with packed weights: rows x [R, K] times w [N, K] transposed, sums in float.
//
// Packed, w lies in panels of 64 outputs: for each word of K, the 64 outputs' words in a row, so
// that a kernel reads it from front to back, once for up to 6 rows. A panel of a few dozen KB stays
// in the second cache for all tiles of rows.
#pragma once
#include <algorithm>
#include <vector>

#include "team.h"
#include "words.h"

const int PANEL = 64;
const int TILE = 6;     // rows: 6 x 4 sums, 4 words of weights and a word of x fill 32 registers
const int ROWS = 96;    // of one task, where there are many
const int AHEAD = 512;  // words of weights that are asked for early

struct Weight {
  const uint32_t *panels;
  const float *bias;  // may be null
  int32_t outputs, inputs;
};

inline int panels_of(int outputs) { return (outputs + PANEL - 1) / PANEL; }

template <class T> inline int words_of(int elements) { return elements / T::per_word; }

template <class T> inline long panel_words(const Weight &w) {
  return long(words_of<T>(w.inputs)) * PANEL;
}

// `ask`: of what is read next, so many of each step's 4 lines are asked for; 0 asks for more of w.
template <class T, int R, int ASK>
inline void tile(const uint32_t *x, long pitch, const uint32_t *w, int steps, const uint32_t *ask,
                 vec (&acc)[R][4]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < 4; ++c) acc[r][c] = vec{};
  for (int k = 0; k < steps; ++k, w += PANEL) {
    words b[4];
    for (int c = 0; c < ASK; ++c) __builtin_prefetch(ask + long(k) * PANEL + 16 * c, 0, 2);
    for (int c = 0; c < 4; ++c) {
      if (!ASK) __builtin_prefetch(w + AHEAD + 16 * c);
      b[c] = load<words>(w + 16 * c);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const words a = x[r * pitch + k] - words{};
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) acc[r][c] = T::dot(acc[r][c], a, b[c]);
    }
  }
}

template <class T, int R, class Done>
inline void tile_then(const uint32_t *x, long pitch, const uint32_t *w, int steps,
                      const uint32_t *ask, int lines, int row, const Done &done) {
  vec acc[R][4];
  x += row * pitch;
  switch (lines) {
    case 0: tile<T, R, 0>(x, pitch, w, steps, ask, acc); break;
    case 1: tile<T, R, 1>(x, pitch, w, steps, ask, acc); break;
    case 2: tile<T, R, 2>(x, pitch, w, steps, ask, acc); break;
    default: tile<T, R, 4>(x, pitch, w, steps, ask, acc); break;
  }
  for (int r = 0; r < R; ++r) done(row + r, acc[r]);
}

// One panel for `rows` rows of x, `pitch` words apart; done(row, sums) takes each row's 64 sums.
//
// The first tile reads w from memory, the others from the second cache: meanwhile they ask for
// `next`, where there is one, so that the memory is busy while products are computed.
template <class T, class Done>
void panel(const uint32_t *x, long pitch, int rows, const uint32_t *w, int steps,
           const Done &done, const uint32_t *next = nullptr) {
  const int tiles = (rows + TILE - 1) / TILE;
  const int each = tiles < 3 ? 4 : tiles < 5 ? 2 : 1;  // lines of a step that a tile asks for
  for (int tile = 0, row = 0, asked = 0; tile < tiles; ++tile) {
    const int left = tiles - tile, now = (rows - row + left - 1) / left;
    const int lines = next && tile && asked < 4 ? each : 0;
    const uint32_t *ask = next + 16 * asked;
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
  team.run(count, [&](long i) {
    const Task task = tasks[i];
    // Members take tasks in turn, so that this one's next is most likely:
    const uint32_t *next = i + members < count ? weights(tasks[i + members]) : nullptr;
    panel<T>((const uint32_t *)x + long(task.row) * steps, steps, task.rows, weights(task), steps,
             [&](int row, vec *sums) {
               finish<T>(then, w, task.panel, task.row + row, sums, out);
             },
             next);
  });
}

// Rows [N, K] of elements become panels; what a last panel has too many is 0.
template <class T> void pack(const void *from, uint32_t *to, int outputs, int inputs) {
  const int steps = words_of<T>(inputs);
  for (int p = 0; p < panels_of(outputs); ++p)
    for (int k = 0; k < steps; ++k)
      for (int i = 0; i < PANEL; ++i) {
        const long n = long(p) * PANEL + i;
        *to++ = n < outputs ? ((const uint32_t *)from)[n * steps + k] : 0;
      }
}
