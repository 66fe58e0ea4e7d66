// Kernel family: int4 weights, unpacked to bytes for the products of int8, or a few rows straight
// from the nibbles.
//
// Unpacking costs what it costs for one row as for sixteen, and for one row it takes longer than
// the memory needs. So a few rows multiply nibbles as they lie, as unsigned bytes of 0 ..
// 15, and take `zero * sum of x` back. Integers inside a group are exact and the sums of groups are
// those of linear_int.h, so the bits are the same.
#pragma once

#include "operand_int.h"

namespace kveik {
namespace KVEIK_LEVEL {

typedef uint8_t Bytes __attribute__((vector_size(64)));

// ---- to bytes ---------------------------------------------------------------------------------

// zeros of 16 columns of one group, each four times: what is subtracted from a row of a tile
inline Bytes zero_row(const Linear& weight, int64_t sixteen, int64_t input) {
  Bytes row = Bytes{} + 8;
  if (weight.zeros == nullptr) return row;
  int64_t groups = weight.in_padded / weight.group;
  const uint8_t* zeros = weight.zeros + (sixteen * groups + input / weight.group) * kLanes;
  for (int lane = 0; lane < 64; ++lane) row[lane] = zeros[lane / 4];
  return row;
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
        Bytes packed;
        std::memcpy(&packed, from + i, sizeof packed);
        Bytes low = (packed & 15) - first_zero;
        Bytes high = (packed >> 4) - second_zero;
        std::memcpy(first + i, &low, sizeof low);
        std::memcpy(second + i, &high, sizeof high);
      }
    }
  }
}

// ---- a few rows -------------------------------------------------------------------------------

#if KVEIK_VNNI

constexpr int64_t kFewLines = 4;        // more multiply faster on tiles, or as fast
constexpr int64_t kPackedInputs = 128;  // of one tile of nibbles
constexpr int64_t kAheadBytes = 8192;   // that are fetched before they are multiplied

inline bool from_nibbles(const Linear& weight, int64_t lines) {
  return weight.type == WeightType::int4 && lines <= kFewLines &&
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

// Sums += 128 inputs of the first `lines` lines, from step `step` on, x one tile.
template <int lines, int P>
inline void add_tile(const uint8_t* tile, const IntOperand<P>& operand, int64_t step, I32* low_sums,
                     I32* high_sums) {
  const int8_t *low_x[lines], *high_x[lines];
  for (int i = 0; i < lines; ++i) {
    low_x[i] = operand.line(0, i, step);
    high_x[i] = operand.line(0, i, step + 1);
  }
  const __m512i nibbles = _mm512_set1_epi8(15);
  for (int64_t line = 0; line < 16; ++line) {
    const uint8_t* from = tile + line * 64;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes, _MM_HINT_T0);
    __m512i packed = _mm512_loadu_si512(from);
    __m512i low = _mm512_and_si512(packed, nibbles);
    __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibbles);
    for (int i = 0; i < lines; ++i) {
      low_sums[i] =
          (I32)_mm512_dpbusd_epi32((__m512i)low_sums[i], low, four_inputs(low_x[i] + line * 4));
      high_sums[i] =
          (I32)_mm512_dpbusd_epi32((__m512i)high_sums[i], high, four_inputs(high_x[i] + line * 4));
    }
  }
}

// The first `count` rows x one panel, without the scales of rows.
template <int count, int P>
inline void nibble_sums(const Linear& weight, int64_t panel, const IntOperand<P>& operand,
                        F32 (*totals)[2]) {
  constexpr int lines = count * P;
  const auto* data = static_cast<const uint8_t*>(weight.data);
  int64_t groups = weight.in_padded / weight.group;
  for (int64_t group = 0; group < groups; ++group) {
    // low and high nibbles apart, so that a sum need not wait for the one before
    I32 low_sums[2][lines] = {}, high_sums[2][lines] = {};
    int64_t begin = group * weight.group, end = begin + weight.group;
    for (int64_t k = begin; k < end; k += kPackedInputs) {
      const uint8_t* from = data + (panel * weight.in_padded + k) * kPanel / 2;
      for (int tile = 0; tile < 2; ++tile, from += kTileInt) {
        I32 zeros = zeros_of(weight, panel * 2 + tile, group);
        for (int i = 0; i < lines; ++i) {
          low_sums[tile][i] -= zeros * operand.sum_of(0, i, k, k + kPackedInputs);
        }
        add_tile<lines>(from, operand, k / kStepInt, low_sums[tile], high_sums[tile]);
      }
    }
    for (int tile = 0; tile < 2; ++tile) {
      F32 scale = group_scale(weight, panel * kPanel + tile * kLanes, group);
      I32 sums[lines];
      for (int i = 0; i < lines; ++i) sums[i] = low_sums[tile][i] + high_sums[tile][i];
      for (int row = 0; row < count; ++row) {
        F32& total = totals[row][tile];
        total = fused(whole_value<P>(sums + row * P), scale, group == 0 ? F32{} : total);
      }
    }
  }
}

// All rows of the operand (at most kFewLines lines) x one panel: totals [rows][2].
template <int P>
inline void nibble_panel(const Linear& weight, int64_t panel, const IntOperand<P>& operand,
                         F32 (*totals)[2]) {
  if (operand.rows == 1) return nibble_sums<1>(weight, panel, operand, totals);
  if (operand.rows == 2) return nibble_sums<2>(weight, panel, operand, totals);
  if constexpr (P == 1) {
    if (operand.rows == 3) return nibble_sums<3>(weight, panel, operand, totals);
    nibble_sums<4>(weight, panel, operand, totals);
  }
}

#else

constexpr int64_t kFewLines = 1;

inline bool from_nibbles(const Linear&, int64_t) { return false; }
template <int P>
inline void nibble_panel(const Linear&, int64_t, const IntOperand<P>&, F32 (*)[2]) {}

#endif

}  // namespace KVEIK_LEVEL
}  // namespace kveik
