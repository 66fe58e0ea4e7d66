// bfloat16 products in tile registers: level amx.
#pragma once

#include "operand.h"
#include "tile.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Rows that one pass over a panel multiplies: as many as leave their operand in the second-level
// cache, while panel after panel goes by.
constexpr int64_t kPassRows = 256;
constexpr int64_t kPassInputs = 2048;
// Panels of a group, and of one whose sums are kept while inputs are walked in several parts.
constexpr int64_t kPassPanels = 16;
constexpr int64_t kPartPanels = 16;

inline void configure_rows(int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, rows < 16 ? static_cast<int>(rows) : 16);
  for (int tile : {6, 7}) config.set(tile, 16);
  configure(config);
}

// `blocks` (1, 2) blocks of rows x one panel, over `steps` steps of 32 inputs. a: the operand's
// first block; a_block: values from block to block; lines: rows of a block. Tiles 0..3 sum. The
// operand streams past the first-level cache, where the steps of the panel stay for the next rows.
template <int blocks>
inline void tile_products(const bf16* a, int64_t a_block, int64_t lines, const bf16* b,
                          int64_t steps, bool first, Sums sums, Ahead& ahead) {
  constexpr int64_t kStride = kPanel * sizeof(float);
  float* lower = sums + 16 * kPanel;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kStride);
    _tile_loadd(1, sums + 16, kStride);
    if constexpr (blocks == 2) {
      _tile_loadd(2, lower, kStride);
      _tile_loadd(3, lower + 16, kStride);
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, b, 64);
    give_way();
    _tile_stream_loadd(4, a, 64);
    give_way();
    _tile_dpbf16ps(0, 4, 6);
    give_way();
    ahead.fetch();
    _tile_loadd(7, b + kTile, 64);
    give_way();
    _tile_dpbf16ps(1, 4, 7);
    give_way();
    if constexpr (blocks == 2) {
      _tile_stream_loadd(5, a + a_block, 64);
      give_way();
      _tile_dpbf16ps(2, 5, 6);
      give_way();
      _tile_dpbf16ps(3, 5, 7);
      give_way();
    }
    a += lines * 32;
    b += 2 * kTile;
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + 16, kStride);
  if constexpr (blocks == 2) {
    _tile_stored(2, lower, kStride);
    _tile_stored(3, lower + 16, kStride);
  }
}

// Rows that fetch what follows at once, and how many bytes ahead: sixteen read no faster for it.
constexpr int64_t kFewRows = 4;
constexpr int64_t kRowsAhead = 4096;

// Inputs of a panel that stay in the first-level cache while the rows of a pass go by.
constexpr int64_t kNearInputs = 512;

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t rows,
                          const Part& part, Sums sums) {
  int64_t lines = rows < 16 ? rows : 16, blocks = (part.count + 15) / 16;
  int64_t block = 16 * weight.in_padded, inputs = part.to - part.from;
  const auto* data = static_cast<const bf16*>(weight.data) + panel * kPanel * weight.in_padded;
  // Many rows fetch the next panel's part; few, whose pace memory sets, what follows at once.
  int64_t panels = weight.out_padded / kPanel - panel;  // this one and those behind it
  const auto* next = reinterpret_cast<const char*>(data + kPanel * (weight.in_padded + part.from));
  const auto* end = reinterpret_cast<const char*>(data + kPanel * weight.in_padded * panels);
  int64_t fetched = panels == 1 || blocks <= 2 ? 0 : inputs;  // lines of 64 bytes: one per input
  int64_t turns = (blocks + 1) / 2 * (inputs / kStepBf16);
  Ahead ahead{next, next + fetched * 64, (fetched + turns - 1) / turns};
  if (rows <= kFewRows) {
    ahead = {reinterpret_cast<const char*>(data) + kRowsAhead, end, kStepBf16, true};
  }
  int64_t near = blocks <= 2 ? inputs : kNearInputs;
  for (int64_t from = part.from; from < part.to; from += near) {
    const auto* a = static_cast<const bf16*>(operand) + part.row / 16 * block + from * lines;
    const bf16* b = data + from * kPanel;
    int64_t steps = (part.to - from < near ? part.to - from : near) / kStepBf16;
    Sums to = sums;
    int64_t left = blocks;
    for (; left >= 2; left -= 2, a += 2 * block, to += 32 * kPanel) {
      tile_products<2>(a, block, lines, b, steps, from == 0, to, ahead);
    }
    if (left == 1) tile_products<1>(a, block, lines, b, steps, from == 0, to, ahead);
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
