// Products of attention in vectors of float32: every level, keys and values of either type. One of
// the `Products` that attention.h describes.
//
// A lane of a score is a slot and its sum runs along the dimensions; a lane of a partial result is
// a dimension and its sum runs along the slots. Four rows share what is loaded; each has sums of
// its own, in the same order as alone.
#pragma once

#include "attention_slots.h"
#include "attention_softmax.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Vectors of four rows that are summed at once: as many as registers hold.
#if defined(__AVX512F__)
constexpr int kSideBySide = 2;
#else
constexpr int kSideBySide = 1;
#endif

struct VectorProducts {
  using Element = float;

  static constexpr bool fetches = false;
  static void configure_tiles() {}
  static bool reads_in_place(const Arena& arena, bool by_tile) {
    return by_tile && arena.type == KvType::f32;
  }

  template <int count>
  static void score_rows(const float* queries, int64_t width, const Slots<float>& s, float* out) {
    for (int c = s.first / kLanes; c < s.end / kLanes; c += kSideBySide) {
      F32 sums[kSideBySide][count] = {};
      for (int64_t i = 0; i < width; ++i) {
#pragma GCC unroll 2
        for (int side = 0; side < kSideBySide; ++side) {
          F32 keys = load(s.column[c + side] + i * s.stride);
#pragma GCC unroll 4
          for (int row = 0; row < count; ++row) {
            sums[side][row] += keys * queries[row * width + i];
          }
        }
      }
#pragma GCC unroll 2
      for (int side = 0; side < kSideBySide; ++side) {
#pragma GCC unroll 4
        for (int row = 0; row < count; ++row) {
          store(out + (c + side) * kLine + row * kLanes, sums[side][row]);
        }
      }
    }
  }
  static void score(const float* queries, int64_t width, int rows, const Slots<float>& s,
                    float* scores) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) {
      score_rows<4>(queries + row * width, width, s, scores + row * kLanes);
    }
    for (; row < rows; ++row) {
      score_rows<1>(queries + row * width, width, s, scores + row * kLanes);
    }
  }

  template <int count>
  static void combine_rows(const float* weights, int64_t width, const Slots<float>& s, float* out) {
    for (int64_t i = 0; i < width; i += kSideBySide * kLanes) {
      F32 sums[kSideBySide][count] = {};
      for (int slot = s.first; slot < s.end; ++slot) {
        const float* own = weights + slot / kLanes * kLine + slot % kLanes;
#pragma GCC unroll 2
        for (int side = 0; side < kSideBySide; ++side) {
          F32 values = load(s.values + slot * width + i + side * kLanes);
#pragma GCC unroll 4
          for (int row = 0; row < count; ++row) sums[side][row] += values * own[row * kLanes];
        }
      }
#pragma GCC unroll 2
      for (int side = 0; side < kSideBySide; ++side) {
#pragma GCC unroll 4
        for (int row = 0; row < count; ++row) {
          store(out + row * width + i + side * kLanes, sums[side][row]);
        }
      }
    }
  }
  template <class Weigh>
  static void combine(const float* weights, int64_t width, int rows, const Slots<float>& s,
                      float* partial, Weigh weigh) {
    for (int step = s.first / kStep; step < s.end / kStep; ++step) weigh(step);
    int row = 0;
    for (; row + 4 <= rows; row += 4) {
      combine_rows<4>(weights + row * kLanes, width, s, partial + row * width);
    }
    for (; row < rows; ++row) {
      combine_rows<1>(weights + row * kLanes, width, s, partial + row * width);
    }
  }
};

}  // namespace KVEIK_LEVEL
}  // namespace kveik
