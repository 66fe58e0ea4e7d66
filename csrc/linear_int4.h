// int4 weights: products straight from the nibbles, or unpacked to bytes for the products of int8.
//
// Nibbles are multiplied as they lie, as unsigned bytes of 0 .. 15, and `zero * sum of x` is taken
// back: two inputs of a byte are parted while products run. How is the level's:
//
//   nibbles_fours.h   with VNNI: four inputs at a time. Tiles want bytes, so that level amx does so
//                     for a few rows only, for which unpacking would take longer than the memory
//                     needs
//   nibbles_pairs.h   level avx2: two inputs at a time
//
// The others unpack. Integers inside a group are exact, so the bits are the same.
#pragma once

#include "products_int.h"
#if KVEIK_VNNI
#include "nibbles_fours.h"
#elif KVEIK_NIBBLE_PAIRS
#include "nibbles_pairs.h"
#endif

namespace kveik {
namespace KVEIK_LEVEL {

using Bytes = Lanes<uint8_t>;

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

#if KVEIK_VNNI || KVEIK_NIBBLE_PAIRS

inline bool from_nibbles(const Linear& weight, int64_t lines) {
  return weight.type == WeightType::int4 && lines <= kNibbleLines &&
         weight.group % kPackedInputs == 0;
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

constexpr int kNibblePass = 1;
constexpr int64_t kNibblesAhead = 0;

inline bool from_nibbles(const Linear&, int64_t) { return false; }
template <int P>
inline void products_from_nibbles(const IntOperand<P>&, int64_t, int64_t, const Group&, RowSums<P>&,
                                  Ahead&) {}

#endif

}  // namespace KVEIK_LEVEL
}  // namespace kveik
