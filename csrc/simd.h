// Sixteen lanes of compiler vectors: what the kernel families are written in, for every level.
//
// GCC and Clang lower a 64-byte vector to what the level's flags allow: one AVX-512 register, two
// of AVX2, four of NEON or SSE. Sums run in the same order everywhere. The few intrinsics that
// compilers do not find by themselves are here (and, for tiles, in tile.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kLanes = 16;
typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

inline F32 load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }

// n lanes of p, the rest zero
inline F32 load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  F32 v = {};
  for (int64_t lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}
inline void store(float* p, F32 v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  for (int64_t lane = 0; lane < n; ++lane) p[lane] = v[lane];
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// Past the caches, for what is read much later; p is aligned. `streamed` makes it seen by others.
inline void stream(float* p, F32 v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#else
  store(p, v);
#endif
}
inline void streamed() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

inline F32 all(float value) { return F32{} + value; }
inline F32 as_float(U32 v) { return (F32)v; }
inline U32 as_bits(F32 v) { return (U32)v; }

inline F32 widen(U16 v) { return as_float(__builtin_convertvector(v, U32) << 16); }
inline F32 widen(const bf16* p) {
  U16 v;
  std::memcpy(&v, p, sizeof v);
  return widen(v);
}

// To bfloat16, nearest even; what is not a number stays so.
inline U32 rounded_bits(F32 x) {
  U32 bits = as_bits(x);
  U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  U32 quiet = (bits >> 16) | 0x40;
  return (x == x) ? rounded : quiet;
}
inline U16 narrow(F32 x) {
#if defined(__AVX512BF16__)
  // The instruction takes subnormal numbers for zero; they round to nothing that matters, and all
  // of a level has it, so bits are equal within a level.
  return (U16)_mm512_cvtneps_pbh((__m512)x);
#else
  return __builtin_convertvector(rounded_bits(x), U16);
#endif
}
inline void store(bf16* p, F32 x) {
  U16 v = narrow(x);
  std::memcpy(p, &v, sizeof v);
}
// 32 values as bfloat16
inline void store(bf16* p, F32 left, F32 right) {
#if defined(__AVX512BF16__)
  __m512bh both = _mm512_cvtne2ps_pbh((__m512)right, (__m512)left);
  std::memcpy(p, &both, sizeof both);
#else
  store(p, left);
  store(p + kLanes, right);
#endif
}
inline F32 through_bf16(F32 x) { return as_float(rounded_bits(x) << 16); }

#if KVEIK_PAIRS
// Sixteen pairs of bfloat16.
struct Pairs {
  __m512bh values;
  explicit Pairs(const bf16* p) { std::memcpy(&values, p, sizeof values); }
  explicit Pairs(__m512i both) : values((__m512bh)both) {}
  // sixteen times the pair at p
  static Pairs all(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return Pairs(_mm512_set1_epi32(pair));
  }
};

// Each lane: sum + the products of its pair, the second one first, each addition rounded.
inline F32 add_pairs(F32 sum, const Pairs& a, const Pairs& b) {
  return (F32)_mm512_dpbf16_ps((__m512)sum, a.values, b.values);
}
#endif

inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }

// Of all lanes, in one fixed order: halves onto each other.
typedef float F32x8 __attribute__((vector_size(32)));
typedef float F32x4 __attribute__((vector_size(16)));
inline float sum(F32 v) {
  F32x8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  F32x4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
               __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  F32x4 two = four + __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return two[0] + two[1];
}
inline float largest(F32 v) {
  F32x8 low = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  F32x8 high = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  F32x8 eight = low > high ? low : high;
  F32x4 left = __builtin_shufflevector(eight, eight, 0, 1, 2, 3);
  F32x4 right = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  F32x4 four = left > right ? left : right;
  F32x4 turned = __builtin_shufflevector(four, four, 2, 3, 0, 1);
  F32x4 two = four > turned ? four : turned;
  return two[0] > two[1] ? two[0] : two[1];
}

// e^x within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN stays.
// x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial for e^r; 2^n by its exponent bits.
inline F32 exp(F32 x) {
  F32 clamped = x < -87.33654f ? all(-87.33654f) : x;
  clamped = clamped > 88.72283f ? all(88.72283f) : clamped;
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  F32 shifted = clamped * 1.44269504f + magic;
  F32 n = shifted - magic;
  F32 r = clamped - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  F32 p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  F32 value = (p * r) * r + (r + 1.0f);
  // 2^n in two halves, for n = 128 has no exponent of its own
  I32 whole = __builtin_convertvector(n, I32), half = whole >> 1;
  F32 first = as_float((U32)((half + 127) << 23));
  F32 second = as_float((U32)((whole - half + 127) << 23));
  value = value * first * second;
  value = x < -87.33654f ? F32{} : value;
  value = x > 88.72283f ? all(INFINITY) : value;
  return x == x ? value : x;
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
