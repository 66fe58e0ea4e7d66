// bfloat16 products of pairs of inputs (VDPBF16PS): level avx512_bf16 (Zen 4, Cooper Lake and
// later).
#pragma once

#include "operand.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Rows that one pass over a panel multiplies: their operand stays in the second-level cache, while
// panel after panel goes by.
constexpr int64_t kPassRows = 128;
constexpr int64_t kPassInputs = 2048;
// Panels of a group, and of one whose sums are kept while inputs are walked in several parts.
constexpr int64_t kPassPanels = 16;
constexpr int64_t kPartPanels = 16;

// Inputs of a panel that stay in the first-level cache while the rows of a pass go by.
constexpr int64_t kNearInputs = 256;

inline void configure_rows(int64_t) {}

// `count` rows x one panel, over `steps` steps of 32 inputs. A lane of a sum is one column. a: the
// rows' part of a block of `lines` rows. next: fetched meanwhile, as long as what b has here.
template <int count, bool fetch>
inline void pair_products(const bf16* a, int64_t lines, const bf16* b, int64_t steps, bool first,
                          Sums out, const char* next) {
  F32 sums[count][2];
  for (int row = 0; row < count; ++row) {
    for (int side = 0; side < 2; ++side) {
      sums[row][side] = first ? F32{} : load(out + row * kPanel + side * kLanes);
    }
  }
  for (int64_t step = 0; step < steps; ++step, a += lines * kStepBf16, b += 2 * kTile) {
    for (int64_t pair = 0; pair < kStepBf16 / 2; ++pair) {
      Pairs left(b + pair * 32), right(b + kTile + pair * 32);
      if constexpr (fetch) {
        _mm_prefetch(next, _MM_HINT_T0);
        _mm_prefetch(next + 64, _MM_HINT_T0);
        next += 128;
      }
      for (int row = 0; row < count; ++row) {
        Pairs x = Pairs::all(a + row * kStepBf16 + 2 * pair);
        sums[row][0] = add_pairs(sums[row][0], left, x);
        sums[row][1] = add_pairs(sums[row][1], right, x);
      }
    }
  }
  for (int row = 0; row < count; ++row) {
    store(out + row * kPanel, sums[row][0]);
    store(out + row * kPanel + kLanes, sums[row][1]);
  }
}

// The same for up to 16 rows of one block; the last of them fetch what is next, if that is given.
inline void block_products(const bf16* a, int64_t lines, int64_t rows, const bf16* b, int64_t steps,
                           bool first, Sums sums, const char* next) {
  int64_t row = 0;
  auto multiply = [&](auto count) {
    for (; row + count <= rows; row += count) {
      const bf16* own = a + row * kStepBf16;
      Sums to = sums + row * kPanel;
      if (next != nullptr && row + count == rows) {
        pair_products<count, true>(own, lines, b, steps, first, to, next);
      } else {
        pair_products<count, false>(own, lines, b, steps, first, to, nullptr);
      }
    }
  };
  multiply(std::integral_constant<int, 8>());
  multiply(std::integral_constant<int, 4>());
  multiply(std::integral_constant<int, 2>());
  multiply(std::integral_constant<int, 1>());
}

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t rows,
                          const Part& part, Sums sums) {
  int64_t lines = rows < 16 ? rows : 16, block = 16 * weight.in_padded;
  const auto* data = static_cast<const bf16*>(weight.data) + panel * kPanel * weight.in_padded;
  int64_t near = part.count <= 8 ? part.to - part.from : kNearInputs;
  for (int64_t from = part.from; from < part.to; from += near) {
    const auto* a = static_cast<const bf16*>(operand) + part.row / 16 * block + from * lines;
    int64_t steps = (part.to - from < near ? part.to - from : near) / kStepBf16;
    const bf16* b = data + from * kPanel;
    const auto* following = reinterpret_cast<const char*>(b + steps * 2 * kTile);
    for (int64_t row = 0; row < part.count; row += 16, a += block) {
      int64_t left = part.count - row, now = left < 16 ? left : 16;
      const char* next = part.count > 8 && left <= 16 ? following : nullptr;
      block_products(a, lines, now, b, steps, from == 0, sums + row * kPanel, next);
    }
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
