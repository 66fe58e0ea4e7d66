// int4 weights: products straight from the nibbles, or unpacked to bytes for the products of int8.
//
// With VNNI, nibbles are multiplied as they lie, as unsigned bytes of 0 .. 15, and `zero * sum of
// x` is taken back: two inputs of a byte are parted while products run. Tiles want bytes, so that
// level amx does so for a few rows only, for which unpacking would take longer than the memory
// needs. Integers inside a group are exact, so the bits are the same.
#pragma once

#include "products_int.h"

namespace kveik {
namespace KVEIK_LEVEL {

using Bytes = Lanes<uint8_t>;

constexpr int64_t kPackedInputs = 128;   // of one tile of nibbles
constexpr int kNibblePass = 8;           // lines of one pass
constexpr int64_t kNibblesAhead = 8192;  // bytes that a few rows fetch before they are multiplied

// ---- to bytes ---------------------------------------------------------------------------------

// zeros of 16 columns of one group, each four times: what is subtracted from a row of a tile
inline Bytes zero_row(const Linear& weight, int64_t sixteen, int64_t input) {
  if (weight.zeros == nullptr) return Bytes{} + 8;
  int64_t groups = weight.in_padded / weight.group;
  const uint8_t* zeros = weight.zeros + (sixteen * groups + input / weight.group) * kLanes;
  uint8_t row[64];
  for (int lane = 0; lane < 64; ++lane) row[lane] = zeros[lane / 4];
  return load_lanes<uint8_t>(row);
}

// Inputs begin .. end (multiples of 128, where the padding ends at the latest) of one panel of int4
// -> int8 tiles [steps][2 tiles][1024].
inline void unpack(const Linear& weight, int64_t panel, int64_t begin, int64_t end, int8_t* tiles) {
  const uint8_t* from =
      static_cast<const uint8_t*>(weight.data) + (panel * weight.in_padded + begin) * kPanel / 2;
  for (int64_t k = begin; k < end; k += 2 * kStepInt) {
    for (int64_t tile = 0; tile < 2; ++tile, from += kTileInt) {
      Bytes first_zero = zero_row(weight, panel * 2 + tile, k);
      Bytes second_zero = zero_row(weight, panel * 2 + tile, k + kStepInt);
      int8_t* first = tiles + (k - begin) * kPanel + tile * kTileInt;
      int8_t* second = first + 2 * kTileInt;
      for (int64_t i = 0; i < kTileInt; i += 64) {
        Bytes packed = load_lanes<uint8_t>(from + i);
        Bytes low = (packed & 15) - first_zero;
        Bytes high = (packed >> 4) - second_zero;
        std::memcpy(first + i, &low, sizeof low);
        std::memcpy(second + i, &high, sizeof high);
      }
    }
  }
}

// ---- straight from nibbles --------------------------------------------------------------------

#if KVEIK_VNNI

#if KVEIK_AMX
constexpr int64_t kNibbleLines = 4;  // more multiply faster on tiles
#else
constexpr int64_t kNibbleLines = INT64_MAX;
#endif

inline bool from_nibbles(const Linear& weight, int64_t lines) {
  return weight.type == WeightType::int4 && lines <= kNibbleLines &&
         weight.group % kPackedInputs == 0;
}

inline __m512i four_inputs(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

// What is subtracted from the nibbles of 16 columns of one group.
inline I32 zeros_of(const Linear& weight, int64_t sixteen, int64_t group) {
  I32 zeros = I32{} + 8;
  if (weight.zeros == nullptr) return zeros;
  const uint8_t* from =
      weight.zeros + (sixteen * (weight.in_padded / weight.group) + group) * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) zeros[lane] = from[lane];
  return zeros;
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

template <int count, int P>
inline void nibble_rows(const IntOperand<P>& operand, int64_t first, int64_t row, int64_t rows,
                        const uint8_t* nibbles, const Group& group, RowSums<P>& sums,
                        Ahead& ahead) {
  for (; row + count <= rows; row += count) {
    nibble_products<count>(operand, first, row, nibbles, group, sums, ahead);
  }
  if constexpr (count > 1) {
    nibble_rows<count / 2>(operand, first, row, rows, nibbles, group, sums, ahead);
  }
}

// The first `rows` rows (at most 32 lines) from `first` on x one group of the panel.
template <int P>
inline void products_from_nibbles(const IntOperand<P>& operand, int64_t first, int64_t rows,
                                  const Group& group, RowSums<P>& sums, Ahead& ahead) {
  const auto* nibbles = static_cast<const uint8_t*>(group.weight.data) +
                        (group.panel * group.weight.in_padded + group.begin()) * kPanel / 2;
  nibble_rows<kNibblePass / P>(operand, first, 0, rows, nibbles, group, sums, ahead);
}

#else

inline bool from_nibbles(const Linear&, int64_t) { return false; }
template <int P>
inline void products_from_nibbles(const IntOperand<P>&, int64_t, int64_t, const Group&, RowSums<P>&,
                                  Ahead&) {}

#endif

}  // namespace KVEIK_LEVEL
}  // namespace kveik
