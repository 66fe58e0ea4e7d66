// bfloat16 products of pairs of inputs (VDPBF16PS): level avx512_bf16 (Zen 4, Cooper Lake and
// later).
#pragma once

#include <bit>

#include "operand.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Rows that one pass over a panel multiplies: their operand stays in the second-level cache, while
// panel after panel goes by.
constexpr int64_t kPassRows = 256;
constexpr int64_t kPassInputs = 2048;
// Panels of a group, and of one whose sums are kept while inputs are walked in several parts.
constexpr int64_t kPassPanels = 16;
constexpr int64_t kPartPanels = 16;

// Inputs of a panel that stay in the first-level cache while the rows of a pass go by.
// Of up to 16 rows fewer, because that is how far ahead the next ones are fetched: from memory.
constexpr int64_t kNearInputs = 256;
constexpr int64_t kNearOfFew = 128;
constexpr int64_t kNearOfLeast = 64;  // of less than kBlockRows
constexpr int kBlockRows = 8;         // that are multiplied at once

inline void configure_rows(int64_t) {}

// `count` rows x one panel, over `steps` steps of 32 inputs. A lane of a sum is one column. a: the
// rows' part of a block of `lines` rows.
template <int count>
inline void pair_products(const bf16* a, int64_t lines, const bf16* b, int64_t steps, bool first,
                          Sums out, Ahead& ahead) {
  F32 sums[2 * count];  // of the left and the right side of each row
#pragma GCC unroll 16
  for (int i = 0; i < 2 * count; ++i) sums[i] = first ? F32{} : load(out + i * kLanes);
  Ahead own = ahead;  // a copy, so that sums stay in registers
  for (int64_t step = 0; step < steps; ++step, a += lines * kStepBf16, b += 2 * kTile) {
    for (int64_t pair = 0; pair < kStepBf16 / 2; ++pair) {
      if (count < kBlockRows || pair % 4 == 0) own.fetch();
      Pairs left(b + pair * 32), right(b + kTile + pair * 32);
#pragma GCC unroll 8
      for (int row = 0; row < count; ++row) {
        Pairs x = Pairs::all(a + row * kStepBf16 + 2 * pair);
        sums[2 * row] = add_pairs(sums[2 * row], left, x);
        sums[2 * row + 1] = add_pairs(sums[2 * row + 1], right, x);
      }
    }
  }
  ahead = own;
#pragma GCC unroll 16
  for (int i = 0; i < 2 * count; ++i) store(out + i * kLanes, sums[i]);
}

// The same for up to 16 rows of one block.
inline void block_products(const bf16* a, int64_t lines, int64_t rows, const bf16* b, int64_t steps,
                           bool first, Sums sums, Ahead& ahead) {
  int64_t row = 0;
  auto multiply = [&](auto count) {
    for (; row + count <= rows; row += count) {
      const bf16* own = a + row * kStepBf16;
      pair_products<count>(own, lines, b, steps, first, sums + row * kPanel, ahead);
    }
  };
  multiply(std::integral_constant<int, kBlockRows>());
  multiply(std::integral_constant<int, 4>());
  multiply(std::integral_constant<int, 2>());
  multiply(std::integral_constant<int, 1>());
}

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t rows,
                          const Part& part, Sums sums) {
  int64_t lines = rows < 16 ? rows : 16, block = 16 * weight.in_padded;
  const auto* data = static_cast<const bf16*>(weight.data) + panel * kPanel * weight.in_padded;
  const auto* end = reinterpret_cast<const char*>(data + kPanel * weight.in_padded);
  bool least = part.count < kBlockRows;
  int64_t near = least ? kNearOfLeast : part.count <= 16 ? kNearOfFew : kNearInputs;
  if ((panel + 1) * kPanel < weight.out_padded) end += kPanel * near * sizeof(bf16);
  // as many inputs as are multiplied now, a line of 64 bytes each, while all rows go by: a part of
  // them with every four pairs, and for few rows beside every load
  int64_t rows_left = part.count % kBlockRows;
  int64_t passes = part.count / kBlockRows + std::popcount(static_cast<uint64_t>(rows_left));
  int64_t lines_ahead = least ? 2 : 8;
  Ahead ahead{nullptr, end, (lines_ahead + passes - 1) / passes, part.count <= kBlockRows};
  for (int64_t from = part.from; from < part.to; from += near) {
    const auto* a = static_cast<const bf16*>(operand) + part.row / 16 * block + from * lines;
    int64_t left = part.to - from, steps = (left < near ? left : near) / kStepBf16;
    const bf16* b = data + from * kPanel;
    ahead.next = reinterpret_cast<const char*>(b + steps * 2 * kTile);
    for (int64_t row = 0; row < part.count; row += 16, a += block) {
      int64_t now = part.count - row < 16 ? part.count - row : 16;
      block_products(a, lines, now, b, steps, from == 0, sums + row * kPanel, ahead);
    }
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
