// Products straight from nibbles, four inputs of a column at a time (VNNI).
#pragma once

#include "nibbles.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kNibblePass = 8;  // lines of one pass

#if KVEIK_AMX
constexpr int64_t kNibbleLines = 4;  // more multiply faster on tiles
#else
constexpr int64_t kNibbleLines = INT64_MAX;
#endif

inline __m512i four_inputs(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

// `count` rows from row `row` on x the panel. nibbles: those of the group.
template <int count, int P>
inline void nibble_products(const IntOperand<P>& operand, int64_t first, int64_t row,
                            const uint8_t* nibbles, const Group& group, RowSums<P>& totals,
                            Ahead& ahead) {
  constexpr int lines = count * P;
  constexpr bool few = lines <= 4;     // so memory sets the pace: a fetch beside every load is best
  constexpr int halves = few ? 2 : 1;  // few sums: one need not wait for the one before
  int64_t begin = group.begin(), end = group.end();
  const int8_t *low_x[lines], *high_x[lines];
  I32 sums[2][halves][lines] = {};
  I32 zeros[2] = {zeros_of(group.weight, group.panel * 2, group.number),
                  zeros_of(group.weight, group.panel * 2 + 1, group.number)};
#pragma GCC unroll 8
  for (int i = 0; i < lines; ++i) {
    low_x[i] = operand.line(first + row, i, begin / kStepInt);
    high_x[i] = operand.line(first + row, i, begin / kStepInt + 1);
    int32_t taken = operand.sum_of(first + row, i, begin, end);
    sums[0][0][i] = -zeros[0] * taken;
    sums[1][0][i] = -zeros[1] * taken;
  }
  const __m512i mask = _mm512_set1_epi8(15);
  Ahead own = ahead;  // a copy, so that sums stay in registers
  for (int64_t k = 0; k < end - begin; k += kPackedInputs, nibbles += 2 * kTileInt) {
    for (int64_t line = 0; line < 16; ++line) {
      if (!few && line % 4 == 0) own.fetch();
#pragma GCC unroll 2
      for (int tile = 0; tile < 2; ++tile) {
        const uint8_t* at = nibbles + tile * kTileInt + line * 64;
        if (few) __builtin_prefetch(at + kNibblesAhead, 0, 2);
        __m512i packed = _mm512_loadu_si512(at);
        __m512i low = _mm512_and_si512(packed, mask);
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
#pragma GCC unroll 8
        for (int i = 0; i < lines; ++i) {
          I32& sum = sums[tile][0][i];
          sum = (I32)_mm512_dpbusd_epi32((__m512i)sum, low, four_inputs(low_x[i] + line * 4));
        }
#pragma GCC unroll 8
        for (int i = 0; i < lines; ++i) {
          I32& sum = sums[tile][halves - 1][i];
          sum = (I32)_mm512_dpbusd_epi32((__m512i)sum, high, four_inputs(high_x[i] + line * 4));
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < lines; ++i) {
      low_x[i] = operand.next_steps(low_x[i], first + row + i / P);
      high_x[i] = operand.next_steps(high_x[i], first + row + i / P);
    }
  }
  ahead = own;
#pragma GCC unroll 2
  for (int tile = 0; tile < 2; ++tile) {
    if constexpr (halves == 2) {
      for (int i = 0; i < lines; ++i) sums[tile][0][i] += sums[tile][1][i];
    }
    F32 scale = group.scale(tile * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      group.add(totals, row + i, tile * kLanes, scale, sums[tile][0] + i * P);
    }
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
