// What LoRA adapters add after a projection: of each row x its own adapter's x A^T B, rows of one
// adapter (of one expert) being one product (SGMV, Punica 2310.18547). Halves are read where they
// lie in their slots; the low-rank rows between them have the weights' type.
#pragma once
#include "product.h"

enum Projection { QKV, OUT, GATE_UP, DOWN };

extern "C" {

struct Part {  // columns [column, column + outputs) of what a projection writes
  const void *a, *b;     // [E, slot rows, inputs], [E, slot rows, outputs]
  const int32_t *ranks;  // [slot rows] at each slot's first row: of its adapter, 0 for no change
  int32_t column, outputs;
};

struct Change {
  Part part[3];
  int32_t parts;
};

struct Adapters {
  const Change *change;  // [layers, 4] by Projection
  const int32_t *slot;   // [places] the first row of each one's slot
  const int32_t *place;  // [T] of each token, -1 for none
  int32_t places, slot_rows, tokens;
};

}  // extern "C"

// Sums of R rows of x with C rows of a, for `steps` words, a multiple of 16.
template <class T, int R, int C>
inline void dots(const uint32_t *const *x, const uint32_t *a, int steps, float *const *low) {
  vec acc[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) acc[r][c] = vec{};
  for (int k = 0; k < steps; k += 16) {
    words row[R];
    for (int r = 0; r < R; ++r) row[r] = load<words>(x[r] + k);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const words half = load<words>(a + long(c) * steps + k);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[r][c] = T::dot(acc[r][c], row[r], half);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) low[r][c] = sum(acc[r][c]);
}

template <class T> class Shares {
 public:
  Shares(const Adapters &adapters, Team &team)
      : adapters_(adapters), team_(team), place_(adapters.place, adapters.place + adapters.tokens) {}

  // Row i is from now on the one that was rows[i].
  void keep(const std::vector<int32_t> &rows) {
    std::vector<int32_t> kept;
    for (const int32_t row : rows) kept.push_back(place_[row]);
    place_ = kept;
  }

  // The rows of the next projections are the tokens.
  void of_tokens() {
    const int32_t offsets[2] = {0, int32_t(place_.size())};
    sort(1, offsets, [](int row) { return row; });
  }

  // They are pairs of token and expert: row r of token order[r] / K.
  void of_pairs(int E, const int32_t *offsets, const int32_t *order, int K) {
    sort(E, offsets, [&](int row) { return order[row] / K; });
  }

  // Whether a projection is another one for some row.
  bool any(int layer, Projection which) const {
    const Change &change = adapters_.change[layer * 4 + which];
    for (int p = 0; p < change.parts; ++p)
      for (const Group &group : groups_)
        if (change.part[p].ranks[group.slot]) return true;
    return false;
  }

  // Adds to rows of `out`, `pitch` floats apart, what their adapters make of those of x.
  void add(int layer, Projection which, const void *x, int inputs, float *out, long pitch) {
    const Change &change = adapters_.change[layer * 4 + which];
    std::vector<Product> products;
    long factors = 0;
    for (int p = 0; p < change.parts; ++p)
      for (const Group &group : groups_) {
        const int rank = change.part[p].ranks[group.slot];
        if (!rank) continue;
        const int padded = (rank + 3) & ~3;  // a slot has a multiple of 4 rows, 0 beyond the rank
        const int chunks = (group.rows + ROWS - 1) / ROWS;
        for (int c = 0; c < chunks; ++c) {
          const int first = int(long(group.rows) * c / chunks);
          const int last = int(long(group.rows) * (c + 1) / chunks);
          products.push_back({&change.part[p], long(group.expert) * adapters_.slot_rows + group.slot,
                              &rows_[group.first + first], last - first, padded, factors});
          factors += long(last - first) * words_of<T>(padded) * T::factors;
        }
      }
    if (products.empty()) return;
    if (long(low_.size()) < factors) low_.resize(factors);
    team_.run(long(products.size()),
              [&](long i) { lower(products[i], (const uint32_t *)x, words_of<T>(inputs)); });
    std::vector<Task> tasks;
    for (const Product &product : products)
      for (int p = 0; p < panels_of(product.part->outputs); p += PANELS)
        tasks.push_back({&product, p});
    team_.run(long(tasks.size()), [&](long i) { raise(tasks[i], out, pitch); });
  }

 private:
  typedef typename T::element element;

  static const int PANELS = 4;  // of one task
  static const int STEPS = 64;  // words of rank that are a panel in the first cache

  struct Group {  // rows_[first] and so on, `rows` of them
    int expert, slot, first, rows;
  };

  struct Product {
    const Part *part;
    long slot;
    const int32_t *row;
    int rows, rank;
    long low;
  };

  struct Task {
    const Product *product;
    int panel;
  };

  template <class Token> void sort(int E, const int32_t *offsets, const Token &token) {
    groups_.clear();
    rows_.resize(offsets[E]);
    std::vector<int> next(adapters_.places + 1);
    int used = 0;
    for (int e = 0; e < E; ++e) {
      std::fill(next.begin(), next.end(), 0);
      for (int row = offsets[e]; row < offsets[e + 1]; ++row) ++next[place_[token(row)] + 1];
      for (int place = 0; place < adapters_.places; ++place) {
        const int count = next[place + 1];
        next[place + 1] = used;
        if (count) groups_.push_back({e, adapters_.slot[place], used, count});
        used += count;
      }
      for (int row = offsets[e]; row < offsets[e + 1]; ++row)
        if (const int place = place_[token(row)]; place >= 0) rows_[next[place + 1]++] = row;
    }
  }

  // x A^T of some rows, `steps` words each, next to one another in low_.
  void lower(const Product &product, const uint32_t *x, int steps) {
    const uint32_t *a = (const uint32_t *)product.part->a + product.slot * steps;
    typename T::factor *low = &low_[product.low];
    for (int c = 0; c < product.rank; c += 8)
      for (int r = 0; r < product.rows; r += 2) {
        const int rows = std::min(2, product.rows - r), columns = std::min(8, product.rank - c);
        float sums[2][16] = {}, *const to[2] = {sums[0], sums[1]};
        const uint32_t *from[2] = {x + long(product.row[r]) * steps,
                                   x + long(product.row[r + rows - 1]) * steps};
        const uint32_t *half = a + long(c) * steps;
        if (rows == 2 && columns == 8) dots<T, 2, 8>(from, half, steps, to);
        else if (rows == 2) dots<T, 2, 4>(from, half, steps, to);
        else if (columns == 8) dots<T, 1, 8>(from, half, steps, to);
        else dots<T, 1, 4>(from, half, steps, to);
        for (int i = 0; i < rows; ++i) {
          element made[16];
          T::write(made, load<vec>(sums[i]));
          spread<T>((const uint32_t *)made, words_of<T>(columns),
                    low + words_of<T>(int(r + i) * product.rank + c) * T::factors);
        }
      }
  }

  // Adds some panels of columns of low_ B.
  void raise(const Task &task, float *out, long pitch) {
    const Product &product = *task.product;
    const Part &part = *product.part;
    const element *b = (const element *)part.b + product.slot * part.outputs;
    const int steps = words_of<T>(product.rank);
    const int end = std::min(panels_of(part.outputs), task.panel + PANELS);
    alignas(64) uint32_t packed[STEPS * PANEL];
    for (int number = task.panel; number < end; ++number)
      for (int step = 0; step < steps; step += STEPS) {
        const int some = std::min(STEPS, steps - step), column = number * PANEL;
        const int whole = std::min(4, (part.outputs - column) / 16);  // outputs: of 16 each
        for (int k = 0; k < some; ++k) {
          const element *row = b + long(step + k) * T::per_word * part.outputs + column;
          for (int c = 0; c < 4; ++c)
            store(packed + place_of(k, c * 16, some),
                  c < whole ? T::pair(row + c * 16, row + part.outputs + c * 16) : words{});
        }
        panel<T>(&low_[product.low] + step * T::factors, steps * T::factors, product.rows, packed, some,
                 [&](int row, vec *sums) {
                   float *to = out + product.row[row] * pitch + part.column + column;
                   for (int c = 0; c < whole; ++c)
                     store(to + c * 16, load<vec>(to + c * 16) + sums[c]);
                 });
      }
  }

  const Adapters &adapters_;
  Team &team_;
  std::vector<int32_t> place_;
  std::vector<Group> groups_;
  std::vector<int32_t> rows_;
  std::vector<typename T::factor> low_;
};
