// A decoder's forward pass over paged keys and values, one call a step; structs as in library.py.
//
// The residual stream and whatever leaves a product is float; what enters one has the weights' type.
#include <optional>

#include "adapters.h"
#include "attention.h"
#include "experts.h"
#include "pages.h"

extern "C" {

struct Layer {
  const float *input_norm, *post_norm, *q_norm, *k_norm;
  Weight qkv, out, router, gate_up, down;  // the last two: of each expert, where there is a router
  void *keys, *values;
  int32_t window;
};

struct Model {
  int32_t layers, width, chosen, normalise;
  float eps;
  Heads heads;
  Team *team;
  const Layer *layer;
  const float *final_norm, *cos_sin;  // [positions, H]: H / 2 cosines, then their sines
  const void *embedding;
  Weight head;
};

struct Workspace {  // of T tokens; R = T K rows where there are experts, T otherwise
  float *hidden, *qkv, *router, *up, *pairs;
  void *normed, *queries, *attended, *gathered, *act;
  Routed routed;
};

struct Step {
  int32_t tokens, sequences, table_width, samples;
  const int64_t *token;
  const int32_t *start;     // [S + 1] rows
  const int32_t *position;  // [S] of the first row
  const int32_t *table;     // [S, table_width]
  const int32_t *sampled;   // sequences whose last row is sampled
  float *logits;            // [samples, V]
  const Adapters *adapters;  // may be null
  int32_t late;  // bits by Projection: for which of them there are calls
  void (*before)(int32_t layer, int32_t projection);  // what it reads is there; not of experts
  void (*after)(int32_t layer, int32_t projection);   // may add to what was projected
};

}  // extern "C"

namespace {

template <class T>
void rms_norm(const float *x, int rows, int width, const float *weight, float eps, void *out,
              Team &team) {
  team.rows(rows, 16, [&](long begin, long end) {
    for (long r = begin; r < end; ++r) {
      const float *from = x + r * width, scale = inverse_rms(from, width, eps);
      typename T::element *to = (typename T::element *)out + r * width;
      for (int i = 0; i < width; i += 16)
        T::write(to + i, load<vec>(from + i) * scale * load<vec>(weight + i));
    }
  });
}

template <class T>
void silu_mul(const float *up, long rows, int F, void *out, Team &team) {
  team.rows(rows, 8, [&](long begin, long end) {
    for (long r = begin; r < end; ++r)
      for (int i = 0; i < F; i += 16)
        T::write((typename T::element *)out + r * F + i,
                 silu(load<vec>(up + r * 2 * F + i)) * load<vec>(up + r * 2 * F + F + i));
  });
}

template <class T> struct Pass {
  const Model &model;
  const Step &step;
  const Workspace &ws;
  Team &team;
  std::vector<Span> spans;
  int tokens;
  std::optional<Shares<T>> shares;

  void linear(const void *x, const Weight &w, Then then, void *out, int layer, Projection which) {
    const int32_t offsets[2] = {0, tokens};
    if (late(which)) step.before(layer, which);
    product<T>(x, 1, offsets, w, then, out, team);
    if (then != GATE) add(x, w, out, layer, which);
  }

  // What adapters add to a projection.
  void add(const void *x, const Weight &w, void *out, int layer, Projection which) {
    if (shares) shares->add(layer, which, x, w.inputs, (float *)out, w.outputs);
    if (late(which)) step.after(layer, which);
  }

  bool late(Projection which) const { return step.late >> which & 1; }

  // Whether gates and ups are not final when they are projected.
  bool changed(int layer) const { return late(GATE_UP) || (shares && shares->any(layer, GATE_UP)); }

  void attention(int number) {
    typedef typename T::element element;
    const Layer &layer = model.layer[number];
    const Cache<T> cache = {(element *)layer.keys, (element *)layer.values};
    rms_norm<T>(ws.hidden, tokens, model.width, layer.input_norm, model.eps, ws.normed,
                team);
    linear(ws.normed, layer.qkv, STORE, ws.qkv, number, QKV);
    place<T>(ws.qkv, spans, model.heads, layer.q_norm, layer.k_norm, model.cos_sin, cache,
             (element *)ws.queries, tokens, team);
    if (number + 1 == model.layers) keep_sampled();
    attend<T>(spans, model.heads, cache, layer.window, (const element *)ws.queries,
              (element *)ws.attended, team);
    linear(ws.attended, layer.out, ADD, ws.hidden, number, OUT);
  }

  // After the last keys and values are written, only the rows that are sampled go on.
  void keep_sampled() {
    const long query_bytes = long(model.heads.queries) * model.heads.dim * sizeof(typename T::element);
    std::vector<Span> kept;
    std::vector<int32_t> rows;
    for (int i = 0; i < step.samples; ++i) {
      const Span &span = spans[step.sampled[i]];
      const long row = span.row + span.count - 1;
      memmove(ws.hidden + long(i) * model.width, ws.hidden + row * model.width,
              model.width * sizeof(float));
      memmove((char *)ws.queries + i * query_bytes, (char *)ws.queries + row * query_bytes,
              query_bytes);
      rows.push_back(int32_t(row));
      kept.push_back({i, 1, span.position + span.count - 1, span.table});
    }
    spans = kept;
    tokens = step.samples;
    if (!shares) return;
    shares->keep(rows);
    shares->of_tokens();
  }

  void feed_forward(int number) {
    const Layer &layer = model.layer[number];
    const int F = layer.gate_up.outputs / 2;
    rms_norm<T>(ws.hidden, tokens, model.width, layer.post_norm, model.eps, ws.normed, team);
    if (!layer.router.outputs) {
      const bool apart = changed(number);
      linear(ws.normed, layer.gate_up, apart ? SPLIT : GATE, apart ? (void *)ws.up : ws.act, number,
             GATE_UP);
      if (apart) silu_mul<T>(ws.up, tokens, F, ws.act, team);
      linear(ws.act, layer.down, ADD, ws.hidden, number, DOWN);
      return;
    }
    const int E = layer.router.outputs, K = model.chosen, rows = tokens * K;
    const int32_t offsets[2] = {0, tokens};
    product<T>(ws.normed, 1, offsets, layer.router, STORE, ws.router, team);
    route(ws.router, tokens, E, K, model.normalise, ws.routed, team);
    gather((const uint32_t *)ws.normed, ws.routed.order, rows, K, words_of<T>(model.width),
           (uint32_t *)ws.gathered, team);
    if (shares) shares->of_pairs(E, ws.routed.offsets, ws.routed.order, K);
    const bool apart = changed(number);
    product<T>(ws.gathered, E, ws.routed.offsets, layer.gate_up, apart ? SPLIT : GATE,
               apart ? (void *)ws.up : ws.act, team);
    if (apart) {
      add(ws.gathered, layer.gate_up, ws.up, number, GATE_UP);
      silu_mul<T>(ws.up, rows, F, ws.act, team);
    }
    product<T>(ws.act, E, ws.routed.offsets, layer.down, STORE, ws.pairs, team);
    add(ws.act, layer.down, ws.pairs, number, DOWN);
    if (shares) shares->of_tokens();
    combine(ws.pairs, ws.routed, tokens, K, model.width, ws.hidden, team);
  }

  void run() {
    typedef typename T::element element;
    tokens = step.tokens;
    if (step.adapters) {
      shares.emplace(*step.adapters, team);
      shares->of_tokens();
    }
    for (int s = 0; s < step.sequences; ++s)
      spans.push_back({step.start[s], step.start[s + 1] - step.start[s], step.position[s],
                       step.table + long(s) * step.table_width});
    for (int t = 0; t < tokens; ++t)
      for (int d = 0; d < model.width; d += 16)
        store(ws.hidden + long(t) * model.width + d,
              T::read((const element *)model.embedding + step.token[t] * model.width + d));
    for (int layer = 0; layer < model.layers; ++layer) {
      attention(layer);
      if (!tokens) return;  // nothing is sampled
      feed_forward(layer);
    }
    rms_norm<T>(ws.hidden, tokens, model.width, model.final_norm, model.eps, ws.normed,
                team);
    const int32_t offsets[2] = {0, tokens};
    product<T>(ws.normed, 1, offsets, model.head, STORE, step.logits, team);
  }
};

}  // namespace

extern "C" {

Team *hecate_team(int threads) { return new Team(threads); }

void hecate_dismiss(Team *team) { delete team; }

void hecate_forward(const Model *model, const Step *step, const Workspace *ws, int bfloat) {
  if (bfloat)
    Pass<BFloat>{*model, *step, *ws, *model->team, {}, 0, {}}.run();
  else
    Pass<Float>{*model, *step, *ws, *model->team, {}, 0, {}}.run();
}

long hecate_packed_bytes(int outputs, int inputs, int bfloat) {
  return long(panels_of(outputs)) * PANEL * inputs * (bfloat ? 2 : 4);
}

void hecate_pack(const void *from, void *to, int outputs, int inputs, int bfloat) {
  if (bfloat)
    pack<BFloat>(from, (uint32_t *)to, outputs, inputs);
  else
    pack<Float>(from, (uint32_t *)to, outputs, inputs);
}

}  // extern "C"
