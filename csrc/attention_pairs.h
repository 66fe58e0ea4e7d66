// Products of attention in pairs of bfloat16 (VDPBF16PS): level avx512_bf16 with keys and values in
// bfloat16. One of the `Products` that attention.h describes.
//
// A lane of a score is a slot and its sum runs along pairs of dimensions; a lane of a partial
// result is a dimension and its sum runs along pairs of slots. Eight rows share what is loaded;
// each has sums of its own, in the same order as alone.
#pragma once

#include "attention_slots.h"
#include "attention_softmax.h"

namespace kveik {
namespace KVEIK_LEVEL {

struct PairProducts {
  using Element = bf16;

  static constexpr bool fetches = true;
  static void configure_tiles() {}
  static bool reads_in_place(const Arena&, bool by_tile) { return by_tile; }

  static void fetch(const Coming& coming, int column, int64_t line) {
    __builtin_prefetch(coming.at[column] + line * coming.stride, 0, 2);
  }

  template <int count, bool fetching>
  static void score_rows(const bf16* queries, int64_t width, const Slots<bf16>& s, float* out) {
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      F32 sums[2][count] = {};
      const bf16 *left = s.column[c], *right = s.column[c + 1];
      for (int64_t i = 0; i < width; i += 2) {
        if constexpr (fetching) {
          fetch(s.coming_values, c, i / 2);
          fetch(s.coming_values, c + 1, i / 2);
        }
        Pairs keys[2] = {Pairs(left + i * s.stride), Pairs(right + i * s.stride)};
#pragma GCC unroll 8
        for (int row = 0; row < count; ++row) {
          Pairs query = Pairs::all(queries + row * width + i);
          sums[0][row] = add_pairs(sums[0][row], keys[0], query);
          sums[1][row] = add_pairs(sums[1][row], keys[1], query);
        }
      }
#pragma GCC unroll 8
      for (int row = 0; row < count; ++row) {
        store(out + c * kLine + row * kLanes, sums[0][row]);
        store(out + (c + 1) * kLine + row * kLanes, sums[1][row]);
      }
    }
  }
  static void score(const bf16* queries, int64_t width, int rows, const Slots<bf16>& s,
                    float* scores) {
    by_eights(rows, s.fetching, [&](int row, auto count, auto fetching) {
      score_rows<count, fetching>(queries + row * width, width, s, scores + row * kLanes);
    });
  }

  // weights: where a step of 32 slots has those of its first row
  template <int count, bool fetching>
  static void combine_rows(const float* weights, int64_t width, const Slots<bf16>& s, float* out) {
    for (int64_t i = 0; i < width; i += 2 * kLanes) {
      F32 sums[2][count] = {};
      for (int slot = s.first; slot < s.end; slot += 2) {
        if constexpr (fetching) {
          int64_t line = i / 2 + slot % kLanes;
          fetch(s.coming_keys, slot / kLanes, line);
          fetch(s.coming_keys, slot / kLanes, line + 1);
        }
        const bf16* values = s.values + slot * width + 2 * i;
        Pairs both[2] = {Pairs(values), Pairs(values + 2 * kLanes)};
        const float* own = weights + slot / kStep * 2 * kLine;
#pragma GCC unroll 8
        for (int row = 0; row < count; ++row) {
          const auto* line = reinterpret_cast<const bf16*>(own + row * kLanes);
          Pairs weight = Pairs::all(line + slot % kStep);
          sums[0][row] = add_pairs(sums[0][row], both[0], weight);
          sums[1][row] = add_pairs(sums[1][row], both[1], weight);
        }
      }
#pragma GCC unroll 8
      for (int row = 0; row < count; ++row) {
        store(out + row * width + i, sums[0][row]);
        store(out + row * width + i + kLanes, sums[1][row]);
      }
    }
  }
  template <class Weigh>
  static void combine(const float* weights, int64_t width, int rows, const Slots<bf16>& s,
                      float* partial, Weigh weigh) {
    for (int step = s.first / kStep; step < s.end / kStep; ++step) weigh(step);
    by_eights(rows, s.fetching, [&](int row, auto count, auto fetching) {
      combine_rows<count, fetching>(weights + row * kLanes, width, s, partial + row * width);
    });
  }

  // Calls rows(first, how many, whether they fetch) until all had their turn.
  template <class Rows>
  static void by_eights(int count, bool fetching, Rows rows) {
    int row = 0;
    auto next = [&](auto now) {
      for (; row + now <= count; row += now) {
        if (fetching && row == 0) {
          rows(row, now, std::true_type());
        } else {
          rows(row, now, std::false_type());
        }
      }
    };
    next(std::integral_constant<int, 8>());
    next(std::integral_constant<int, 4>());
    next(std::integral_constant<int, 1>());
  }
};

}  // namespace KVEIK_LEVEL
}  // namespace kveik
