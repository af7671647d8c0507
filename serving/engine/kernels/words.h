// Vectors of 16 floats, and of 16 words of 32 bits: a float each, or two neighbouring bfloat16.
//
// Everything that multiplies takes words, so that one kernel serves both types. GCC lowers these
// vectors to whatever the machine has; only what has no portable form is an intrinsic.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

template <class V> inline V load(const void *from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V> inline void store(void *to, V v) { memcpy(to, &v, sizeof v); }

inline vec splat(float x) { return x - vec{}; }

inline float sum(vec v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int i = 0; i < 16; ++i) total += v[i];
  return total;
#endif
}

inline float largest(vec v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)v);
#else
  float most = v[0];
  for (int i = 1; i < 16; ++i) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

// e^x to about 2e-7, for x in [-87, 88]; beyond, the value at that end.
inline vec exp(vec x) {
  x = x < -87.f ? splat(-87.f) : x;
  x = x > 88.f ? splat(88.f) : x;
  const vec whole = (x * 1.44269504f + 12582912.f) - 12582912.f;  // rounds to nearest
  const vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  return p * (vec)((__builtin_convertvector(whole, ints) + 127) << 23);
}

inline vec silu(vec x) { return x / (1.f + exp(-x)); }

struct Float {
  typedef float element;
  static const int per_word = 1;
  static vec read(const element *from) { return load<vec>(from); }
  static void write(element *to, vec v) { store(to, v); }
  static vec dot(vec acc, words a, words b) { return acc + (vec)a * (vec)b; }
  // 16 columns of what a word of two rows holds; a float's word is of one row.
  static words pair(const element *first, const element *) { return load<words>(first); }
};

struct BFloat {
  typedef uint16_t element;
  static const int per_word = 2;
  static vec read(const element *from) {
    return (vec)(__builtin_convertvector(load<halves>(from), words) << 16);
  }
  static void write(element *to, vec v) {
#ifdef __AVX512BF16__
    const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &h, sizeof h);
#else
    words bits = (words)v;
    bits += 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
    store(to, __builtin_convertvector(bits >> 16, halves));
#endif
  }
  static vec dot(vec acc, words a, words b) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc += (vec)(a << 16) * (vec)(b << 16);
    return acc + (vec)(a & 0xffff0000u) * (vec)(b & 0xffff0000u);
#endif
  }
  static words pair(const element *first, const element *second) {
    return __builtin_convertvector(load<halves>(first), words) |
           __builtin_convertvector(load<halves>(second), words) << 16;
  }
};
