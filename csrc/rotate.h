// The rotation of a row (rotation.h) in vectors: the same sums in the same order.
#pragma once

#include "rotation.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Lanes whose number has bit `half`: partner - own, the others: own + partner.
inline F32 lane_sums(F32 own, F32 partner, U32 signs) {
  return partner + as_float(as_bits(own) ^ signs);
}

inline F32 within_lanes(F32 v) {
  constexpr uint32_t m = 0x80000000u;
  const U32 ones = {0, m, 0, m, 0, m, 0, m, 0, m, 0, m, 0, m, 0, m};
  const U32 twos = {0, 0, m, m, 0, 0, m, m, 0, 0, m, m, 0, 0, m, m};
  const U32 fours = {0, 0, 0, 0, m, m, m, m, 0, 0, 0, 0, m, m, m, m};
  const U32 eights = {0, 0, 0, 0, 0, 0, 0, 0, m, m, m, m, m, m, m, m};
  v = lane_sums(
      v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14), ones);
  v = lane_sums(
      v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13), twos);
  v = lane_sums(v,
                __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11),
                fours);
  return lane_sums(
      v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7),
      eights);
}

template <int count>
inline void between_vectors(F32* v) {
#pragma GCC unroll 3
  for (int half = 1; half < count; half *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      if ((i & half) != 0) continue;
      F32 a = v[i], b = v[i + half];
      v[i] = a + b;
      v[i + half] = a - b;
    }
  }
}

// Vectors `half` apart, in the whole block.
template <int count>
inline void sums_apart(float* block, int64_t vectors, int64_t half) {
  for (int64_t first = 0; first < vectors; first += count * half) {
    for (int64_t i = first; i < first + half; ++i) {
      F32 v[count];
#pragma GCC unroll 8
      for (int j = 0; j < count; ++j) v[j] = load(block + (i + j * half) * kLanes);
      between_vectors<count>(v);
#pragma GCC unroll 8
      for (int j = 0; j < count; ++j) store(block + (i + j * half) * kLanes, v[j]);
    }
  }
}

// Inputs first .. first + block of x [in], zeros behind -> block, rotated
inline void rotate_block(const float* x, int64_t in, int64_t first, float* block, int64_t size) {
  U32 lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<uint32_t>(lane);
  for (int64_t i = 0; i < size; i += 8 * kLanes) {
    F32 v[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      int64_t at = first + i + j * kLanes;
      v[j] = at >= in ? F32{} : load(x + at, in - at);
      U32 signs = rotation_sign(lanes + static_cast<uint32_t>(at));
      v[j] = within_lanes(as_float(as_bits(v[j]) ^ signs));
    }
    between_vectors<8>(v);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) store(block + i + j * kLanes, v[j]);
  }
  int64_t vectors = size / kLanes, half = 8;
  for (; half * 8 <= vectors; half *= 8) sums_apart<8>(block, vectors, half);
  if (half * 4 == vectors) sums_apart<4>(block, vectors, half);
  if (half * 2 == vectors) sums_apart<2>(block, vectors, half);
}

// x [in] -> row [width], rotated; width is a multiple of 128
inline void rotate(const float* x, int64_t in, float* row, int64_t width) {
  int64_t block = rotation_block(width);
  for (int64_t i = 0; i < width; i += block) rotate_block(x, in, i, row + i, block);
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
