// Products straight from nibbles, two inputs of a column at a time (VPMADDUBSW): level avx2.
//
// A nibble times a signed byte is at most 15 * 128, so sixteen bits hold sixteen of them; the sums
// of two at a time become 32 bits after every four lines of a tile.
#pragma once

#include "nibbles.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kNibblePass = 4;  // lines of one pass
constexpr int64_t kNibbleLines = INT64_MAX;
constexpr int kEights = 4;  // of the columns of a panel: a register of sums each

// The bytes of `lines` rows: inputs 0 .. 63 of a tile, 64 more of each are kStepInt further.
template <int lines>
struct ByteRows {
  const int8_t* at[lines];
};

inline __m256i four_inputs(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

// Four lines of one tile x the rows, for `eights` times eight columns.
template <int lines, int eights>
inline void four_lines(const ByteRows<lines>& x, int64_t input, const uint8_t* nibbles,
                       __m256i (&sums)[eights][lines]) {
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i pairs[eights][lines] = {};
#pragma GCC unroll 1  // else GCC makes all products first and keeps them in memory
  for (int line = 0; line < 4; ++line) {
#pragma GCC unroll 4
    for (int eight = 0; eight < eights; ++eight) {
      const uint8_t* at = nibbles + eight / 2 * kTileInt + eight % 2 * 32 + line * 64;
      __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
      __m256i low = _mm256_and_si256(packed, mask);
      __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
#pragma GCC unroll 4
      for (int i = 0; i < lines; ++i) {
        const int8_t* own = x.at[i] + input + line * 4;
        __m256i first = _mm256_maddubs_epi16(low, four_inputs(own));
        __m256i second = _mm256_maddubs_epi16(high, four_inputs(own + kStepInt));
        pairs[eight][i] = _mm256_add_epi16(_mm256_add_epi16(pairs[eight][i], first), second);
      }
    }
  }
#pragma GCC unroll 4
  for (int eight = 0; eight < eights; ++eight) {
#pragma GCC unroll 4
    for (int i = 0; i < lines; ++i) {
      __m256i wide = _mm256_madd_epi16(pairs[eight][i], ones);
      sums[eight][i] = _mm256_add_epi32(sums[eight][i], wide);
    }
  }
}

// `count` rows from row `row` on x the panel. nibbles: those of the group.
template <int count, int P>
inline void nibble_products(const IntOperand<P>& operand, int64_t first, int64_t row,
                            const uint8_t* nibbles, const Group& group, RowSums<P>& totals,
                            Ahead& ahead) {
  constexpr int lines = count * P;
  constexpr int together = lines < kNibblePass ? 2 : 1;  // whole lines of a tile for few rows
  int64_t begin = group.begin(), inputs = group.end() - begin;
  ByteRows<lines> x;
  int32_t taken[lines];
  for (int i = 0; i < lines; ++i) {
    x.at[i] = operand.byte_line(first + row, i) + begin;
    taken[i] = operand.sum_of(first + row, i, begin, begin + inputs);
  }
  I32 sums[2][lines];
  Ahead own = ahead;
  for (int eight = 0; eight < kEights; eight += together) {
    __m256i part[together][lines] = {};
    const uint8_t* from = nibbles + eight / 2 * kTileInt + eight % 2 * 32;
    for (int64_t k = 0; k < inputs; k += kPackedInputs, from += 2 * kTileInt) {
      for (int64_t line = 0; line < 16; line += 4) {
        if (lines < kNibblePass) {  // memory sets the pace: beside every load
#pragma GCC unroll 8
          for (int i = line; i < line + 4; ++i) {
            __builtin_prefetch(from + i * 64 + kNibblesAhead, 0, 2);
          }
        } else if (eight == 0) {
          own.fetch();
        }
        four_lines<lines, together>(x, k + line * 4, from + line * 64, part);
      }
    }
    for (int i = 0; i < together; ++i) {
      int at = eight + i;
      for (int line = 0; line < lines; ++line) {
        sums[at / 2][line].part[at % 2] = (I32::Part)part[i][line];
      }
    }
  }
  ahead = own;
  for (int tile = 0; tile < 2; ++tile) {
    F32 scale = group.scale(tile * kLanes);
    if (group.weight.zeros == nullptr) {
      for (int i = 0; i < lines; ++i) sums[tile][i] = sums[tile][i] - kMiddle * taken[i];
    } else {
      I32 zeros = zeros_of(group.weight, group.panel * 2 + tile, group.number);
      for (int i = 0; i < lines; ++i) sums[tile][i] = sums[tile][i] - zeros * taken[i];
    }
    for (int i = 0; i < count; ++i) {
      group.add(totals, row + i, tile * kLanes, scale, sums[tile] + i * P);
    }
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
