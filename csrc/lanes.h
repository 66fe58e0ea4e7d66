// Sixteen lanes, in vectors of the compiler: what the kernel families are written in, for every
// level. With AVX-512 sixteen lanes are one register. Elsewhere they are parts of a register each,
// since GCC would keep a vector that is wider than a register in memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

template <class T>
struct OneRegister {
  typedef T type __attribute__((vector_size(64)));
};
template <class T>
using Lanes = typename OneRegister<T>::type;

template <class To, class From>
inline Lanes<To> same_bits(From v) {
  return (Lanes<To>)v;
}
template <class Mask, class V>
inline V select(Mask mask, V yes, V no) {
  return mask ? yes : no;
}
template <class T>
inline Lanes<T> load_lanes(const void* p) {
  Lanes<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Lanes<float> v) { std::memcpy(p, &v, sizeof v); }

#else

#if defined(__AVX2__)
constexpr int kPartBytes = 32;
#else
constexpr int kPartBytes = 16;
#endif
constexpr int kParts = 64 / kPartBytes;

// 64 bytes of T.
template <class T>
struct Lanes {
  typedef T Part __attribute__((vector_size(kPartBytes)));
  using Mask = Lanes<int32_t>;  // of a comparison: all bits of a lane, or none

  Part part[kParts];

  T operator[](int lane) const {
    constexpr int lanes = kPartBytes / sizeof(T);
    return part[lane / lanes][lane % lanes];
  }

#define KVEIK_PARTS(Result, expression)                      \
  Result result;                                             \
  _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i) { \
    result.part[i] = (typename Result::Part)(expression);    \
  }                                                          \
  return result;
#define KVEIK_OPERATOR(Result, op)                            \
  friend Result operator op(const Lanes& a, const Lanes& b) { \
    KVEIK_PARTS(Result, a.part[i] op b.part[i])               \
  }                                                           \
  friend Result operator op(const Lanes& a, T b) { KVEIK_PARTS(Result, a.part[i] op b) }

  KVEIK_OPERATOR(Lanes, +)
  KVEIK_OPERATOR(Lanes, -)
  KVEIK_OPERATOR(Lanes, *)
  KVEIK_OPERATOR(Lanes, /)
  KVEIK_OPERATOR(Lanes, &)
  KVEIK_OPERATOR(Lanes, ^)
  KVEIK_OPERATOR(Lanes, |)
  KVEIK_OPERATOR(Mask, <)
  KVEIK_OPERATOR(Mask, >)
  KVEIK_OPERATOR(Mask, >=)
  KVEIK_OPERATOR(Mask, ==)
  friend Lanes operator-(const Lanes& a) { KVEIK_PARTS(Lanes, -a.part[i]) }
  friend Lanes operator<<(const Lanes& a, int bits) { KVEIK_PARTS(Lanes, a.part[i] << bits) }
  friend Lanes operator>>(const Lanes& a, int bits){
      KVEIK_PARTS(Lanes, a.part[i] >> bits)} Lanes& operator+=(const Lanes& other) {
    return *this = *this + other;
  }
  Lanes& operator^=(const Lanes& other) { return *this = *this ^ other; }
  Lanes& operator*=(T value) { return *this = *this * value; }
#undef KVEIK_OPERATOR
};

template <class To, class From>
inline Lanes<To> same_bits(const From& v) {
  KVEIK_PARTS(Lanes<To>, v.part[i])
}
template <class M, class V>
inline V select(const Lanes<M>& mask, const V& yes, const V& no) {
  KVEIK_PARTS(V, mask.part[i] ? yes.part[i] : no.part[i])
}

// Part by part: compilers copy a struct through memory.
template <class T>
inline Lanes<T> load_lanes(const void* p) {
  Lanes<T> v;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    std::memcpy(&v.part[i], static_cast<const char*>(p) + i * kPartBytes, kPartBytes);
  }
  return v;
}
inline void store(float* p, const Lanes<float>& v) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    std::memcpy(p + i * kPartBytes / sizeof(float), &v.part[i], kPartBytes);
  }
}

#endif

using F32 = Lanes<float>;
using I32 = Lanes<int32_t>;
using U32 = Lanes<uint32_t>;

inline F32 as_float(const U32& v) { return same_bits<float>(v); }
inline U32 as_bits(const F32& v) { return same_bits<uint32_t>(v); }
inline U32 as_bits(const I32& v) { return same_bits<uint32_t>(v); }
inline I32 as_int(const U32& v) { return same_bits<int32_t>(v); }

inline F32 load(const float* p) { return load_lanes<float>(p); }

// n lanes of p, the rest zero
inline F32 load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int64_t lane = 0; lane < n; ++lane) lanes[lane] = p[lane];
  return load(lanes);
}
inline void store(float* p, const F32& v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t lane = 0; lane < n; ++lane) p[lane] = lanes[lane];
}

inline F32 all(float value) { return F32{} + value; }

// 0, 1, 2 ... 15
inline U32 lane_numbers() {
  constexpr uint32_t numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load_lanes<uint32_t>(numbers);
}

#if defined(__AVX512F__)

inline I32 to_int(F32 v) { return __builtin_convertvector(v, I32); }
inline F32 to_float(I32 v) { return __builtin_convertvector(v, F32); }

// a * b + c, rounded once; written out so that no level's compiler decides.
inline F32 fused(F32 a, F32 b, F32 c) {
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

// Lane i gets lane i ^ bit.
template <int b>
inline F32 partners(F32 v) {
  return __builtin_shufflevector(v, v, 0 ^ b, 1 ^ b, 2 ^ b, 3 ^ b, 4 ^ b, 5 ^ b, 6 ^ b, 7 ^ b,
                                 8 ^ b, 9 ^ b, 10 ^ b, 11 ^ b, 12 ^ b, 13 ^ b, 14 ^ b, 15 ^ b);
}

#else

inline I32 to_int(const F32& v) { KVEIK_PARTS(I32, __builtin_convertvector(v.part[i], I32::Part)) }
inline F32 to_float(const I32& v) {
  KVEIK_PARTS(F32, __builtin_convertvector(v.part[i], F32::Part))
}

inline F32 fused(const F32& a, const F32& b, const F32& c) {
#if defined(__AVX2__) && defined(__FMA__)
  KVEIK_PARTS(F32, _mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]))
#else
  float lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = std::fma(a[lane], b[lane], c[lane]);
  return load(lanes);
#endif
}

template <int b>
inline F32 partners(const F32& v) {
  constexpr int lanes = kPartBytes / 4;
  if constexpr (b >= lanes) {
    KVEIK_PARTS(F32, v.part[i ^ (b / lanes)])
  } else if constexpr (lanes == 8) {
    KVEIK_PARTS(F32, __builtin_shufflevector(v.part[i], v.part[i], 0 ^ b, 1 ^ b, 2 ^ b, 3 ^ b,
                                             4 ^ b, 5 ^ b, 6 ^ b, 7 ^ b))
  } else {
    KVEIK_PARTS(F32, __builtin_shufflevector(v.part[i], v.part[i], 0 ^ b, 1 ^ b, 2 ^ b, 3 ^ b))
  }
}

#endif

}  // namespace KVEIK_LEVEL
}  // namespace kveik
