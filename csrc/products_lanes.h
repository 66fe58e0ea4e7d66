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

#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 4;
#else
constexpr int kRowsAtOnce = 2;
#endif

// `count` rows x one panel: every lane of the sums is one column, even and odd inputs apart.
template <int count>
inline void row_products(const float* a, int64_t stride, const bf16* b, int64_t in_padded,
                         Sums out) {
  F32 even[count][2] = {}, odd[count][2] = {};
  for (int64_t pair = 0; pair < in_padded / 2; ++pair) {
    // two inputs: pair / 16 picks the tiles of a step, pair % 16 the line within each
    const bf16* line = b + pair / 16 * 2 * kTile + pair % 16 * 32;
    for (int side = 0; side < 2; ++side) {
      U32 both;
      std::memcpy(&both, line + side * kTile, sizeof both);
      F32 first = as_float(both << 16), second = as_float(both & 0xffff0000u);
      for (int i = 0; i < count; ++i) {
        const float* x = a + i * stride + 2 * pair;
        even[i][side] += first * x[0];
        odd[i][side] += second * x[1];
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    store(out + i * kPanel, even[i][0] + odd[i][0]);
    store(out + i * kPanel + kLanes, even[i][1] + odd[i][1]);
  }
}

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t,
                          const Part& part, Sums sums) {
  int64_t stride = weight.in_padded, row = 0;
  const auto* a = static_cast<const float*>(operand) + part.row * stride;
  const bf16* b = static_cast<const bf16*>(weight.data) + panel * kPanel * stride;
  for (; row + kRowsAtOnce <= part.count; row += kRowsAtOnce) {
    row_products<kRowsAtOnce>(a + row * stride, stride, b, stride, sums + row * kPanel);
  }
  for (; row < part.count; ++row) {
    row_products<1>(a + row * stride, stride, b, stride, sums + row * kPanel);
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
