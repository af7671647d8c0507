// Vectors of 16 floats, and of 16 words of 32 bits: a float each, or two neighbouring bfloat16.
//
// Everything that multiplies takes words, so that one kernel serves both types. Only what has no
// portable form is an intrinsic.
#pragma once
#include "registers.h"

LANES(vec, float);
LANES(ints, int32_t);
LANES(words, uint32_t);
LANES(halves, uint16_t);

inline vec splat(float x) { return x - vec{}; }
inline words splat(uint32_t x) { return x - words{}; }

// e^x to about 2e-7, for x in [-87, 88]; beyond, the value at that end.
inline vec exp(vec x) {
  x = select(x < -87.f, splat(-87.f), x);
  x = select(x > 88.f, splat(88.f), x);
  const vec whole = (x * 1.44269504f + 12582912.f) - 12582912.f;  // rounds to nearest
  const vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  return p * as<vec>((converted<ints>(whole) + 127) << 23);
}

inline vec silu(vec x) { return x / (1.f + exp(-x)); }

// `factor`: what kernels read of a row of x, `factors` of them to a word; `multiply` adds the
// products of one with its `part` of 16 words of weights.
struct Float {
  typedef float element;
  typedef float factor;
  static const int per_word = 1, factors = 1;
  static vec read(const element *from) { return load<vec>(from); }
  static void write(element *to, vec v) { store(to, v); }
  static vec dot(vec acc, words a, words b) { return acc + as<vec>(a) * as<vec>(b); }
  static vec part(words w, int) { return as<vec>(w); }
  static vec multiply(vec acc, factor x, vec w) { return acc + x * w; }
  // 16 columns of what a word of two rows holds; a float's word is of one row.
  static words pair(const element *first, const element *) { return load<words>(first); }
};

struct BFloat {
  typedef uint16_t element;
  static const int per_word = 2;
  static vec read(const element *from) {
    return as<vec>(converted<words>(load<halves>(from)) << 16);
  }
  static void write(element *to, vec v) {
#ifdef __AVX512BF16__
    const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &h, sizeof h);
#else
    words bits = as<words>(v);
    bits += 0x7fff + ((bits >> 16) & 1u);  // to nearest, ties to even
    store(to, converted<halves>(bits >> 16));
#endif
  }
#ifdef __AVX512BF16__
  typedef uint32_t factor;
  static const int factors = 1;
  static vec dot(vec acc, words a, words b) {
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
  static words part(words w, int) { return w; }
  static vec multiply(vec acc, factor x, words w) { return dot(acc, splat(x), w); }
#else
  typedef float factor;  // no instruction multiplies bfloat16
  static const int factors = 2;
  static vec dot(vec acc, words a, words b) {
    acc += part(a, 0) * part(b, 0);
    return acc + part(a, 1) * part(b, 1);
  }
  static vec part(words w, int which) {
    return as<vec>(which ? w & 0xffff0000u : w << 16);
  }
  static vec multiply(vec acc, factor x, vec w) { return acc + x * w; }
#endif
  static words pair(const element *first, const element *second) {
    return converted<words>(load<halves>(first)) | converted<words>(load<halves>(second)) << 16;
  }
};

// Words as factors.
template <class T> inline void spread(const uint32_t *from, long count, typename T::factor *to) {
  if constexpr (T::factors == 1) {
    memcpy(to, from, count * sizeof *from);
  } else {
    long k = 0;
    for (; k + 8 <= count; k += 8) store(to + k * 2, T::read((const uint16_t *)(from + k)));
    for (; k < count; ++k) {
      const uint32_t both[2] = {from[k] << 16, from[k] & 0xffff0000u};
      memcpy(to + k * 2, both, sizeof both);
    }
  }
}
