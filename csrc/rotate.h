// The rotation of a row (rotation.h) in vectors: the same sums in the same order.
#pragma once

#include "rotation.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Lanes whose number has the bit: partner - own, the others: own + partner.
template <int bit>
inline F32 lane_sums(const F32& own) {
  constexpr int to_sign = bit == 1 ? 31 : bit == 2 ? 30 : bit == 4 ? 29 : 28;
  U32 signs = (lane_numbers() & bit) << to_sign;
  return partners<bit>(own) + as_float(as_bits(own) ^ signs);
}

inline F32 within_lanes(const F32& v) {
  return lane_sums<8>(lane_sums<4>(lane_sums<2>(lane_sums<1>(v))));
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
  const U32 lanes = lane_numbers();
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
