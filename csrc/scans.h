// Passes over one row of logits (RowScans of sampling.h): plain loops over fixed lanes, which the
// compiler makes vectors of. The lanes fix the order of every sum, so all levels with a fused
// multiply-add return the same bits.
#pragma once

#include <limits>

#include "sampling.h"

namespace kveik {
namespace KVEIK_LEVEL {
namespace scans {

constexpr int64_t kSumLanes = 16;
constexpr float kNone = -std::numeric_limits<float>::infinity();

// One rounding where the set has the instruction, two where it would be a call.
inline double multiply_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) = 2^k * exp(r), |r| <= ln 2 / 2, exp(r) by the minimax polynomial of degree 11 (1.1e-17).
// 2^k is applied as two factors, so that results below the normal range are rounded once.
inline double exponential(double x) {
  constexpr double kMagic = 0x1.8p52;   // adding it rounds to an integer
  constexpr double kLowest = -745.2;    // below: 0
  constexpr uint64_t kBias = 2 * 1049;  // k + bias is not negative
  const bool vanishes = x < kLowest;
  const double y = vanishes ? 0.0 : x;
  const double shifted = multiply_add(y, 0x1.71547652b82fep0, kMagic);
  const double k = shifted - kMagic;
  double r = multiply_add(k, -0x1.62e42fee00000p-1, y);
  r = multiply_add(k, -0x1.a39ef35793c76p-33, r);
  double p = 0x1.ad7f3ee5d2f80p-26;
  p = multiply_add(p, r, 0x1.28ad9b8648615p-22);
  p = multiply_add(p, r, 0x1.71df25b30d420p-19);
  p = multiply_add(p, r, 0x1.a01999e26209fp-16);
  p = multiply_add(p, r, 0x1.a01a012a0f35cp-13);
  p = multiply_add(p, r, 0x1.6c16c18438b11p-10);
  p = multiply_add(p, r, 0x1.1111111127d0ep-7);
  p = multiply_add(p, r, 0x1.555555555083ep-5);
  p = multiply_add(p, r, 0x1.55555555554f9p-3);
  p = multiply_add(p, r, 0x1.000000000000ap-1);
  p = multiply_add(p * r, r, r) + 1.0;
  const uint64_t both =
      __builtin_bit_cast(uint64_t, shifted) - __builtin_bit_cast(uint64_t, kMagic) + kBias;
  const uint64_t first = both >> 1, second = both - first;
  const double value = p * __builtin_bit_cast(double, (first - kBias / 2 + 1023) << 52) *
                       __builtin_bit_cast(double, (second - kBias / 2 + 1023) << 52);
  return vanishes ? 0.0 : value;
}

inline float larger(float a, float b) { return a > b ? a : b; }

// x[size] of one chunk -> maxima[64]
inline bool chunk_maxima(const float* x, int64_t size, float* maxima) {
  float best[kGroups];
  int32_t broken[kGroups] = {};
  for (int64_t lane = 0; lane < kGroups; lane++) best[lane] = kNone;
  int64_t i = 0;
  for (; i + kGroups <= size; i += kGroups)
    for (int64_t lane = 0; lane < kGroups; lane++) {
      const float value = x[i + lane];
      best[lane] = larger(value, best[lane]);
      broken[lane] |= value != value;
    }
  for (int64_t lane = 0; i + lane < size; lane++) {
    best[lane] = larger(x[i + lane], best[lane]);
    broken[lane] |= x[i + lane] != x[i + lane];
  }
  int32_t any = 0;
  for (int64_t lane = 0; lane < kGroups; lane++) any |= broken[lane];
  for (int64_t lane = 0; lane < kGroups; lane++) maxima[lane] = best[lane];
  return any == 0;
}

inline bool maxima(const float* x, int64_t size, float* maxima) {
  bool whole = true;
  for (int64_t i = 0; i < size; i += kScanChunk, maxima += kGroups)
    whole &= chunk_maxima(x + i, size - i < kScanChunk ? size - i : kScanChunk, maxima);
  return whole;
}

inline int64_t find(const float* x, int64_t size, float value) {
  int64_t i = 0;
  for (; i + kGroups <= size; i += kGroups) {
    int32_t any = 0;
    for (int64_t lane = 0; lane < kGroups; lane++) any |= x[i + lane] == value;
    if (any) break;
  }
  while (i < size && x[i] != value) i++;
  return i;
}

inline int64_t count_greater(const float* x, int64_t size, float value) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += kScanChunk) {
    const int64_t end = i + kScanChunk < size ? i + kScanChunk : size;
    int32_t here = 0;
    for (int64_t j = i; j < end; j++) here += x[j] > value;
    count += here;
  }
  return count;
}

inline int64_t collect(const float* x, int64_t size, float bound, int32_t* ids) {
  int64_t count = 0, i = 0;
  for (; i + kGroups <= size; i += kGroups) {
    int32_t any = 0;
    for (int64_t lane = 0; lane < kGroups; lane++) any |= x[i + lane] >= bound;
    if (!any) continue;
    for (int64_t j = i; j < i + kGroups; j++) {
      ids[count] = static_cast<int32_t>(j);
      count += x[j] >= bound;
    }
  }
  for (; i < size; i++)
    if (x[i] >= bound) ids[count++] = static_cast<int32_t>(i);
  return count;
}

inline void weigh(const float* x, int64_t size, double best, double temperature, double* weights) {
  for (int64_t i = 0; i < size; i++)
    weights[i] = exponential((static_cast<double>(x[i]) - best) / temperature);
}

inline double chunk_sum(const float* x, int64_t size, double best, double temperature) {
  double lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= size; i += kSumLanes)
    for (int64_t lane = 0; lane < kSumLanes; lane++)
      lanes[lane] += exponential((static_cast<double>(x[i + lane]) - best) / temperature);
  for (int64_t lane = 0; i + lane < size; lane++)
    lanes[lane] += exponential((static_cast<double>(x[i + lane]) - best) / temperature);
  for (int64_t width = kSumLanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

inline void sum_weights(const float* x, int64_t size, double best, double temperature,
                        double* sums) {
  for (int64_t i = 0; i < size; i += kScanChunk)
    *sums++ = chunk_sum(x + i, size - i < kScanChunk ? size - i : kScanChunk, best, temperature);
}

inline void exponentials(const double* x, int64_t size, double* y) {
  for (int64_t i = 0; i < size; i++) y[i] = exponential(x[i]);
}

inline const RowScans kTable = {
    maxima, find, count_greater, collect, weigh, sum_weights, exponentials,
};

}  // namespace scans
}  // namespace KVEIK_LEVEL
}  // namespace kveik
