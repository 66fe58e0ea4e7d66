// Arithmetic on sixteen lanes (lanes.h), for every level.
//
// Sums run in the same order everywhere. The few intrinsics that compilers do not find by
// themselves are here, in lanes.h and (for tiles) in tile.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace kveik {
namespace KVEIK_LEVEL {

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// Past the caches, for what is read much later; p is aligned. `streamed` makes it seen by others.
inline void stream(float* p, const F32& v) {
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

// To bfloat16, nearest even; what is not a number stays so.
inline U32 rounded_bits(const F32& x) {
  U32 bits = as_bits(x);
  U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  U32 quiet = (bits >> 16) | 0x40;
  return select(x == x, rounded, quiet);
}
inline void store(bf16* p, const F32& x) {
#if defined(__AVX512BF16__)
  // The instruction takes subnormal numbers for zero; they round to nothing that matters, and all
  // of a level has it, so bits are equal within a level.
  __m256bh v = _mm512_cvtneps_pbh((__m512)x);
#elif defined(__AVX512F__)
  typedef uint16_t U16 __attribute__((vector_size(32)));
  U16 v = __builtin_convertvector(rounded_bits(x), U16);
#else
  typedef uint16_t U16 __attribute__((vector_size(kPartBytes / 2)));
  U32 bits = rounded_bits(x);
  U16 v[kParts];
  for (int i = 0; i < kParts; ++i) v[i] = __builtin_convertvector(bits.part[i], U16);
#endif
  std::memcpy(p, &v, sizeof v);
}
// 32 values as bfloat16
inline void store(bf16* p, const F32& left, const F32& right) {
#if defined(__AVX512BF16__)
  __m512bh both = _mm512_cvtne2ps_pbh((__m512)right, (__m512)left);
  std::memcpy(p, &both, sizeof both);
#else
  store(p, left);
  store(p + kLanes, right);
#endif
}
inline F32 through_bf16(const F32& x) { return as_float(rounded_bits(x) << 16); }

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

inline F32 larger(const F32& a, const F32& b) { return select(a > b, a, b); }

// Of all lanes, in one fixed order: halves onto each other. Compilers take lanes one by one where a
// loop is written.
typedef float F32x8 __attribute__((vector_size(32)));
typedef float F32x4 __attribute__((vector_size(16)));
typedef int32_t I32x8 __attribute__((vector_size(32)));
typedef int32_t I32x4 __attribute__((vector_size(16)));
template <class Eight, class V>
inline void halves(const V& v, Eight& low, Eight& high) {
  std::memcpy(&low, &v, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
}
inline float sum(const F32& v) {
  F32x8 low, high;
  halves(v, low, high);
  F32x8 eight = low + high;
  F32x4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
               __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  F32x4 two = four + __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return two[0] + two[1];
}
inline int32_t sum(const I32& v) {
  I32x8 low, high;
  halves(v, low, high);
  I32x8 eight = low + high;
  I32x4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
               __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  I32x4 two = four + __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return two[0] + two[1];
}
inline float largest(const F32& v) {
  F32x8 low, high;
  halves(v, low, high);
  F32x8 eight = low > high ? low : high;
  F32x4 left = __builtin_shufflevector(eight, eight, 0, 1, 2, 3);
  F32x4 right = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  F32x4 four = left > right ? left : right;
  F32x4 turned = __builtin_shufflevector(four, four, 2, 3, 0, 1);
  F32x4 two = four > turned ? four : turned;
  return two[0] > two[1] ? two[0] : two[1];
}
inline int32_t largest(const I32& v) {
  I32x8 low, high;
  halves(v, low, high);
  I32x8 eight = low > high ? low : high;
  I32x4 left = __builtin_shufflevector(eight, eight, 0, 1, 2, 3);
  I32x4 right = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  I32x4 four = left > right ? left : right;
  int32_t one = four[0] > four[1] ? four[0] : four[1];
  int32_t other = four[2] > four[3] ? four[2] : four[3];
  return one > other ? one : other;
}

// e^x within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN stays.
// x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial for e^r; 2^n by its exponent bits.
inline F32 exp(const F32& x) {
  F32 clamped = select(x < -87.33654f, all(-87.33654f), x);
  clamped = select(clamped > 88.72283f, all(88.72283f), clamped);
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
  I32 whole = to_int(n), half = whole >> 1;
  F32 first = as_float(as_bits((half + 127) << 23));
  F32 second = as_float(as_bits((whole - half + 127) << 23));
  value = value * first * second;
  value = select(x < -87.33654f, F32{}, value);
  value = select(x > 88.72283f, all(INFINITY), value);
  return select(x == x, value, x);
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
