// Products of attention in vectors of float32: every level, keys and values of either type. One of
// the `Products` that attention.h describes.
//
// A lane of a score is a slot and its sum runs along the dimensions; a lane of a partial result is
// a dimension and its sum runs along the slots. Four rows share what is loaded; each has sums of
// its own, in the same order as alone.
#pragma once

#include <type_traits>

#include "attention_slots.h"
#include "attention_softmax.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Vectors of each of `count` rows that are summed at once: as many as registers hold.
#if defined(__AVX512F__)
template <int count>
constexpr int kSideBySide = 2;
#else
template <int count>
constexpr int kSideBySide = count == 4 ? 1 : 2;
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
    constexpr int sides = kSideBySide<count>;
    for (int c = s.first / kLanes; c < s.end / kLanes; c += sides) {
      F32 sums[sides][count] = {};
      for (int64_t i = 0; i < width; ++i) {
#pragma GCC unroll 2
        for (int side = 0; side < sides; ++side) {
          F32 keys = load(s.column[c + side] + i * s.stride);
#pragma GCC unroll 4
          for (int row = 0; row < count; ++row) {
            sums[side][row] += keys * queries[row * width + i];
          }
        }
      }
#pragma GCC unroll 2
      for (int side = 0; side < sides; ++side) {
#pragma GCC unroll 4
        for (int row = 0; row < count; ++row) {
          store(out + (c + side) * kLine + row * kLanes, sums[side][row]);
        }
      }
    }
  }
  static void score(const float* queries, int64_t width, int rows, const Slots<float>& s,
                    float* scores) {
    by_fours(rows, [&](int row, auto count) {
      score_rows<count>(queries + row * width, width, s, scores + row * kLanes);
    });
  }

  template <int count>
  static void combine_rows(const float* weights, int64_t width, const Slots<float>& s, float* out) {
    constexpr int sides = kSideBySide<count>;
    for (int64_t i = 0; i < width; i += sides * kLanes) {
      F32 sums[sides][count] = {};
      const float* values = s.values + s.first * width + i;
      for (int c = s.first / kLanes; c < s.end / kLanes; ++c) {
        const float* own = weights + c * kLine;
        for (int lane = 0; lane < kLanes; ++lane, values += width) {
#pragma GCC unroll 2
          for (int side = 0; side < sides; ++side) {
            F32 value = load(values + side * kLanes);
#pragma GCC unroll 4
            for (int row = 0; row < count; ++row) {
              sums[side][row] += value * own[row * kLanes + lane];
            }
          }
        }
      }
#pragma GCC unroll 2
      for (int side = 0; side < sides; ++side) {
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
    by_fours(rows, [&](int row, auto count) {
      combine_rows<count>(weights + row * kLanes, width, s, partial + row * width);
    });
  }

  // Calls some(first, how many) until all rows had their turn.
  template <class Some>
  static void by_fours(int rows, Some some) {
    int row = 0;
    auto next = [&](auto count) {
      for (; row + count <= rows; row += count) some(row, count);
    };
    next(std::integral_constant<int, 4>());
    next(std::integral_constant<int, 2>());
    next(std::integral_constant<int, 1>());
  }
};

}  // namespace KVEIK_LEVEL
}  // namespace kveik
