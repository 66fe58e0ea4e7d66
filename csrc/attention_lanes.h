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

struct VectorProducts {
  using Element = float;

  static constexpr bool fetches = false;
  static void configure_tiles() {}
  static bool reads_in_place(const Arena& arena, bool by_tile) {
    return by_tile && arena.type == KvType::f32;
  }

  template <int count>
  static void score_rows(const float* queries, int64_t width, const Slots<float>& s, float* out) {
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      F32 sums[2][count] = {};
      const float *left = s.column[c], *right = s.column[c + 1];
      for (int64_t i = 0; i < width; ++i) {
        F32 keys[2] = {load(left + i * s.stride), load(right + i * s.stride)};
        for (int row = 0; row < count; ++row) {
          sums[0][row] += keys[0] * queries[row * width + i];
          sums[1][row] += keys[1] * queries[row * width + i];
        }
      }
      for (int row = 0; row < count; ++row) {
        store(out + c * kLine + row * kLanes, sums[0][row]);
        store(out + (c + 1) * kLine + row * kLanes, sums[1][row]);
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
    for (int64_t i = 0; i < width; i += 2 * kLanes) {
      F32 sums[2][count] = {};
      for (int slot = s.first; slot < s.end; ++slot) {
        const float* values = s.values + slot * width + i;
        F32 both[2] = {load(values), load(values + kLanes)};
        const float* own = weights + slot / kLanes * kLine + slot % kLanes;
        for (int row = 0; row < count; ++row) {
          sums[0][row] += both[0] * own[row * kLanes];
          sums[1][row] += both[1] * own[row * kLanes];
        }
      }
      for (int row = 0; row < count; ++row) {
        store(out + row * width + i, sums[0][row]);
        store(out + row * width + i + kLanes, sums[1][row]);
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
