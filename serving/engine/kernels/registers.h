// Vectors of 16 lanes, 64 bytes of floats: one register where a machine has such, else halves of
// halves down to a register it has. GCC's own vectors of 64 bytes would lie in memory there.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

template <class N> struct Two {
  N low, high;
  auto operator[](int i) const {
    const int lanes = sizeof(N) / sizeof(low[0]);
    return i < lanes ? low[i] : high[i - lanes];
  }
};

template <class N> inline Two<N> two(N low, N high) { return {low, high}; }

template <class V> concept Halved = requires(V v) { v.low, v.high; };
template <class S> concept Scalar = std::is_arithmetic_v<S>;

#define LANEWISE(op)                                                                    \
  template <class N> inline auto operator op(const Two<N> &a, const Two<N> &b) {         \
    return two(a.low op b.low, a.high op b.high);                                       \
  }                                                                                     \
  template <class N> inline auto operator op(const Two<N> &a, Scalar auto b) {           \
    return two(a.low op b, a.high op b);                                                \
  }                                                                                     \
  template <class N> inline auto operator op(Scalar auto a, const Two<N> &b) {           \
    return two(a op b.low, a op b.high);                                                \
  }
LANEWISE(+)
LANEWISE(-)
LANEWISE(*)
LANEWISE(/)
LANEWISE(&)
LANEWISE(|)
LANEWISE(<<)
LANEWISE(>>)
LANEWISE(<)
LANEWISE(>)
LANEWISE(<=)
LANEWISE(>=)
#undef LANEWISE

template <class N> inline Two<N> operator-(const Two<N> &a) { return two(-a.low, -a.high); }

template <class N, class B> inline Two<N> &operator+=(Two<N> &a, const B &b) { return a = a + b; }

// `name`: 16 lanes of an element. (GCC ignores a vector_size that depends on a template's argument.)
#if defined(__AVX512F__)
#define LANES(name, element) typedef element name __attribute__((vector_size(16 * sizeof(element))))
#elif defined(__AVX2__)
#define LANES(name, element)                                                     \
  typedef element name##_8 __attribute__((vector_size(8 * sizeof(element))));    \
  typedef Two<name##_8> name
#else
#define LANES(name, element)                                                     \
  typedef element name##_4 __attribute__((vector_size(4 * sizeof(element))));    \
  typedef Two<Two<name##_4>> name
#endif

template <class V> inline V load(const void *from) {
  if constexpr (Halved<V>) {
    typedef decltype(V::low) N;
    return {load<N>(from), load<N>((const char *)from + sizeof(N))};
  } else {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
  }
}

template <class V> inline void store(void *to, V v) {
  if constexpr (Halved<V>) {
    store(to, v.low);
    store((char *)to + sizeof v.low, v.high);
  } else {
    memcpy(to, &v, sizeof v);
  }
}

// The same bits as another type.
template <class V, class U> inline V as(U v) {
  if constexpr (Halved<V>)
    return {as<decltype(V::low)>(v.low), as<decltype(V::low)>(v.high)};
  else
    return (V)v;
}

// The same numbers as another type.
template <class V, class U> inline V converted(U v) {
  if constexpr (Halved<V>)
    return {converted<decltype(V::low)>(v.low), converted<decltype(V::low)>(v.high)};
  else
    return __builtin_convertvector(v, V);
}

// Of a where `mask` is set, else of b.
template <class M, class V> inline V select(M mask, V a, V b) {
  if constexpr (Halved<V>)
    return {select(mask.low, a.low, b.low), select(mask.high, a.high, b.high)};
  else
    return mask ? a : b;
}

template <class V> inline V greater(V a, V b) { return select(a > b, a, b); }

template <class V> inline float sum(V v) {
  if constexpr (Halved<V>) {
    return sum(v.low + v.high);
#if defined(__AVX512F__)
  } else if constexpr (sizeof v == 64) {
    return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  } else if constexpr (sizeof v == 32) {
    return sum(_mm256_castps256_ps128((__m256)v) + _mm256_extractf128_ps((__m256)v, 1));
#endif
  } else {
    return (v[0] + v[2]) + (v[1] + v[3]);
  }
}

template <class V> inline float largest(V v) {
  if constexpr (Halved<V>) {
    return largest(greater(v.low, v.high));
#if defined(__AVX512F__)
  } else if constexpr (sizeof v == 64) {
    return _mm512_reduce_max_ps((__m512)v);
#endif
  } else {
    float most = v[0];
    for (unsigned i = 1; i < sizeof v / sizeof most; ++i) most = v[i] > most ? v[i] : most;
    return most;
  }
}

// The sum of each of four, times `scale`.
template <class V> inline void sums_of_four(const V (&v)[4], float scale, float *to) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  __m256 half[4];
  for (int i = 0; i < 4; ++i) half[i] = (__m256)(v[i].low + v[i].high);
  const __m256 all =
      _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  const __m128 sums = _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
  _mm_storeu_ps(to, sums * _mm_set1_ps(scale));
#else
  for (int i = 0; i < 4; ++i) to[i] = sum(v[i]) * scale;
#endif
}

// v in registers: else GCC may read it from memory again for each of its uses.
template <class V> inline V held(V v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (Halved<V>)
    return {held(v.low), held(v.high)};
  else
    asm("" : "+x"(v));
#endif
  return v;
}
