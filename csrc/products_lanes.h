// bfloat16 products in lanes of float32: levels without instructions for bfloat16.
#pragma once

#include "operand.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int64_t kPassRows = 64;
constexpr int64_t kPassInputs = int64_t{1} << 40;
constexpr int64_t kPassPanels = 4;
constexpr int64_t kPartPanels = 1;

inline void configure_rows(int64_t) {}

// Sixteen columns of four rows fit in sixteen registers of half the width, beside what they are
// multiplied with.
#if defined(__AVX512F__)
constexpr int kSidesAtOnce = 2;
#else
constexpr int kSidesAtOnce = 1;
#endif
constexpr int kRowsAtOnce = 4;

// What the first rows of a panel fetch: they read it from memory.
constexpr int64_t kAhead = 2048;  // bfloat16 values

// `count` rows x `sides` times sixteen columns: a lane of a sum is one column. Tile after tile, so
// that one row reads memory in the order in which it lies.
template <int count, int sides, bool fetching>
inline void row_products(const float* a, int64_t stride, const bf16* b, int64_t in_padded,
                         Sums out) {
  F32 sums[count][sides] = {};
  for (int64_t step = 0; step < in_padded / kStepBf16; ++step, b += 2 * kTile, a += kStepBf16) {
#pragma GCC unroll 2
    for (int side = 0; side < sides; ++side) {
#pragma GCC unroll 1
      for (int64_t line = 0; line < kStepBf16 / 2; ++line) {
        const bf16* from = b + side * kTile + line * 32;
        if (fetching) __builtin_prefetch(from + kAhead);
        U32 both = load_lanes<uint32_t>(from);
        F32 first = as_float(both << 16), second = as_float(both & 0xffff0000u);
#pragma GCC unroll 4
        for (int i = 0; i < count; ++i) {
          sums[i][side] += first * a[i * stride + 2 * line];
          sums[i][side] += second * a[i * stride + 2 * line + 1];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 2
    for (int side = 0; side < sides; ++side) store(out + i * kPanel + side * kLanes, sums[i][side]);
  }
}

// Rows row .. row + count x the panel.
template <int count, bool fetching>
inline void some_products(const float* a, int64_t stride, const bf16* b, Sums out) {
  constexpr int sides = count == 1 ? 2 : kSidesAtOnce;
  for (int side = 0; side < 2; side += sides) {
    row_products<count, sides, fetching>(a, stride, b + side * kTile, stride, out + side * kLanes);
  }
}

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t,
                          const Part& part, Sums sums) {
  int64_t stride = weight.in_padded, row = 0;
  const auto* a = static_cast<const float*>(operand) + part.row * stride;
  const bf16* b = static_cast<const bf16*>(weight.data) + panel * kPanel * stride;
  auto multiply = [&](auto count) {
    for (; row + count <= part.count; row += count) {
      if (row == 0) {
        some_products<count, true>(a, stride, b, sums);
      } else {
        some_products<count, false>(a + row * stride, stride, b, sums + row * kPanel);
      }
    }
  };
  multiply(std::integral_constant<int, kRowsAtOnce>());
  multiply(std::integral_constant<int, 2>());
  multiply(std::integral_constant<int, 1>());
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
